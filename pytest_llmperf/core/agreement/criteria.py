"""The criteria of agreement rules: what each limits, and what breaks it. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import stdev
from typing import NamedTuple, Protocol, SupportsFloat

from pytest_llmperf.core.agreement.comparison import PromptComparison
from pytest_llmperf.errors import UsageError

KL_RESOLUTION_NATS = 1e-9
"""The rounding of fp32 logits alone gives as much."""
SQNR_RESOLUTION_DB = 120.0
"""Logits in fp32 are not closer to each other than that."""


FINEST_KL_NATS, FINEST_SQNR_DB = 1e-6, 70.0
"""What is asked of a dtype whose noise is smaller: sums in another order make as much."""
PROMPT_MARGIN = 4.0
"""How many times more a single prompt may diverge than all of them do on average."""
_STANDARD_ERRORS = 4.0
_LARGEST_CHANCE = math.log(2)
"""Of the logarithm of a ratio of perplexities; what is farther off is not for want of tokens."""
_EPSILON = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24}
"""Relative rounding of a dtype; the power of the noise goes with its square."""


class Compared(Protocol):
    """What a rule reads of an agreement; see `core.agreement.agreement.Agreement`."""

    @property
    def prompts(self) -> Sequence[PromptComparison]:
        """One comparison a prompt."""

    @property
    def n_prompts(self) -> int:
        """Prompts compared."""

    @property
    def not_finite(self) -> Sequence[int]:
        """Prompts in which a logit is NaN or infinite."""

    @property
    def partial(self) -> str:
        """Why the logits of all tokens are missing; empty where they are there."""

    @property
    def kl(self) -> SupportsFloat:
        """Kullback-Leibler divergence in nats a token."""

    @property
    def sqnr_db(self) -> SupportsFloat:
        """Signal to noise of the logits in dB."""

    @property
    def logit_correlation(self) -> SupportsFloat:
        """Correlation of the logits."""

    @property
    def perplexity_ratio(self) -> SupportsFloat:
        """Perplexity over that of the reference."""

    @property
    def prefix_match(self) -> SupportsFloat:
        """Share of free-running tokens before the first difference."""

    @property
    def decode_kl(self) -> SupportsFloat:
        """Divergence of the loop from the same model without a cache, nats a token."""

    @property
    def dtype(self) -> str:
        """What the candidate computes in, such as "bfloat16"; empty where that is not known."""

    @property
    def noise_floor(self) -> Compared | None:
        """The reference compared with itself, where that was asked for."""


# Criteria


def _exact(agreement: Compared) -> str | None:
    different = [row for row in agreement.prompts if row.first_divergence is not None]
    if not different:
        return None
    first = min(row.first_divergence or 0 for row in different)
    return (
        f"exact: tokens differ in {len(different)} of {agreement.n_prompts} prompts, "
        f"first at position {first}"
    )


def _containment(agreement: Compared, k: float, horizon: float) -> str | None:
    outside = [row for row in agreement.prompts if not row.contained(int(k), int(horizon))]
    if not outside:
        return None
    row = outside[0]
    return (
        f"containment(k={k:g}, horizon={horizon:g}): in {len(outside)} of "
        f"{agreement.n_prompts} prompts the first different token is outside of the other's "
        f"top {k:g} (prompt {row.index}, position {row.first_divergence})"
    )


def _perplexity(agreement: Compared, limit: float, two_sided: float) -> str | None:
    """Hold the ratio from above, or from both sides.

    With two sides, what four standard errors of so few tokens make is no change; twice the
    perplexity is one on any number of tokens.
    """
    ratio = float(agreement.perplexity_ratio)
    if not two_sided:
        allowed = ratio <= limit
        return None if allowed else f"perplexity({limit:g}): {ratio:.4g}x that of the reference"
    chance = min(_STANDARD_ERRORS * _error_of_log_ratio(agreement), _LARGEST_CHANCE)
    widest = max(math.log(limit), chance)
    if 0 < ratio < math.inf and abs(math.log(ratio)) <= widest:
        return None
    return (
        f"perplexity({limit:g}, two_sided): {ratio:.4g}x that of the reference, "
        f"at most {math.exp(widest):.4g}x either way on so many tokens"
    )


def _error_of_log_ratio(agreement: Compared) -> float:
    """Return the standard error of the mean difference of log-probabilities of all tokens."""
    gaps = [
        reference - candidate
        for row in agreement.prompts
        for reference, candidate in zip(row.reference_logprob, row.candidate_logprob, strict=True)
    ]
    return stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else 0.0


def _kl(agreement: Compared, limit: float) -> str | None:
    measured = float(agreement.kl)
    return None if measured <= limit else f"kl({limit:g}): {measured:.3g} nats"


def _worst_kl(agreement: Compared, limit: float) -> str | None:
    worst = max(agreement.prompts, key=lambda row: row.mean_kl)
    if worst.mean_kl <= limit:
        return None
    return f"worst_kl({limit:g}): {worst.mean_kl:.3g} nats in {_named(worst)}"


def _end(agreement: Compared, limit: float) -> str | None:
    """Hold the end's own probability; of a model that has no end there is nothing to hold."""
    errors = [error for row in agreement.prompts for error in row.end_errors]
    if not errors:
        return None
    measured = math.fsum(errors) / len(errors)
    return None if measured <= limit else f"end({limit:g}): {measured:.3g} nats"


