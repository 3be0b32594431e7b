"""A gate on task accuracy that says which drop its items show. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct

from pytest_llmperf.core.agreement.accuracy_power import (
    MAX_ITEMS,
    PairedItems,
    StoredRate,
    least_failing_lost,
    needed_items,
    smallest_drop,
)
from pytest_llmperf.core.agreement.task_accuracy import (
    checked_answers,
    checked_share,
    discordant,
)
from pytest_llmperf.core.format import format_percent
from pytest_llmperf.core.verdicts.distributions import binomial_cdf
from pytest_llmperf.core.verdicts.judge import Finding, Outcome, keep
from pytest_llmperf.errors import UsageError

ALPHA = 0.01
BETA = 0.1


class AccuracyGate(Struct, frozen=True, kw_only=True):
    """A test for a drop of accuracy that its items support (see `accuracy_gate`).

    Shares of items are 0 to 1. `alpha` bounds the chance that an equal candidate fails; a candidate
    that lost `smallest_drop` fails with a chance of at least 1 - `beta`. `threshold` is the
    observed drop from which on the gate fails, at the `spread` that was expected. `stored` is the
    reference's accuracy where it is a number, else None.
    """

    n: int
    drop: float
    alpha: float
    beta: float
    spread: float | None
    stored: float | None
    threshold: float
    smallest_drop: float

    def judge(
        self,
        candidate: Sequence[bool],
        reference: Sequence[bool] | None = None,
        *,
        subject: str = "",
    ) -> Finding:
        """Judge the answers to the gate's items, and keep the Finding among the test's claims.

        FAIL: the drop is no chance. UNDECIDED: the two differ in more items than expected, so that
        `drop` may be hidden.

        Raises:
            UsageError: not `n` items, or a reference's answers are missing (or given to a gate with
                a stored number).
        """
        answers = checked_answers(candidate, self.n)
        if self.stored is not None:
            if reference is not None:
                raise UsageError(
                    "this gate compares with a stored number: give the candidate's answers alone."
                )
            return keep(self._against_rate(answers, self.stored, subject))
        if reference is None:
            raise UsageError("this gate compares with the reference's answers: give both sides'.")
        return keep(self._paired(answers, checked_answers(reference, self.n), subject))

    def _paired(
        self, candidate: Sequence[bool], reference: Sequence[bool], subject: str
    ) -> Finding:
        lost, won = discordant(candidate, reference)
        counts = f"{lost} items lost, {won} won"
        shares = _Shares(sum(candidate) / self.n, sum(reference) / self.n, counts)
        if lost >= least_failing_lost(lost + won, self.alpha):
            return self._finding(Outcome.FAIL, shares, subject)
        needed = self._needed_after_all(lost + won)
        if needed is not None:
            return self._finding(Outcome.UNDECIDED, shares, subject, needed)
        return self._finding(Outcome.PASS, shares, subject)

    def _needed_after_all(self, m: int) -> int | None:
        """Return how many items the gate needs where m differ.

        None if they do not differ in more than chance makes of the spread that was expected, or if
        the drop shows all the same.
        """
        p_of_so_many = 1 - binomial_cdf(m - 1, self.n, self.spread or 0.0)
        if p_of_so_many > self.alpha:
            return None
        items = PairedItems(m / self.n, self.alpha)
        if items.power(self.n, min(self.drop, items.spread)) >= 1 - self.beta:
            return None
        return needed_items(lambda n: items.power(n, self.drop), self.beta, self.n) or MAX_ITEMS

    def _against_rate(self, candidate: Sequence[bool], rate: float, subject: str) -> Finding:
        shares = _Shares(sum(candidate) / self.n, rate, "the reference is a stored number")
        failed = sum(candidate) <= StoredRate(rate, self.alpha).most_failing(self.n)
        return self._finding(Outcome.FAIL if failed else Outcome.PASS, shares, subject)

    def _finding(
        self, outcome: Outcome, shares: _Shares, subject: str, needed: int | None = None
    ) -> Finding:
        accuracy = f"accuracy of {subject}" if subject else "accuracy"
        more = None if needed is None else needed - self.n
        return Finding(
            outcome=outcome,
            text=f"{accuracy} is {shares}, claimed to be no worse  ({self.n} items)",
            detail=(
                f"{shares.counts}; smallest visible drop {format_percent(self.smallest_drop, 2)} "
                f"of the items{_undecided_text(more)}"
            ),
            left=accuracy,
            right=f"no drop of {format_percent(self.drop, 2)}",
            smallest_visible=self.smallest_drop,
            more_samples=more,
        )


class _Shares(NamedTuple):
    """Both accuracies, and how they differ in words."""

    candidate: float
    reference: float
    counts: str

    def __str__(self) -> str:
        candidate, reference = format_percent(self.candidate), format_percent(self.reference)
        return f"{candidate}, the reference's {reference}"


def _undecided_text(more: int | None) -> str:
    if more is None:
        return ""
    return (
        f"; undecided: the two differ in more items than expected, about {more} more would decide"
    )


def accuracy_gate(
    n: int,
    drop: float,
    *,
    spread: float | None = None,
    reference: float | None = None,
    alpha: float = ALPHA,
    beta: float = BETA,
) -> AccuracyGate:
    """Make a gate on `n` items.

    An equal candidate fails with a chance of at most `alpha`, and one that lost `drop` passes with
    a chance of at most `beta`. Give `spread` (see `answer_spread`) to compare item by item with a
    reference that answers the same items, or `reference`, its accuracy, to compare with a stored
    number, which is taken as exact.

    Raises:
        UsageError: `n` items cannot show such a drop; the message says which they can, and how many
            items would do.

    """
    if not isinstance(n, int) or n < 1:
        raise UsageError(f"accuracy_gate(n={n!r}): a number of items of at least 1 is needed.")
    items = _items(spread, reference, drop=drop, alpha=alpha, beta=beta)
    return AccuracyGate(
        n=n,
        drop=drop,
        alpha=alpha,
        beta=beta,
        spread=spread,
        stored=reference,
        threshold=items.threshold(n),
        smallest_drop=_supported_drop(items, n, drop, beta),
    )


def _items(
    spread: float | None, reference: float | None, *, drop: float, alpha: float, beta: float
) -> PairedItems | StoredRate:
    """Check what a gate is made of, and return how its items are compared."""
    if (spread is None) == (reference is None):
        raise UsageError(
            "accuracy_gate needs either spread= (the reference answers the same items) "
            "or reference= (its accuracy).",
        )
    for name, share in (("drop", drop), ("alpha", alpha), ("beta", beta)):
        checked_share(name, share)
    items = _compared_items(spread, reference, alpha)
    if drop > items.largest_drop:
        raise UsageError(
            f"accuracy_gate(drop={drop:g}): with a {items.largest_drop_text} "
            "no drop can be larger than that."
        )
    return items


def _compared_items(
    spread: float | None, reference: float | None, alpha: float
) -> PairedItems | StoredRate:
    if reference is None:
        return PairedItems(checked_share("spread", spread), alpha)
    return StoredRate(checked_share("reference", reference), alpha)


def _supported_drop(items: PairedItems | StoredRate, n: int, drop: float, beta: float) -> float:
    """Return the smallest drop that n items show. Raises UsageError where `drop` is smaller."""
    supported = items.power(n, drop) >= 1 - beta
    largest = drop if supported else items.largest_drop
    smallest = smallest_drop(lambda smaller: items.power(n, smaller), largest, beta)
    if supported and smallest is not None:
        return smallest
    needed = needed_items(lambda more: items.power(more, drop), beta, n)
    raise UsageError(_refusal(n, drop, smallest, needed))


def _refusal(n: int, drop: float, smallest: float | None, needed: int | None) -> str:
    can_show = (
        "they can show no drop at all"
        if smallest is None
        else f"the smallest they can show is {format_percent(smallest, 2)}"
    )
    enough = f"more than {MAX_ITEMS} items" if needed is None else f"about {needed} items"
    return (
        f"{n} items cannot show a drop of {format_percent(drop, 2)}: {can_show}. "
        f"It would take {enough}. "
        "Give more items, accept a larger drop, or a larger alpha or beta."
    )
