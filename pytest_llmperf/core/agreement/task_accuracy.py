"""Statistics of task accuracy: intervals, recovery against a reference, and gates that say what they can see. Pure.

The same items are put to candidate and reference, so that only those matter which one of them alone answers correctly
(McNemar 1947). Where the reference is a stored number, the candidate's count is held against a binomial of that rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from msgspec import Struct

from pytest_llmperf.core.format import format_percent
from pytest_llmperf.core.metrics.quantities import TABLE
from pytest_llmperf.core.verdicts.distributions import binomial_cdf, binomial_quantile, t_quantile
from pytest_llmperf.core.verdicts.estimate import Estimate
from pytest_llmperf.core.verdicts.judge import Finding, Outcome, keep
from pytest_llmperf.core.verdicts.stats import CONFIDENCE
from pytest_llmperf.errors import UsageError

ALPHA = 0.01
BETA = 0.1
MAX_ITEMS = 100_000

_MANY = 1e9  # degrees of freedom with which Student's t is the normal
_MAX_TERMS = 200
_PRECISION = 1e-5  # of a drop: a tenth of an item in 10,000
_BISECTIONS = 40


class AccuracyGate(Struct, frozen=True, kw_only=True):
    """A test for a drop of accuracy that its items support (see `accuracy_gate`).

    Shares of items, 0 to 1.

    `alpha` bounds the chance that an equal candidate fails; a candidate that lost `smallest_drop`
    fails with a chance of at least 1 - `beta`. `threshold` is the observed drop from which on the
    gate fails, at the `spread` that was expected. `stored` is the reference's accuracy where it is
    a number, else None.
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
        """FAIL: the drop is no chance.

        UNDECIDED: the two differ in more items than expected, so that `drop` may be hidden.

        Raises:
            UsageError: not `n` items, or a reference's answers are missing (or given to a gate with
                a stored number).
        """
        ours = _answers(candidate, self.n)
        if (reference is None) != (self.stored is not None):
            given = (
                "a stored number: give the candidate's answers alone"
                if reference
                else "the reference's answers: give both sides'"
            )
            raise UsageError(f"this gate compares with {given}.")
        if reference is None:
            return keep(self._against_number(ours, subject))
        return keep(self._paired(ours, _answers(reference, self.n), subject))

    def _paired(
        self, candidate: Sequence[bool], reference: Sequence[bool], subject: str
    ) -> Finding:
        lost, won = _discordant(candidate, reference)
        seen = _Seen(
            sum(candidate) / self.n, sum(reference) / self.n, f"{lost} items lost, {won} won"
        )
        if lost >= _critical(lost + won, self.alpha):
            return self._finding(Outcome.FAIL, seen, subject)
        needed = self._needed_after_all(lost + won)
        if needed is not None:
            return self._finding(Outcome.UNDECIDED, seen, subject, needed)
        return self._finding(Outcome.PASS, seen, subject)

    def _needed_after_all(self, m: int) -> int | None:
        """How many items the gate needs where m differ, if those are more than chance makes of the spread that was expected."""
        spread = m / self.n
        expected = 1 - binomial_cdf(m - 1, self.n, self.spread or 0.0) > self.alpha
        if (
            expected
            or _paired_power(self.n, spread, min(self.drop, spread), self.alpha) >= 1 - self.beta
        ):
            return None
        return (
            _needed(lambda n: _paired_power(n, spread, self.drop, self.alpha), self.beta, self.n)
            or MAX_ITEMS
        )

    def _against_number(self, candidate: Sequence[bool], subject: str) -> Finding:
        assert self.stored is not None  # noqa: S101 - asked by the one caller
        seen = _Seen(sum(candidate) / self.n, self.stored, "the reference is a stored number")
        failed = sum(candidate) <= _most_failing(self.n, self.stored, self.alpha)
        return self._finding(Outcome.FAIL if failed else Outcome.PASS, seen, subject)

    def _finding(
        self, outcome: Outcome, seen: _Seen, subject: str, needed: int | None = None
    ) -> Finding:
        of = f" of {subject}" if subject else ""
        more = None if needed is None else needed - self.n
        undecided = (
            ""
            if more is None
            else f"; undecided: the two differ in more items than expected, about {more} more would decide"
        )
        return Finding(
            outcome=outcome,
            text=f"accuracy{of} is {format_percent(seen.ours)}, the reference's {format_percent(seen.theirs)}, "
            f"claimed to be no worse  ({self.n} items)",
            detail=f"{seen.counts}; smallest visible drop {format_percent(self.smallest_drop, 2)} of the items{undecided}",
            left=f"accuracy{of}",
            right=f"no drop of {format_percent(self.drop, 2)}",
            smallest_visible=self.smallest_drop,
            more_samples=more,
        )


