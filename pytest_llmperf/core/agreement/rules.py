"""Agreement rules as data: criteria that must all hold, and their text form.

Which one a variant gets is in `core.agreement.kinds`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, SupportsFloat

from msgspec import Struct

from pytest_llmperf.core.agreement.comparison import PromptComparison
from pytest_llmperf.core.agreement.kinds import DEFAULT_RULES, KINDS, kind_of
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.verdicts.estimate import Estimate
from pytest_llmperf.errors import UsageError, did_you_mean

KL_RESOLUTION_NATS = 1e-9
"""The rounding of fp32 logits alone gives as much."""
SQNR_RESOLUTION_DB = 120.0
"""Logits in fp32 are not closer to each other than that."""


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
    def noise_floor(self) -> Compared | None:
        """The reference compared with itself, where that was asked for."""


class Criterion(Struct, frozen=True):
    """One criterion: a row of the table, and its numbers in the row's order."""

    name: str
    values: tuple[float, ...] = ()

    def __str__(self) -> str:
        if not self.values:
            return self.name
        if len(self.values) == 1:
            return f"{self.name}({self.values[0]:g})"
        parameters = zip(_CRITERIA[self.name].parameters, self.values, strict=True)
        return f"{self.name}({', '.join(f'{key}={value:g}' for key, value in parameters)})"

    def broken(self, agreement: Compared) -> str | None:
        """Say why the criterion does not hold; None where it does."""
        return _CRITERIA[self.name].broken(agreement, *self.values)

    def measured(self, agreement: Compared) -> MeasuredCriterion | None:
        """Return what the criterion limits, with its interval; None where it has none."""
        quantity = _CRITERIA[self.name].quantity
        estimate = getattr(agreement, quantity) if quantity else None
        return MeasuredCriterion(self, estimate) if isinstance(estimate, Estimate) else None


class MeasuredCriterion(NamedTuple):
    """A criterion with one limit, and the estimate that it limits."""

    criterion: Criterion
    estimate: Estimate

    @property
    def is_open(self) -> bool:
        """Whether the interval holds the limit."""
        (limit,) = self.criterion.values
        return self.estimate.low < limit < self.estimate.high


class Rule(Struct, frozen=True):
    """Criteria that must all hold. Without any, nothing can be judged: see `Agreement.ok`."""

    criteria: tuple[Criterion, ...] = ()
    kind: str = ""

    def __str__(self) -> str:
        return "+".join(map(str, self.criteria)) or "none"

    @property
    def needs_noise_floor(self) -> bool:
        """Whether the reference has to be compared with itself."""
        return any(criterion.name == "noise_floor" for criterion in self.criteria)

    def reasons(self, agreement: Compared) -> tuple[str, ...]:
        """Say why the rule does not hold; empty when it does.

        Logits that are not finite never hold.
        """
        if agreement.not_finite:
            n_bad, n_prompts = len(agreement.not_finite), agreement.n_prompts
            return (f"logits are not finite in {n_bad} of {n_prompts} prompts",)
        if agreement.partial:
            silent = self._of_missing_logits(agreement.partial)
            if silent:
                return silent
        reasons = (criterion.broken(agreement) for criterion in self.criteria)
        return tuple(reason for reason in reasons if reason is not None)

    def measured(self, agreement: Compared) -> tuple[MeasuredCriterion, ...]:
        """Return what the criteria limit, where that has an interval."""
        measured = (criterion.measured(agreement) for criterion in self.criteria)
        return tuple(row for row in measured if row is not None)

    def _of_missing_logits(self, partial: str) -> tuple[str, ...]:
        """Name the criteria that cannot be measured without the logits of all tokens."""
        return tuple(
            f"{criterion}: not measurable: {partial}"
            for criterion in self.criteria
            if criterion.name in _NEEDS_LOGITS
        )

    @property
    def missing(self) -> str:
        """What a test has to give where there is nothing to hold."""
        kind = KINDS.get(self.kind)
        if kind is None:
            return _budget_text("the agreement rule is empty", KINDS["4-bit"].give)
        return _budget_text(
            f"a variant of kind {self.kind!r} has no default agreement rule", kind.give
        )


def _budget_text(problem: str, give: str) -> str:
    return f"{problem}: its loss is a budget of yours. {give}"


class _CriterionKind(NamedTuple):
    """A row of the table of criteria: parameters with their defaults, and what breaks it.

    `quantity` is the number of an agreement that its one parameter limits, if there is one.
    """

    parameters: dict[str, float | None]
    broken: Callable[..., str | None]
    quantity: str = ""


