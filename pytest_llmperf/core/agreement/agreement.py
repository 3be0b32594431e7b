"""Agreement of a candidate with its reference: quantities over prompts, and the rule. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from statistics import fmean
from typing import Any, NamedTuple

from pytest_llmperf.core.agreement.comparison import PromptComparison
from pytest_llmperf.core.agreement.rules import MeasuredCriterion, Rule
from pytest_llmperf.core.agreement.words import worst_summary, worst_text
from pytest_llmperf.core.metrics.quantities import TABLE
from pytest_llmperf.core.misspelt import Suggests
from pytest_llmperf.core.verdicts import stats
from pytest_llmperf.core.verdicts.estimate import Estimate, NotMeasurable
from pytest_llmperf.core.verdicts.judge import Finding, Outcome, keep
from pytest_llmperf.core.verdicts.shares import share_interval
from pytest_llmperf.errors import UsageError

QUANTITIES = (
    "top1",
    "top5",
    "kl",
    "perplexity_ratio",
    "logprob_mae",
    "prefix_match",
    "sqnr_db",
    "logit_correlation",
)
_WORST_PROMPTS = 3
_OF_LOGPROBS = ("perplexity_ratio", "logprob_mae")
_MAX_EXPONENT = 700.0


class _Sums(NamedTuple):
    """One prompt, summed over its positions: what the bootstrap draws."""

    n: int
    top1: int
    top5: int
    kl: float
    logprob_gap: float
    logprob_abs: float
    prefix: float
    signal: float
    noise: float
    candidate_signal: float


_Statistic = Callable[[Sequence[_Sums]], float]


class Agreement(Suggests):
    """How well a candidate's outputs agree with those of its reference.

    Intervals are bootstrapped over prompts; those of shares of tokens are exact, on the effective
    number of tokens (`core.verdicts.shares`). `same_model` says that the candidate was compared
    with itself, which proves nothing of it. `noise_floor` is the reference against itself.
    `reference` is the reference's strategy.
    """

    def __init__(
        self,
        prompts: Sequence[PromptComparison],
        *,
        rule: Rule,
        same_model: bool = False,
        noise_floor: Sequence[PromptComparison] | None = None,
        subject: str = "",
        context: str = "",
        reference: str = "",
    ) -> None:
        self.prompts, self.rule, self.same_model = tuple(prompts), rule, same_model
        self.noise_floor = None if noise_floor is None else _with_itself(noise_floor)
        self._subject, self._context, self._reference = subject, context, reference
        if self.n_tokens == 0:
            raise UsageError(
                "agreement compared 0 tokens: nothing was compared. "
                "Give prompts, and new_tokens of at least 1."
            )
        self._sums = tuple(map(_sums, self.prompts))

    def __repr__(self) -> str:
        return (
            f"<agreement over {self.n_tokens} tokens of {self.n_prompts} prompts{self._itself}: "
            f"{self._verdict()}>"
        )

    def __bool__(self) -> bool:
        raise UsageError(
            "an agreement is neither true nor false: "
            "claim .ok, or one of its numbers, such as .top1 >= 0.97."
        )

    @property
    def n_prompts(self) -> int:
        """How many prompts were compared."""
        return len(self.prompts)

    @property
    def n_tokens(self) -> int:
        """How many positions were compared, over all prompts."""
        return sum(len(row.top1) for row in self.prompts)

    @cached_property
    def not_finite(self) -> tuple[int, ...]:
        """Indices of the prompts in which a logit is NaN or infinite."""
        return tuple(row.index for row in self.prompts if not row.finite)

    @cached_property
    def partial(self) -> str:
        """Why there are no logits of all tokens; empty where there are."""
        return next(filter(None, (row.partial for row in self.prompts)), "")

    @cached_property
    def top1(self) -> Estimate:
        """Share of positions where the candidate's argmax is the reference's."""
        return self._share("top1", [row.top1 for row in self._sums])

    @cached_property
    def top5(self) -> Estimate:
        """Share of positions where the reference's token is in the candidate's five most likely."""
        return self._share("top5", [row.top5 for row in self._sums])

    @cached_property
    def kl(self) -> Estimate | NotMeasurable:
        """Mean KL(reference || candidate), nats."""
        return self._of_logits("kl", _per_token(lambda row: row.kl))

    @cached_property
    def perplexity_ratio(self) -> Estimate | NotMeasurable:
        """Perplexity of the reference's tokens under the candidate over that under the reference.

        Below 1 is better.
        """
        mean_gap = _per_token(lambda row: row.logprob_gap)
        return self._of_logits(
            "perplexity_ratio", lambda rows: math.exp(min(_MAX_EXPONENT, mean_gap(rows)))
        )

    @cached_property
    def logprob_mae(self) -> Estimate | NotMeasurable:
        """Mean absolute difference of the log-probability of the reference's token, nats."""
        return self._of_logits("logprob_mae", _per_token(lambda row: row.logprob_abs))

    @cached_property
    def prefix_match(self) -> Estimate:
        """Mean share of the free-running greedy tokens before the first divergence."""
        return self._bootstrapped("prefix_match", lambda rows: fmean(row.prefix for row in rows))

    @cached_property
    def sqnr_db(self) -> Estimate | NotMeasurable:
        """Power of the reference's logits over that of the candidate's error, dB.

        Infinite when they are equal.
        """
        return self._of_logits("sqnr_db", _sqnr_db)

    @cached_property
    def logit_correlation(self) -> Estimate | NotMeasurable:
        """Pearson's correlation of the two models' logits, means removed position by position.

        1 is equal up to a scale.
        """
        if any(row.candidate_signal is None for row in self.prompts):
            return NotMeasurable(
                "agreement.logit_correlation", "this engine does not report the candidate's signal"
            )
        return self._of_logits("logit_correlation", _correlation)

    def containment(self, k: int = 5, horizon: int = 32) -> Estimate:
        """Share of prompts whose first divergence is inside both sides' top k.

        A prompt that does not diverge before position `horizon` counts too.
        """
        inside = [int(row.contained(k, horizon)) for row in self.prompts]
        low, high = share_interval(inside, [1] * self.n_prompts)
        return self._estimate("containment", fmean(inside), low, high)

    @property
    def worst(self) -> tuple[PromptComparison, ...]:
        """The prompts, in the order of their mean KL, the largest first."""
        return tuple(sorted(self.prompts, key=_disagreement, reverse=True))

    @cached_property
    def reasons(self) -> tuple[str, ...]:
        """Why the rule does not hold; empty when it does."""
        return self.rule.reasons(self)

    @cached_property
    def ok(self) -> Finding:
        """Whether the rule holds on these prompts, and kept among the claims of the test.

        It is true or false by the values themselves. Their intervals are in its detail, and where
        one holds its limit the test is warned that other prompts may decide otherwise.

        Raises:
            UsageError: this kind of variant has no default rule, so that there is nothing to hold.

        """
        if not self.rule.criteria:
            raise UsageError(self.rule.missing)
        return keep(self._finding())

    def report(self) -> str:
        """Write numbers, verdict and the worst prompts.

        Of each prompt there are the position, both tokens, both top-5 and the logit gap.
        """
        lines = [
            self._compared(),
            *(f"  {name:<19}{getattr(self, name)!s}" for name in QUANTITIES),
            f"  {self._verdict()}",
            "prompts that disagree most:",
            *map(worst_text, self.worst[:_WORST_PROMPTS]),
        ]
        return "\n".join(lines)

    def summary(self) -> dict[str, Any]:
        """Return plain values for a record."""
        return {
            "itself": self.same_model,
            "reference": self._reference,
            "n_prompts": self.n_prompts,
            "n_tokens": self.n_tokens,
            "rule": str(self.rule),
            "ok": not self.reasons if self.rule.criteria else None,
            "reasons": list(self.reasons),
            **{name: _plain(getattr(self, name)) for name in QUANTITIES},
            "worst": [worst_summary(row) for row in self.worst[:_WORST_PROMPTS]],
        }

    @property
    def _itself(self) -> str:
        return ", compared with itself" if self.same_model else ""

    def _compared(self) -> str:
        return f"compared {self.n_tokens} tokens of {self.n_prompts} prompts{self._itself}"

    def _verdict(self) -> str:
        if not self.rule.criteria:
            return "no rule"
        reasons = "; ".join(self.reasons)
        return f"{self.rule} does not hold: {reasons}" if reasons else f"{self.rule} holds"

    def _finding(self) -> Finding:
        of = f" of {self._subject}" if self._subject else ""
        return Finding(
            outcome=Outcome.FAIL if self.reasons else Outcome.PASS,
            text=f"agreement{of}: {self._verdict()}",
            detail="; ".join(filter(None, (self._context, self._compared(), *self._intervals()))),
            left="agreement",
            right=str(self.rule),
            caution=self._caution(),
        )

    def _intervals(self) -> list[str]:
        """Return what each criterion with an interval measured."""
        return [f"{measured.criterion}: {measured.estimate}" for measured in self._measured]

    def _caution(self) -> str:
        """Say which limits lie within the intervals of what they limit."""
        open_limits = [str(row.criterion) for row in self._measured if row.is_open]
        if not open_limits:
            return ""
        return (
            f"{' and '.join(open_limits)} is decided on these {self.n_prompts} prompts: "
            "its interval holds the limit, so that other prompts may decide otherwise"
        )

    @cached_property
    def _measured(self) -> tuple[MeasuredCriterion, ...]:
        return () if self.not_finite else self.rule.measured(self)

    def _of_logits(self, name: str, statistic: _Statistic) -> Estimate | NotMeasurable:
        if self.not_finite:
            return NotMeasurable(
                f"agreement.{name}",
                f"logits are not finite in {len(self.not_finite)} of {self.n_prompts} prompts",
            )
        if self.partial and name not in _OF_LOGPROBS:
            return NotMeasurable(f"agreement.{name}", self.partial)
        return self._bootstrapped(name, statistic)

    def _share(self, name: str, counts: Sequence[int]) -> Estimate:
        """Return a share of tokens, of which each prompt has `counts`."""
        low, high = share_interval(counts, [row.n for row in self._sums])
        return self._estimate(name, sum(counts) / self.n_tokens, low, high)

    def _bootstrapped(self, name: str, statistic: _Statistic) -> Estimate:
        low, high = stats.bootstrap_interval(self._sums, statistic)
        return self._estimate(name, statistic(self._sums), low, high)

    def _estimate(self, name: str, value: float, low: float, high: float) -> Estimate:
        row = TABLE[f"agreement.{name}"]
        return Estimate(
            name=row.name,
            value=value,
            low=low,
            high=high,
            n=self.n_prompts,
            unit=row.unit,
            direction=row.direction,
            kind="bootstrap",
            subject=self._subject,
            context=self._context,
            at_least=2,
        )


