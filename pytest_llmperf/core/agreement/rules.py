"""Agreement rules as data: criteria that must all hold, and their text form.

Which one a variant gets is in `core.agreement.kinds`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct

from pytest_llmperf.core.agreement.kinds import DEFAULT_RULES, KINDS, kind_of
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from pytest_llmperf.core.agreement.agreement import Agreement

KL_RESOLUTION = 1e-9  # nats; rounding of fp32 logits alone gives as much
SQNR_RESOLUTION_DB = 120.0  # fp32 logits are not closer to each other than that


class Criterion(Struct, frozen=True):
    """One criterion: a row of the table, and its numbers in the row's order."""

    name: str
    values: tuple[float, ...] = ()

    def __str__(self) -> str:
        names = _CRITERIA[self.name].parameters
        if len(names) < 2:  # noqa: PLR2004 - a single number needs no name
            return f"{self.name}({self.values[0]:g})" if self.values else self.name
        return f"{self.name}({', '.join(f'{n}={v:g}' for n, v in zip(names, self.values, strict=True))})"


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

    def reasons(self, agreement: Agreement) -> tuple[str, ...]:
        """Why the rule does not hold; empty when it does. Logits that are not finite never hold."""
        if agreement.not_finite:
            return (
                f"logits are not finite in {len(agreement.not_finite)} of {agreement.n_prompts} prompts",
            )
        if agreement.partial:
            silent = [
                f"{c}: not measurable: {agreement.partial}"
                for c in self.criteria
                if c.name in _OF_LOGITS
            ]
            if silent:
                return tuple(silent)
        found = (_CRITERIA[c.name].broken(agreement, *c.values) for c in self.criteria)
        return tuple(reason for reason in found if reason is not None)

    @property
    def missing(self) -> str:
        """What a test has to give where there is nothing to hold."""
        what = (
            f"a variant of kind {self.kind!r} has no default agreement rule"
            if self.kind in KINDS
            else "the agreement rule is empty"
        )
        give = KINDS[self.kind].give if self.kind in KINDS else KINDS["4-bit"].give
        return f"{what}: its loss is a budget of yours. {give}"


class _Kind(NamedTuple):
    parameters: dict[str, float | None]
    broken: Callable[..., str | None]


def parse_rule(text: str) -> Rule:
    """The rule of a text such as 'containment(k=5, horizon=32)+perplexity(1.01)'.

    Raises:
        UsageError: an unknown or repeated criterion, or a number that is missing, unknown, or not
            positive.
    """
    criteria = tuple(_criterion(part.strip(), text) for part in text.split("+"))
    names = [criterion.name for criterion in criteria]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(
            f"agreement rule {text!r} holds {twice!r} twice. Give each criterion once."
        )
    return Rule(criteria)


def default_rule(candidate: LoadPlan, reference: LoadPlan) -> Rule:
    """The rule of the candidate's kind of variant (`core.agreement.kinds`), as far as the plans tell."""
    kind = kind_of(candidate, reference)
    text = DEFAULT_RULES[kind]
    return Rule(parse_rule(text).criteria if text else (), kind)


# Criteria


def _exact(agreement: Agreement) -> str | None:
    different = [row for row in agreement.prompts if row.first_divergence is not None]
    if not different:
        return None
    first = min(row.first_divergence or 0 for row in different)
    return f"exact: tokens differ in {len(different)} of {agreement.n_prompts} prompts, first at position {first}"


def _containment(agreement: Agreement, k: float, horizon: float) -> str | None:
    outside = [row for row in agreement.prompts if not row.contained(int(k), int(horizon))]
    if not outside:
        return None
    row = outside[0]
    return (
        f"containment(k={k:g}, horizon={horizon:g}): in {len(outside)} of {agreement.n_prompts} prompts the first different "
        f"token is outside of the other's top {k:g} (prompt {row.index}, position {row.first_divergence})"
    )


def _perplexity(agreement: Agreement, limit: float) -> str | None:
    ratio = float(agreement.perplexity_ratio)
    return None if ratio <= limit else f"perplexity({limit:g}): {ratio:.4g}x that of the reference"


def _sqnr(agreement: Agreement, db: float) -> str | None:
    measured = float(agreement.sqnr_db)
    return None if measured >= db else f"sqnr({db:g}): {measured:.1f} dB"