def _prefix(agreement: Compared, least: float) -> str | None:
    measured = float(agreement.prefix_match)
    return None if measured >= least else f"prefix({least:g}): {measured:.3g}"


def _reprefill(agreement: Compared, limit: float) -> str | None:
    measured = float(agreement.decode_kl)
    return None if measured <= limit else f"reprefill({limit:g}): {measured:.3g} nats"


def _dtype_noise(agreement: Compared, margin: float, kl: float, sqnr: float) -> str | None:
    """Hold KL and SQNR against what rounding makes of the reference.

    They may be `margin` times as large, and those of a single prompt `PROMPT_MARGIN` times more.
    Where that was not measured, `kl` and `sqnr` are the limits.
    """
    limit = _noise_limit(agreement, margin) or NoiseLimit(kl, sqnr, "given")
    measured = NoiseLimit(float(agreement.kl), float(agreement.sqnr_db), "")
    worst = max(agreement.prompts, key=lambda row: row.mean_kl)
    if not measured.within(limit):
        where, shown = "", measured
    elif worst.mean_kl > PROMPT_MARGIN * limit.kl:
        where, shown = f" in {_named(worst)}", NoiseLimit(worst.mean_kl, worst.sqnr_db, "")
        limit = NoiseLimit(PROMPT_MARGIN * limit.kl, limit.sqnr_db, limit.source)
    else:
        return None
    return (
        f"dtype_noise(margin={margin:g}): KL {shown.kl:.3g} nats (at most {limit.kl:.3g}), "
        f"SQNR {shown.sqnr_db:.1f} dB (at least {limit.sqnr_db:.1f}){where}; limits {limit.source}"
    )


class NoiseLimit(NamedTuple):
    """A pair of KL in nats a token and SQNR in dB, and where it is from."""

    kl: float
    sqnr_db: float
    source: str

    def within(self, limit: NoiseLimit) -> bool:
        """Whether both are as good as the limit."""
        return self.kl <= limit.kl and self.sqnr_db >= limit.sqnr_db


def _noise_limit(agreement: Compared, margin: float) -> NoiseLimit | None:
    """Return `margin` times what rounding to the candidate's dtype does to the reference.

    None where it was not measured. It was measured in bfloat16.
    """
    first = agreement.prompts[0]
    epsilon = _EPSILON.get(agreement.dtype)
    if first.rounding_noise is None or first.rounding_kl is None or epsilon is None:
        return None
    power = margin * (epsilon / _EPSILON["bfloat16"]) ** 2
    kl = max(power * first.rounding_kl, FINEST_KL_NATS)
    noise = max(power * first.rounding_noise, 10 ** (-FINEST_SQNR_DB / 10))
    source = f"{margin:g} x the noise of {agreement.dtype} on this model"
    return NoiseLimit(kl, -10 * math.log10(noise), source)