class _Seen(NamedTuple):
    ours: float
    theirs: float
    counts: str


def accuracy(correct: Sequence[bool], *, subject: str = "", context: str = "") -> Estimate:
    """Share of items answered correctly, with Clopper and Pearson's exact 99 % interval.

    Raises UsageError without items.
    """
    answers = _answers(correct)
    low, high = _clopper_pearson(sum(answers), len(answers))
    return _estimate(
        "task.accuracy", sum(answers) / len(answers), low, high, len(answers), subject, context
    )


def recovery(
    candidate: Sequence[bool],
    reference: Sequence[bool] | float,
    *,
    subject: str = "",
    context: str = "",
    against: str = "",
) -> Estimate:
    """The candidate's accuracy over the reference's, with a 99 % interval: 0.95 keeps 95 % of what the reference could do.

    `reference` is its answers to the same items, in the same order (interval of Bonett and Price 2006 for a ratio of paired
    proportions), or its accuracy as a number that is taken as exact (Clopper and Pearson over that number).

    Raises:
        UsageError: no items, sides of unlike length, or a reference that answered nothing correctly.

    """
    ours = _answers(candidate)
    n = len(ours)
    if isinstance(reference, int | float):
        rate = _share("the reference's accuracy", float(reference), above=0.0)
        low, high = (end / rate for end in _clopper_pearson(sum(ours), n))
        return _estimate(
            "task.recovery", sum(ours) / n / rate, low, high, n, subject, context, against
        )
    theirs = _answers(reference, n)
    if not any(theirs):
        raise UsageError(
            f"the reference answers none of {n} items correctly: there is nothing to recover. Take an easier task."
        )
    low, high = _paired_ratio(ours, theirs)
    return _estimate(
        "task.recovery", sum(ours) / sum(theirs), low, high, n, subject, context, against
    )


def answer_spread(candidate: Sequence[bool], reference: Sequence[bool]) -> float:
    """Share of items that exactly one side answers correctly: what `accuracy_gate` needs to know of a pair of models."""
    ours = _answers(candidate)
    return sum(_discordant(ours, _answers(reference, len(ours)))) / len(ours)


def accuracy_gate(
    n: int,
    drop: float,
    *,
    spread: float | None = None,
    reference: float | None = None,
    alpha: float = ALPHA,
    beta: float = BETA,
) -> AccuracyGate:
    """A gate on `n` items: an equal candidate fails with a chance of at most `alpha`, one that lost `drop` passes with `beta`.

    Give `spread` (see `answer_spread`) to compare item by item with a reference that answers the same items, or `reference`, its
    accuracy, to compare with a stored number, which is taken as exact.

    Raises:
        UsageError: `n` items cannot show such a drop; the message says which they can, and how many items would do.

    """
    if not isinstance(n, int) or n < 1:
        raise UsageError(f"accuracy_gate(n={n!r}): a number of items of at least 1 is needed.")
    if (spread is None) == (reference is None):
        raise UsageError(
            "accuracy_gate needs either spread= (the reference answers the same items) or reference= (its accuracy).",
        )
    for name, value in (("drop", drop), ("alpha", alpha), ("beta", beta)):
        _share(name, value, above=0.0)
    paired = reference is None
    largest = _share(
        "spread" if paired else "reference", spread if spread is not None else reference, above=0.0
    )
    if drop > largest:
        what = "spread of" if paired else "reference accuracy of"
        raise UsageError(
            f"accuracy_gate(drop={drop:g}): with a {what} {largest:g} no drop can be larger than that."
        )
    power = _paired_power if paired else _stored_power
    supported = power(n, largest, drop, alpha) >= 1 - beta
    smallest = _smallest_drop(
        lambda each: power(n, largest, each, alpha), drop if supported else largest, beta
    )
    if not supported or smallest is None:
        raise UsageError(
            _refusal(n, drop, smallest, _needed(lambda m: power(m, largest, drop, alpha), beta, n))
        )
    threshold = (
        _paired_threshold(n, largest, alpha)
        if paired
        else largest - _most_failing(n, largest, alpha) / n
    )
    return AccuracyGate(
        n=n,
        drop=drop,
        alpha=alpha,
        beta=beta,
        spread=spread,
        stored=reference,
        threshold=threshold,
        smallest_drop=smallest,
    )