def _correlation(agreement: Agreement, least: float) -> str | None:
    measured = float(agreement.logit_correlation)
    return None if measured >= least else f"correlation({least:g}): {measured:.5g}"


def _logits(agreement: Agreement, largest: float) -> str | None:
    error = max(row.max_abs_logit_error for row in agreement.prompts)
    return None if error <= largest else f"logits({largest:g}): the largest error is {error:.3g}"


def _noise_floor(agreement: Agreement, margin: float) -> str | None:
    """Noise power, as KL and as SQNR, at most `margin` times that of the reference against itself."""
    floor = agreement.noise_floor
    if floor is None:
        raise UsageError(
            "agreement rule noise_floor needs the reference compared with itself, and none was given."
        )
    kl, kl_limit = float(agreement.kl), margin * max(float(floor.kl), KL_RESOLUTION)
    db, db_limit = (
        float(agreement.sqnr_db),
        min(float(floor.sqnr_db), SQNR_RESOLUTION_DB) - 10 * math.log10(margin),
    )
    if kl <= kl_limit and db >= db_limit:
        return None
    return (
        f"noise_floor({margin:g}): KL {kl:.3g} nats (at most {kl_limit:.3g}), SQNR {db:.1f} dB (at least {db_limit:.1f}); "
        f"the reference against itself: {float(floor.kl):.3g} nats, {float(floor.sqnr_db):.1f} dB"
    )


_CRITERIA: dict[str, _Kind] = {
    "exact": _Kind({}, _exact),
    "containment": _Kind({"k": 5, "horizon": 32}, _containment),
    "perplexity": _Kind({"limit": None}, _perplexity),
    "sqnr": _Kind({"db": None}, _sqnr),
    "correlation": _Kind({"least": None}, _correlation),
    "logits": _Kind({"abs": None}, _logits),
    "noise_floor": _Kind({"margin": None}, _noise_floor),
}

_OF_LOGITS = ("sqnr", "correlation", "logits", "noise_floor")
"""Criteria that need the logits of all tokens: they never hold where an engine gives log-probabilities of some alone."""


# The text form


def _criterion(part: str, text: str) -> Criterion:
    match = re.fullmatch(r"(\w+)\s*(?:\((.*)\))?", part)
    name = match.group(1) if match else part
    if match is None or name not in _CRITERIA:
        raise UsageError(
            f"agreement rule {text!r}: criterion {part!r} is not known.{did_you_mean(name, _CRITERIA)} "
            f"Criteria: {', '.join(map(_signature, _CRITERIA))}; join several with '+'.",
        )
    given = _arguments(
        name, [a.strip() for a in (match.group(2) or "").split(",") if a.strip()], text
    )
    return Criterion(
        name,
        tuple(
            _number(name, key, given.get(key, default), text)
            for key, default in _CRITERIA[name].parameters.items()
        ),
    )


def _arguments(name: str, arguments: list[str], text: str) -> dict[str, str]:
    """Numbers by parameter name: positional ones first, then named ones."""
    parameters = list(_CRITERIA[name].parameters)
    given: dict[str, str] = {}
    for i, argument in enumerate(arguments):
        key, equals, value = argument.partition("=")
        key = key.strip() if equals else (parameters[i] if i < len(parameters) else argument)
        if key not in parameters or key in given:
            raise UsageError(
                f"agreement rule {text!r}: {name} does not take {argument!r}. It reads {_signature(name)}."
            )
        given[key] = value if equals else argument
    return given


def _number(name: str, key: str, value: str | float | None, text: str) -> float:
    try:
        number = float(value) if value is not None else math.nan
    except ValueError:
        number = math.nan
    whole = (
        key not in ("k", "horizon") or number == math.trunc(number)
        if math.isfinite(number)
        else False
    )
    if not whole or number <= 0:
        kind = "a whole number of at least 1" if key in ("k", "horizon") else "a positive number"
        shown = "missing" if value is None else repr(value)
        raise UsageError(
            f"agreement rule {text!r}: {key} of {name} is {shown}, {kind} is needed. It reads {_signature(name)}."
        )
    return number


def _signature(name: str) -> str:
    parameters = _CRITERIA[name].parameters
    inside = ", ".join(
        key if default is None else f"{key}={default:g}" for key, default in parameters.items()
    )
    return f"{name}({inside})" if inside else name
