"""Agreement of a candidate with its reference: quantities over prompts, and the rule. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from statistics import fmean
from typing import Any

from pytest_llmperf.core.agreement.comparison import PromptComparison
from pytest_llmperf.core.agreement.layers import Layers, LooksAtLayers
from pytest_llmperf.core.agreement.rules import MeasuredCriterion, Rule
from pytest_llmperf.core.agreement.sums import (
    Statistic,
    Sums,
    correlation,
    per_token,
    sqnr_db,
    sums,
)
from pytest_llmperf.core.agreement.through_the_loop import DecodeLimit, broken_path, path_text
from pytest_llmperf.core.agreement.words import (
    part_lines,
    part_summary,
    plain,
    worst_summary,
    worst_text,
)
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
    "decode_kl",
    "end_mae",
)
_WORST_PROMPTS = 3
_OF_LOGPROBS = ("perplexity_ratio", "logprob_mae")
_MAX_EXPONENT = 700.0


class Agreement(LooksAtLayers, Suggests):
    """How well a candidate's outputs agree with those of its reference.

    Intervals are bootstrapped over prompts; those of shares of tokens are exact, on the effective
    number of tokens (`core.verdicts.shares`). `same_model` says that the candidate was compared
    with itself, which proves nothing of it. `noise_floor` is the reference against itself.
    `reference` is the reference's strategy. `dtype` is what the candidate computes in, and
    `decode_limit` what its loop may differ from the same model without a cache, whatever the rule.
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
        dtype: str = "",
        decode_limit: DecodeLimit | None = None,
        look: Callable[[], Layers] | None = None,
    ) -> None:
        self._look = look
        self.prompts, self.rule, self.same_model = tuple(prompts), rule, same_model
        self.dtype, self.decode_limit = dtype, decode_limit
        self.noise_floor = None if noise_floor is None else _with_itself(noise_floor)
        self._subject, self._context, self._reference = subject, context, reference
        if self.n_tokens == 0:
            raise UsageError(
                "agreement compared 0 tokens: nothing was compared. "
                "Give prompts, and new_tokens of at least 1."
            )
        self._sums = tuple(map(sums, self.prompts))

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
    def parts(self) -> dict[str, Agreement]:
        """The agreement of each part of the prompts, such as "code"; empty without parts."""
        names = dict.fromkeys(row.part for row in self.prompts if row.part)
        return {name: self._of_part(name) for name in names}

    def _of_part(self, name: str) -> Agreement:
        rows = [row for row in self.prompts if row.part == name]
        return Agreement(rows, rule=Rule(), subject=self._subject, context=name, dtype=self.dtype)

    @property
    def reach(self) -> int:
        """The most positions that stood before a token that was compared."""
        return max(row.positions for row in self.prompts)

    @cached_property
    def top1(self) -> Estimate | NotMeasurable:
        """Share of positions where the candidate's argmax is the reference's."""
        return self._share("top1", [row.top1 for row in self._sums])

    @cached_property
    def top5(self) -> Estimate | NotMeasurable:
        """Share of positions where the reference's token is in the candidate's five most likely."""
        return self._share("top5", [row.top5 for row in self._sums])

    @cached_property
    def kl(self) -> Estimate | NotMeasurable:
        """Mean KL(reference || candidate), nats."""
        return self._of_logits("kl", per_token(lambda row: row.kl))

    @cached_property
    def perplexity_ratio(self) -> Estimate | NotMeasurable:
        """Perplexity of the reference's tokens under the candidate over that under the reference.

        Below 1 is better.
        """
        mean_gap = per_token(lambda row: row.logprob_gap)
        return self._of_logits(
            "perplexity_ratio", lambda rows: math.exp(min(_MAX_EXPONENT, mean_gap(rows)))
        )

    @cached_property
    def logprob_mae(self) -> Estimate | NotMeasurable:
        """Mean absolute difference of the log-probability of the reference's token, nats."""
        return self._of_logits("logprob_mae", per_token(lambda row: row.logprob_abs))

    @cached_property
    def prefix_match(self) -> Estimate | NotMeasurable:
        """Mean share of the free-running greedy tokens before the first divergence."""
        if self.not_finite:
            return self._not_finite("prefix_match")
        return self._bootstrapped("prefix_match", lambda rows: fmean(row.prefix for row in rows))

    @cached_property
    def sqnr_db(self) -> Estimate | NotMeasurable:
        """Power of the reference's logits over that of the candidate's error, dB.

        Infinite when they are equal.
        """
        return self._of_logits("sqnr_db", sqnr_db)

    @cached_property
    def logit_correlation(self) -> Estimate | NotMeasurable:
        """Pearson's correlation of the two models' logits, means removed position by position.

        1 is equal up to a scale.
        """
        if any(row.candidate_signal is None for row in self.prompts):
            return NotMeasurable(
                "agreement.logit_correlation", "this engine does not report the candidate's signal"
            )
        return self._of_logits("logit_correlation", correlation)

    @cached_property
    def decode_kl(self) -> Estimate | NotMeasurable:
        """Mean KL(the candidate without a cache || through its loop), nats.

        Of the prompts of which both were seen.
        """
        seen = [row for row in self._sums if row.n_reprefill]
        if not seen:
            return NotMeasurable("agreement.decode_kl", path_text(self.prompts))
        return self._of_logits(
            "decode_kl",
            lambda rows: (
                math.fsum(row.reprefill_kl for row in rows) / sum(row.n_reprefill for row in rows)
            ),
            seen,
        )

    @cached_property
    def end_mae(self) -> Estimate | NotMeasurable:
        """Mean absolute difference of the log-probability of the end of the sequence, nats."""
        seen = [row for row in self._sums if row.n_end]
        if not seen:
            return NotMeasurable("agreement.end_mae", "no token ends a sequence of this model")
        return self._of_logits(
            "end_mae",
            lambda rows: math.fsum(row.end_error for row in rows) / sum(row.n_end for row in rows),
            seen,
        )

    def containment(self, k: int = 5, horizon: int = 32) -> Estimate | NotMeasurable:
        """Share of prompts whose first divergence is inside both sides' top k.

        A prompt that does not diverge before position `horizon` counts too.
        """
        if self.not_finite:
            return self._not_finite("containment")
        inside = [int(row.contained(k, horizon)) for row in self.prompts]
        low, high = share_interval(inside, [1] * self.n_prompts)
        return self._estimate("containment", fmean(inside), low, high)

    @property
    def worst(self) -> tuple[PromptComparison, ...]:
        """The prompts, in the order of their mean KL, the largest first."""
        return tuple(sorted(self.prompts, key=_disagreement, reverse=True))

    @cached_property
    def reasons(self) -> tuple[str, ...]:
        """Why the rule does not hold, or the loop that is measured; empty when both do."""
        broken = () if self.not_finite else broken_path(self.prompts, self._limit_of_path())
        return (*self.rule.reasons(self), *broken)

    def _limit_of_path(self) -> DecodeLimit | None:
        """Return the limit of the loop; None where the rule has one of its own."""
        return None if self.rule.names("reprefill") else self.decode_limit

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
            *part_lines(self.parts),
            f"  {path_text(self.prompts)}",
            f"  {self._verdict()}",
            *self.layer_lines(),
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
            **{name: plain(getattr(self, name)) for name in QUANTITIES},
            "path": path_text(self.prompts),
            "reach": self.reach,
            "parts": {name: part_summary(part) for name, part in self.parts.items()},
            "worst": [worst_summary(row) for row in self.worst[:_WORST_PROMPTS]],
        }

    @property
    def _itself(self) -> str:
        return ", compared with itself" if self.same_model else ""

    def _compared(self) -> str:
        return (
            f"compared {self.n_tokens} tokens of {self.n_prompts} prompts{self._itself}, "
            f"up to position {self.reach}"
        )

    def _verdict(self) -> str:
        if not self.rule.criteria:
            return "no rule"
        reasons = "; ".join(self.reasons)
        if reasons and not self.rule.reasons(self):
            return f"{self.rule} holds, and the loop does not: {reasons}"
        return f"{self.rule} does not hold: {reasons}" if reasons else f"{self.rule} holds"

    def _finding(self) -> Finding:
        of = f" of {self._subject}" if self._subject else ""
        details = self._context, self._compared(), *self._intervals(), self.where
        return Finding(
            outcome=Outcome.FAIL if self.reasons else Outcome.PASS,
            text=f"agreement{of}: {self._verdict()}",
            detail="; ".join(filter(None, details)),
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

    def _of_logits(
        self, name: str, statistic: Statistic, rows: Sequence[Sums] | None = None
    ) -> Estimate | NotMeasurable:
        """Return a statistic over the prompts, or over some of them."""
        if self.not_finite:
            return self._not_finite(name)
        if self.partial and name not in _OF_LOGPROBS:
            return NotMeasurable(f"agreement.{name}", self.partial)
        return self._bootstrapped(name, statistic, rows)

    def _not_finite(self, name: str) -> NotMeasurable:
        return NotMeasurable(
            f"agreement.{name}",
            f"logits are not finite in {len(self.not_finite)} of {self.n_prompts} prompts",
        )

    def _share(self, name: str, counts: Sequence[int]) -> Estimate | NotMeasurable:
        """Return a share of tokens, of which each prompt has `counts`."""
        if self.not_finite:
            return self._not_finite(name)
        low, high = share_interval(counts, [row.n for row in self._sums])
        return self._estimate(name, sum(counts) / self.n_tokens, low, high)

    def _bootstrapped(
        self, name: str, statistic: Statistic, rows: Sequence[Sums] | None = None
    ) -> Estimate:
        drawn = self._sums if rows is None else rows
        low, high = stats.bootstrap_interval(drawn, statistic)
        return self._estimate(name, statistic(drawn), low, high)

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


def _disagreement(row: PromptComparison) -> float:
    return fmean(row.kl) if row.finite and row.kl else math.inf