def _named(row: PromptComparison) -> str:
    return f"prompt {row.index}" + (f" ({row.part})" if row.part else "")


def _sqnr(agreement: Compared, db: float) -> str | None:
    measured = float(agreement.sqnr_db)
    return None if measured >= db else f"sqnr({db:g}): {measured:.1f} dB"


def _correlation(agreement: Compared, least: float) -> str | None:
    measured = float(agreement.logit_correlation)
    return None if measured >= least else f"correlation({least:g}): {measured:.5g}"


def _logits(agreement: Compared, largest: float) -> str | None:
    error = max(row.max_abs_logit_error for row in agreement.prompts)
    return None if error <= largest else f"logits({largest:g}): the largest error is {error:.3g}"


def _noise_floor(agreement: Compared, margin: float) -> str | None:
    """Hold the noise power, as KL and as SQNR, against that of the reference with itself.

    It may be `margin` times as large.
    """
    floor = _required_noise_floor(agreement)
    kl, kl_limit = float(agreement.kl), margin * max(float(floor.kl), KL_RESOLUTION_NATS)
    floor_db = min(float(floor.sqnr_db), SQNR_RESOLUTION_DB)
    db, db_limit = float(agreement.sqnr_db), floor_db - 10 * math.log10(margin)
    if kl <= kl_limit and db >= db_limit:
        return None
    return (
        f"noise_floor({margin:g}): KL {kl:.3g} nats (at most {kl_limit:.3g}), "
        f"SQNR {db:.1f} dB (at least {db_limit:.1f}); the reference against itself: "
        f"{float(floor.kl):.3g} nats, {float(floor.sqnr_db):.1f} dB"
    )


def _required_noise_floor(agreement: Compared) -> Compared:
    if agreement.noise_floor is None:
        raise UsageError(
            "agreement rule noise_floor needs the reference compared with itself, "
            "and none was given."
        )
    return agreement.noise_floor


class CriterionKind(NamedTuple):
    """A row of the table of criteria: parameters with their defaults, and what breaks it.

    `quantity` is the number of an agreement that its first parameter limits, if there is one.
    """

    parameters: dict[str, float | None]
    broken: Callable[..., str | None]
    quantity: str = ""


CRITERIA: dict[str, CriterionKind] = {
    "exact": CriterionKind({}, _exact),
    "containment": CriterionKind({"k": 5, "horizon": 32}, _containment),
    "perplexity": CriterionKind({"limit": None, "two_sided": 0}, _perplexity, "perplexity_ratio"),
    "sqnr": CriterionKind({"db": None}, _sqnr, "sqnr_db"),
    "correlation": CriterionKind({"least": None}, _correlation, "logit_correlation"),
    "logits": CriterionKind({"abs": None}, _logits),
    "noise_floor": CriterionKind({"margin": None}, _noise_floor),
    "kl": CriterionKind({"limit": None}, _kl, "kl"),
    "worst_kl": CriterionKind({"limit": None}, _worst_kl),
    "end": CriterionKind({"limit": None}, _end, "end_mae"),
    "prefix": CriterionKind({"least": None}, _prefix, "prefix_match"),
    "reprefill": CriterionKind({"limit": None}, _reprefill),
    "dtype_noise": CriterionKind({"margin": None, "kl": 0.003, "sqnr": 30}, _dtype_noise),
}

NEEDS_LOGITS = frozenset(
    {"sqnr", "correlation", "logits", "noise_floor", "kl", "worst_kl", "end", "dtype_noise"}
)
"""Criteria that need the logits of all tokens.

They never hold where an engine gives log-probabilities of some alone.
"""
WHOLE_NUMBERS = frozenset({"k", "horizon"})
FLAGS = frozenset({"two_sided"})
"""Parameters that are named or left out."""
