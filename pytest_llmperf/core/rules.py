"""Agreement rules as data: criteria that must all hold, their text form, and the default for each kind of variant."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from pytest_llmperf.core.agreement import Agreement

KIND_OPTION = "agreement"
"""The load-plan option by which a strategy part names its kind of variant (a key of DEFAULT_RULES)."""

KL_RESOLUTION = 1e-9  # nats; rounding of fp32 logits alone gives as much
SQNR_RESOLUTION_DB = 120.0  # fp32 logits are not closer to each other than that

DEFAULT_RULES = {
    "same": "exact",
    "fp32": "containment(k=5, horizon=32)+perplexity(1.01)+sqnr(40)",
    "fp16": "containment(k=5, horizon=32)+perplexity(1.01)+sqnr(40)",
    "bf16": "containment(k=5, horizon=32)+perplexity(1.01)+sqnr(20)",
    "parallel": "containment(k=5, horizon=32)+perplexity(1.01)",
    "8-bit": "containment(k=8, horizon=4)+perplexity(1.03)+sqnr(20)",
    "4-bit": "",
    "pruned": "",
    "adapter-merged-fp32": "logits(0.001)",
    "adapter-merged": "containment(k=5, horizon=32)",
}
"""Kind of variant -> rule (docs: how a number is made). "" has no default: its limits are the test's own budget."""

_DTYPE_KINDS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_COARSEST_LAST = ("fp32", "fp16", "bf16")


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
            return (f"logits are not finite in {len(agreement.not_finite)} of {agreement.n_prompts} prompts",)
        found = (_CRITERIA[c.name].broken(agreement, *c.values) for c in self.criteria)
        return tuple(reason for reason in found if reason is not None)


class _Kind(NamedTuple):
    parameters: dict[str, float | None]
    broken: Callable[..., str | None]


def parse_rule(text: str) -> Rule:
    """The rule of a text such as 'containment(k=5, horizon=32)+perplexity(1.01)'.

    Raises:
        UsageError: an unknown or repeated criterion, or a number that is missing, unknown, or not positive.
    """
    criteria = tuple(_criterion(part.strip(), text) for part in text.split("+"))
    names = [criterion.name for criterion in criteria]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"agreement rule {text!r} holds {twice!r} twice. Give each criterion once.")
    return Rule(criteria)


def default_rule(candidate: LoadPlan, reference: LoadPlan) -> Rule:
    """The rule of the candidate's kind of variant (DEFAULT_RULES), as far as the plans tell."""
    kind = kind_of(candidate, reference)
    text = DEFAULT_RULES[kind]
    return Rule(parse_rule(text).criteria if text else (), kind)


def kind_of(candidate: LoadPlan, reference: LoadPlan) -> str:
    """A key of DEFAULT_RULES.

    Autocast counts by the dtype it computes in. A dtype that the plan leaves to the checkpoint ("auto") may be any, and
    takes the rule of the coarsest. Two dtypes take the rule of the coarser. Raises UsageError for an unknown kind option.
    """
    if candidate == reference:
        return "same"
    named = candidate.option(KIND_OPTION)
    if named is not None:
        if named not in DEFAULT_RULES:
            raise UsageError(f"kind of variant {named!r} has no row in DEFAULT_RULES. Kinds: {', '.join(DEFAULT_RULES)}.")
        return str(named)
    kinds = [_DTYPE_KINDS.get(_compute_dtype(plan), "bf16") for plan in (candidate, reference)]
    if candidate.ranks != reference.ranks and kinds[0] == kinds[1]:
        return "parallel"
    return max(kinds, key=_COARSEST_LAST.index)


def _compute_dtype(plan: LoadPlan) -> str:
    return plan.autocast_dtype or plan.weights_dtype


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


def _logits(agreement: Agreement, largest: float) -> str | None:
    error = max(row.max_abs_logit_error for row in agreement.prompts)
    return None if error <= largest else f"logits({largest:g}): the largest error is {error:.3g}"


def _noise_floor(agreement: Agreement, margin: float) -> str | None:
    """Noise power, as KL and as SQNR, at most `margin` times that of the reference against itself."""
    floor = agreement.noise_floor
    if floor is None:
        raise UsageError("agreement rule noise_floor needs the reference compared with itself, and none was given.")
    kl, kl_limit = float(agreement.kl), margin * max(float(floor.kl), KL_RESOLUTION)
    db, db_limit = float(agreement.sqnr_db), min(float(floor.sqnr_db), SQNR_RESOLUTION_DB) - 10 * math.log10(margin)
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
    "logits": _Kind({"abs": None}, _logits),
    "noise_floor": _Kind({"margin": None}, _noise_floor),
}


# The text form


def _criterion(part: str, text: str) -> Criterion:
    match = re.fullmatch(r"(\w+)\s*(?:\((.*)\))?", part)
    name = match.group(1) if match else part
    if match is None or name not in _CRITERIA:
        raise UsageError(
            f"agreement rule {text!r}: criterion {part!r} is not known.{did_you_mean(name, _CRITERIA)} "
            f"Criteria: {', '.join(map(_signature, _CRITERIA))}; join several with '+'."
        )
    given = _arguments(name, [a.strip() for a in (match.group(2) or "").split(",") if a.strip()], text)
    return Criterion(
        name, tuple(_number(name, key, given.get(key, default), text) for key, default in _CRITERIA[name].parameters.items())
    )


def _arguments(name: str, arguments: list[str], text: str) -> dict[str, str]:
    """Numbers by parameter name: positional ones first, then named ones."""
    parameters = list(_CRITERIA[name].parameters)
    given: dict[str, str] = {}
    for i, argument in enumerate(arguments):
        key, equals, value = argument.partition("=")
        key = key.strip() if equals else (parameters[i] if i < len(parameters) else argument)
        if key not in parameters or key in given:
            raise UsageError(f"agreement rule {text!r}: {name} does not take {argument!r}. It reads {_signature(name)}.")
        given[key] = value if equals else argument
    return given


def _number(name: str, key: str, value: str | float | None, text: str) -> float:
    try:
        number = float(value) if value is not None else math.nan
    except ValueError:
        number = math.nan
    whole = key not in ("k", "horizon") or number == math.trunc(number) if math.isfinite(number) else False
    if not whole or number <= 0:
        kind = "a whole number of at least 1" if key in ("k", "horizon") else "a positive number"
        shown = "missing" if value is None else repr(value)
        raise UsageError(f"agreement rule {text!r}: {key} of {name} is {shown}, {kind} is needed. It reads {_signature(name)}.")
    return number


def _signature(name: str) -> str:
    parameters = _CRITERIA[name].parameters
    inside = ", ".join(key if default is None else f"{key}={default:g}" for key, default in parameters.items())
    return f"{name}({inside})" if inside else name