def _with_itself(prompts: Sequence[PromptComparison]) -> Agreement:
    return Agreement(prompts, rule=Rule(), same_model=True)


def _sums(row: PromptComparison) -> _Sums:
    _require_equal_lengths(row)
    pairs = zip(row.reference_logprob, row.candidate_logprob, strict=True)
    gaps = [reference - candidate for reference, candidate in pairs]
    return _Sums(
        n=len(row.top1),
        top1=sum(row.top1),
        top5=sum(row.top5),
        kl=math.fsum(row.kl),
        logprob_gap=math.fsum(gaps),
        logprob_abs=math.fsum(map(abs, gaps)),
        prefix=_prefix_share(row),
        signal=row.signal,
        noise=row.noise,
        candidate_signal=row.candidate_signal or 0.0,
    )


def _require_equal_lengths(row: PromptComparison) -> None:
    sequences = [row.top1, row.top5, row.reference_logprob, row.candidate_logprob]
    if not row.partial:
        sequences.append(row.kl)
    if len(set(map(len, sequences))) > 1:
        raise UsageError(
            f"prompt {row.index}: its sequences differ in length; "
            "the engine's comparison is broken."
        )


def _prefix_share(row: PromptComparison) -> float:
    """Return the share of the free-running tokens before the first divergence."""
    if row.first_divergence is None:
        return 1.0
    return row.first_divergence / max(1, row.n_free)