def _refusal(n: int, drop: float, smallest: float | None, needed: int | None) -> str:
    seen = (
        "they can show no drop at all"
        if smallest is None
        else f"the smallest they can show is {format_percent(smallest, 2)}"
    )
    enough = f"more than {MAX_ITEMS} items" if needed is None else f"about {needed} items"
    return (
        f"{n} items cannot show a drop of {format_percent(drop, 2)}: {seen}. It would take {enough}. "
        "Give more items, accept a larger drop, or a larger alpha or beta."
    )


# Power, exactly


def _critical(m: int, alpha: float) -> int:
    """Of m items that one side alone answers: as many lost ones are no chance.

    Above m where none are enough.
    """
    return m + 1 - binomial_quantile(m, 0.5, alpha)


def _most_failing(n: int, rate: float, alpha: float) -> int:
    """The most correct answers of n that are too few for a candidate of this rate.

    -1 where none are.
    """
    return binomial_quantile(n, rate, alpha) - 1


def _paired_threshold(n: int, spread: float, alpha: float) -> float:
    m = round(n * spread)
    return (2 * _critical(m, alpha) - m) / n


def _paired_power(n: int, spread: float, drop: float, alpha: float) -> float:
    """Chance that a candidate fails which lost `drop` of the items net, where `spread` of them are answered by one side alone.

    Summed over the number m of such items; over every few where there are many, for neighbours have almost the same power.
    """
    share = min(1.0, (1 + drop / spread) / 2)
    deviation = math.sqrt(n * spread * (1 - spread))
    first, last = (
        max(0, math.floor(n * spread - 6 * deviation)),
        min(n, math.ceil(n * spread + 6 * deviation)),
    )
    step = max(1, (last - first) // _MAX_TERMS)
    total, weights, failing = 0.0, 0.0, binomial_quantile(first, 0.5, alpha) - 1
    for m in range(first, last + 1, step):
        failing = _most_won(m, alpha, failing + step // 2)
        weight = _binomial_pmf(m, n, spread)
        weights += weight
        total += weight * (1 - binomial_cdf(m - failing - 1, m, share))
    return total / weights


def _most_won(m: int, alpha: float, guess: int) -> int:
    """Of m items that one side alone answers: if the candidate won at most so many, it fails.

    -1 where even none are too many.
    """
    while guess >= 0 and binomial_cdf(guess, m, 0.5) > alpha:
        guess -= 1
    while binomial_cdf(guess + 1, m, 0.5) <= alpha:
        guess += 1
    return guess


def _stored_power(n: int, rate: float, drop: float, alpha: float) -> float:
    return binomial_cdf(_most_failing(n, rate, alpha), n, max(0.0, rate - drop))


def _smallest_drop(power: Callable[[float], float], largest: float, beta: float) -> float | None:
    """The smallest drop that is found with a chance of 1 - beta.

    None where not even the largest is.
    """
    if power(largest) < 1 - beta:
        return None
    low, high = 0.0, largest
    while high - low > _PRECISION:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= 1 - beta else (middle, high)
    return high


def _needed(power: Callable[[int], float], beta: float, n: int) -> int | None:
    """A number of items above n that has the power, found by bisection (power is not quite monotone in n: counts are whole)."""
    low, high = n, 2 * n
    while power(high) < 1 - beta:
        low, high = high, 2 * high
        if high > MAX_ITEMS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= 1 - beta else (middle, high)
    return high


def _binomial_pmf(k: int, n: int, p: float) -> float:
    if p >= 1:
        return float(k == n)
    log = (
        math.lgamma(n + 1)
        - math.lgamma(k + 1)
        - math.lgamma(n - k + 1)
        + k * math.log(p)
        + (n - k) * math.log1p(-p)
    )
    return math.exp(log)


# Intervals


def _clopper_pearson(k: int, n: int) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low = 0.0 if k == 0 else _root(lambda p: 1 - binomial_cdf(k - 1, n, p) >= tail)
    high = 1.0 if k == n else _root(lambda p: binomial_cdf(k, n, p) <= tail)
    return low, high


def _root(reached: Callable[[float], bool]) -> float:
    """The smallest p in [0, 1] for which `reached` holds, which stays so above it."""
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def _paired_ratio(ours: Sequence[bool], theirs: Sequence[bool]) -> tuple[float, float]:
    """Bonett and Price (2006), eq.

    8: Wilson intervals of both shares, narrowed by how much the two have in common.
    """
    a, b = sum(ours), sum(theirs)
    lost, won = _discordant(ours, theirs)
    m = b + won  # items that at least one side answers
    own = math.sqrt((lost + won + 2) / ((a + 1) * (b + 1)))
    apart = sum(math.sqrt((1 - (k + 1) / (m + 2)) / (k + 1)) for k in (a, b))
    z = t_quantile(1 - (1 - CONFIDENCE) / 2, _MANY) * own / apart
    (low_a, high_a), (low_b, high_b) = _wilson(a, m, z), _wilson(b, m, z)
    return min(low_a / high_b, a / b), max(high_a / low_b, a / b)


def _wilson(k: int, n: int, z: float) -> tuple[float, float]:
    middle, half = 2 * k + z * z, z * math.sqrt(z * z + 4 * k * (1 - k / n))
    return max(0.0, (middle - half) / (2 * (n + z * z))), (middle + half) / (2 * (n + z * z))


# Input


def _answers(given: Sequence[bool], n: int | None = None) -> tuple[bool, ...]:
    answers = tuple(given)
    wrong = next((each for each in answers if each not in (0, 1)), None)
    if wrong is not None:
        raise UsageError(f"answers are True or False for each item, {wrong!r} is neither.")
    if not answers:
        raise UsageError("no items: an accuracy of nothing says nothing. Give the task's items.")
    if n is not None and len(answers) != n:
        raise UsageError(
            f"{len(answers)} items were answered, {n} are expected: both sides and the gate need the same items."
        )
    return tuple(map(bool, answers))


def _share(name: str, value: float | None, *, above: float) -> float:
    if not isinstance(value, int | float) or not above < value <= 1:
        raise UsageError(
            f"{name} is {value!r}: a share of the items above {above:g} and at most 1 is needed."
        )
    return float(value)


def _discordant(ours: Sequence[bool], theirs: Sequence[bool]) -> tuple[int, int]:
    """Items the candidate lost (the reference alone is right), and those it won."""
    pairs = list(zip(ours, theirs, strict=True))
    return sum(r and not c for c, r in pairs), sum(c and not r for c, r in pairs)


def _estimate(
    name: str,
    value: float,
    low: float,
    high: float,
    n: int,
    subject: str,
    context: str,
    against: str = "",
) -> Estimate:
    row = TABLE[name]
    return Estimate(
        name=row.name,
        value=value,
        low=min(low, value),
        high=max(high, value),
        n=n,
        unit=row.unit,
        direction=row.direction,
        kind="bootstrap",
        subject=subject,
        context=context,
        at_least=2,
        against=against,
        counted="item",
    )