def parse_rule(text: str) -> Rule:
    """Read the rule of a text such as 'containment(k=5, horizon=32)+perplexity(1.01)'.

    Raises:
        UsageError: an unknown or repeated criterion, or a number that is missing, unknown, or not
            positive.
    """
    criteria = tuple(_criterion(part.strip(), text) for part in text.split("+"))
    counts = Counter(criterion.name for criterion in criteria)
    for name, count in counts.items():
        if count > 1:
            raise UsageError(
                f"agreement rule {text!r} holds {name!r} twice. Give each criterion once."
            )
    return Rule(criteria)


def default_rule(candidate: LoadPlan, reference: LoadPlan) -> Rule:
    """Return the rule of the candidate's kind of variant, as far as the plans tell it."""
    kind = kind_of(candidate, reference)
    text = DEFAULT_RULES[kind]
    return Rule(parse_rule(text).criteria if text else (), kind)


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


def _perplexity(agreement: Compared, limit: float) -> str | None:
    ratio = float(agreement.perplexity_ratio)
    return None if ratio <= limit else f"perplexity({limit:g}): {ratio:.4g}x that of the reference"


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


_CRITERIA: dict[str, _CriterionKind] = {
    "exact": _CriterionKind({}, _exact),
    "containment": _CriterionKind({"k": 5, "horizon": 32}, _containment),
    "perplexity": _CriterionKind({"limit": None}, _perplexity, "perplexity_ratio"),
    "sqnr": _CriterionKind({"db": None}, _sqnr, "sqnr_db"),
    "correlation": _CriterionKind({"least": None}, _correlation, "logit_correlation"),
    "logits": _CriterionKind({"abs": None}, _logits),
    "noise_floor": _CriterionKind({"margin": None}, _noise_floor),
}

_NEEDS_LOGITS = frozenset({"sqnr", "correlation", "logits", "noise_floor"})
"""Criteria that need the logits of all tokens.

They never hold where an engine gives log-probabilities of some alone.
"""
_WHOLE_NUMBERS = frozenset({"k", "horizon"})


# The text form


def _criterion(part: str, text: str) -> Criterion:
    match = re.fullmatch(r"(\w+)\s*(?:\((.*)\))?", part)
    name = match.group(1) if match else part
    if match is None or name not in _CRITERIA:
        all_criteria = f"Criteria: {', '.join(map(_signature, _CRITERIA))}; join several with '+'."
        near = did_you_mean(name, _CRITERIA, otherwise=all_criteria)
        raise UsageError(f"agreement rule {text!r}: criterion {part!r} is not known.{near}")
    arguments = _arguments(name, _parts(match.group(2) or ""), text)
    return Criterion(name, _values(name, arguments, text))


def _parts(inside: str) -> list[str]:
    return [part.strip() for part in inside.split(",") if part.strip()]


def _values(name: str, arguments: dict[str, str], text: str) -> tuple[float, ...]:
    """Return the numbers in the order of the criterion's parameters."""
    return tuple(
        _number(name, key, arguments.get(key, default), text)
        for key, default in _CRITERIA[name].parameters.items()
    )


def _arguments(name: str, parts: list[str], text: str) -> dict[str, str]:
    """Return the numbers by parameter name: positional ones first, then named ones."""
    parameters = list(_CRITERIA[name].parameters)
    arguments: dict[str, str] = {}
    for position, part in enumerate(parts):
        key, value = _named_argument(part, parameters[position : position + 1])
        if key not in parameters or key in arguments:
            raise UsageError(
                f"agreement rule {text!r}: {name} does not take {part!r}. "
                f"It reads {_signature(name)}."
            )
        arguments[key] = value
    return arguments


def _named_argument(part: str, parameter: list[str]) -> tuple[str, str]:
    """Return 'k=5', or the 5 of the parameter at its position, as a name and a number.

    A number beyond the last parameter has its own text for a name, which is none.
    """
    key, equals, value = part.partition("=")
    if equals:
        return key.strip(), value
    return (parameter[0] if parameter else part), part


def _number(name: str, key: str, value: str | float | None, text: str) -> float:
    number = _parsed(value)
    whole = key in _WHOLE_NUMBERS
    if number > 0 and math.isfinite(number) and (not whole or number == math.trunc(number)):
        return number
    needed = "a whole number of at least 1" if whole else "a positive number"
    raise UsageError(
        f"agreement rule {text!r}: {key} of {name} is "
        f"{'missing' if value is None else repr(value)}, {needed} is needed. "
        f"It reads {_signature(name)}."
    )


def _parsed(value: str | float | None) -> float:
    """Return the number; NaN where there is none."""
    try:
        return math.nan if value is None else float(value)
    except ValueError:
        return math.nan


def _signature(name: str) -> str:
    parameters = ", ".join(
        key if default is None else f"{key}={default:g}"
        for key, default in _CRITERIA[name].parameters.items()
    )
    return f"{name}({parameters})" if parameters else name