def _per_token(quantity: Callable[[_Sums], float]) -> _Statistic:
    """Return the statistic that is the mean of a quantity over the tokens of all rows."""

    def mean(rows: Sequence[_Sums]) -> float:
        return math.fsum(map(quantity, rows)) / sum(row.n for row in rows)

    return mean


def _sqnr_db(rows: Sequence[_Sums]) -> float:
    signal = math.fsum(row.signal for row in rows)
    noise = math.fsum(row.noise for row in rows)
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def _correlation(rows: Sequence[_Sums]) -> float:
    """Correlate by the powers of both sides and of their difference.

    2 <r, c> = |r|^2 + |c|^2 - |r - c|^2.
    """
    reference = math.fsum(row.signal for row in rows)
    candidate = math.fsum(row.candidate_signal for row in rows)
    noise = math.fsum(row.noise for row in rows)
    # A side that has the same logit for every token orders nothing.
    if reference <= 0 or candidate <= 0:
        return 0.0
    product = (reference + candidate - noise) / 2
    return max(-1.0, min(1.0, product / math.sqrt(reference * candidate)))


def _disagreement(row: PromptComparison) -> float:
    return fmean(row.kl) if row.finite and row.kl else math.inf


def _plain(quantity: Estimate | NotMeasurable) -> dict[str, Any]:
    if isinstance(quantity, NotMeasurable):
        return {"value": None, "reason": quantity.reason}
    return {
        "value": quantity.value,
        "low": quantity.low,
        "high": quantity.high,
        "unit": quantity.unit,
    }
