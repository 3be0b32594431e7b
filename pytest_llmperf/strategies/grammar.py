"""The grammar of strategies: from `part+part:argument+…`, in any order, to a load plan. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol, cast

from msgspec import structs

from pytest_llmperf.core.effective import Effective, Promise
from pytest_llmperf.core.plan import ANY, LoadPlan
from pytest_llmperf.errors import NotInEffect, UsageError, did_you_mean
from pytest_llmperf.names import STRATEGY_MEANINGS
from pytest_llmperf.strategies.base import Part
from pytest_llmperf.strategies.parallel import RENAMED
from pytest_llmperf.strategies.table import AUTO, KINDS, TABLE

_GGUF_QUANTIZATION = re.compile(r"i?q\d_\w+")


@dataclass(frozen=True)
class ChosenPart:
    """A part as it was asked for, with its argument if it takes one."""

    part: Part
    argument: str | None = None

    def __hash__(self) -> int:
        return hash(self.text)

    @property
    def fields(self) -> Mapping[str, object]:
        """The load-plan fields this part sets."""
        if self.argument is None:
            return self.part.fields
        if self.part.argument is not None:
            return self.part.fields | self.part.argument(self.argument)
        return self.part.fields | (self.part.arguments or {})[self.argument]

    @property
    def text(self) -> str:
        """The canonical text: an argument that changes nothing is left out."""
        if self.argument is None or self.fields == self.part.fields:
            return self.part.name
        colon = "" if self.part.numbered else ":"
        return f"{self.part.name}{colon}{self.argument}"


@dataclass(frozen=True)
class Strategy:
    """Parts that do not conflict, in canonical order.

    Where no precision is named, `auto` is in force.
    """

    parts: tuple[ChosenPart, ...]

    @property
    def canonical(self) -> str:
        """The one text of this strategy; `parse` of it gives an equal strategy."""
        return "+".join(chosen.text for chosen in self.parts) or AUTO.name

    def apply(self, plan: LoadPlan) -> LoadPlan:
        """Return `plan` with the fields of all parts set, and its `strategy`."""
        applied = structs.replace(plan, strategy=self.canonical, **self._fields())
        if applied.spread > 1:
            return structs.replace(applied, ranks=applied.spread)
        return applied

    def _fields(self) -> dict[str, object]:
        """Return the fields of all parts; tuples that join are put together in order."""
        fields: dict[str, object] = {}
        for chosen in self._in_force():
            for name, value in chosen.fields.items():
                if name in chosen.part.joins:
                    before = cast("tuple[object, ...]", fields.get(name, ()))
                    fields[name] = before + cast("tuple[object, ...]", value)
                else:
                    fields[name] = value
        return fields

    def promises(self, plan: LoadPlan) -> tuple[Promise, ...]:
        """Return what must be in effect once `plan` (the result of `apply`) is loaded and warm."""
        return tuple(
            promise for chosen in self._in_force() for promise in chosen.part.promises(plan)
        )

    def _in_force(self) -> tuple[ChosenPart, ...]:
        if any(chosen.part.kind == AUTO.kind for chosen in self.parts):
            return self.parts
        return (ChosenPart(AUTO), *self.parts)


class PlanCapabilities(Protocol):
    """What a load plan is checked against, a part of `engines.base.Capabilities`."""

    @property
    def plan_fields(self) -> Mapping[str, frozenset[object]]:
        """LoadPlan field -> values the engine honours."""

    @property
    def devices(self) -> frozenset[str]:
        """Kinds of device the engine runs on."""

    @property
    def refusal(self) -> Callable[[LoadPlan], str | None]:
        """Why a plan whose fields are all honoured one by one cannot be loaded, or None."""

    @property
    def max_ranks(self) -> int | None:
        """Ranks one loaded model may be spread over; None for no limit."""


def parse(value: str | Strategy | Iterable[str | Part | ChosenPart]) -> Strategy:
    """Return the strategy that a text, a list of parts or a strategy stands for.

    Raises UsageError for what cannot be used.
    """
    if isinstance(value, Strategy):
        return value
    pieces = value.split("+") if isinstance(value, str) else list(value)
    text = value if isinstance(value, str) else "+".join(map(_text, pieces))
    chosen = [_choose(piece, text) for piece in pieces]
    _refuse_conflicts(chosen, text)
    explicit = [piece for piece in chosen if piece.part is not AUTO]
    return Strategy(tuple(sorted(explicit, key=_place)))


def check_engine_can(plan: LoadPlan, capabilities: PlanCapabilities, engine: str) -> None:
    """Raise UsageError if `engine` cannot honour a field of `plan`; names the part that set it."""
    _require_device(plan, capabilities, engine)
    for chosen in parse(plan.strategy).parts:
        for field in chosen.fields:
            _require_value(plan, field, chosen, capabilities, engine)
    reason = capabilities.refusal(plan)
    if reason is not None:
        raise UsageError(
            f"engine {engine!r} cannot load strategy {plan.strategy!r} on {plan.device!r}: {reason}"
        )


def _require_device(plan: LoadPlan, capabilities: PlanCapabilities, engine: str) -> None:
    kind = plan.device.partition(":")[0]
    if kind not in capabilities.devices:
        raise UsageError(
            f"engine {engine!r} does not run on device {plan.device!r}. "
            f"Devices: {_listed(capabilities.devices)}."
        )
    max_ranks = capabilities.max_ranks
    if max_ranks is not None and plan.ranks > max_ranks:
        raise UsageError(
            f"engine {engine!r} takes at most {max_ranks} rank(s), {plan.ranks} were asked for."
        )


def require_in_effect(effective: Effective, promises: Iterable[Promise], when: str) -> None:
    """Raise NotInEffect with every broken promise that is due.

    When "loaded", promises of warm-up are not due yet; when "warm", all are.
    """
    reasons: dict[str, list[str]] = {}
    for promise in promises:
        is_due = when in (promise.when, "warm")
        reason = promise.broken(effective) if is_due else None
        if reason is not None:
            reasons.setdefault(promise.part, []).append(reason)
    if reasons:
        raise NotInEffect(" ".join(map(_not_in_effect, reasons, reasons.values())))


def _not_in_effect(part: str, reasons: Iterable[str]) -> str:
    return f"strategy {part!r} is not in effect: {'; '.join(dict.fromkeys(reasons))}."


def _require_value(
    plan: LoadPlan, field: str, chosen: ChosenPart, capabilities: PlanCapabilities, engine: str
) -> None:
    defaults = {info.name: info.default for info in structs.fields(LoadPlan)}
    honoured = capabilities.plan_fields.get(field, frozenset({defaults[field]}))
    value = getattr(plan, field)
    if honoured is not ANY and value not in honoured:
        raise UsageError(
            f"strategy part {chosen.text!r} cannot be honoured by engine {engine!r}: "
            f"it asks for {field} = {value!r}. "
            f"Engine {engine!r} takes {field}: {_listed(honoured)}. "
            "Leave the part out or choose another engine.",
        )


def _place(chosen: ChosenPart) -> tuple[int, str]:
    """Return where a part stands in the canonical text.

    Parts that join (several adapters) stay in the order in which they were written.
    """
    return KINDS.index(chosen.part.kind), "" if chosen.part.joins else chosen.text


def _text(piece: object) -> str:
    if isinstance(piece, str):
        return piece
    if isinstance(piece, Part):
        return piece.name
    if isinstance(piece, ChosenPart):
        return piece.text
    raise UsageError(
        f"strategy part {piece!r} is a {type(piece).__name__}; "
        "a text like 'bf16' or a Part is needed."
    )


def _choose(piece: str | Part | ChosenPart, text: str) -> ChosenPart:
    if isinstance(piece, ChosenPart):
        return piece
    if isinstance(piece, Part):
        return ChosenPart(piece)
    name, argument = _name_and_argument(piece.strip())
    part = _part(name, text)
    if argument is not None:
        _check_argument(part, argument)
    elif part.argument is not None and not part.fields:
        example = ChosenPart(part, part.example).text
        raise UsageError(f"strategy part {name!r} needs an argument, for example {example!r}.")
    return ChosenPart(part, argument)


def _part(name: str, text: str) -> Part:
    if not name:
        raise UsageError(
            f"strategy {text!r} has an empty part. Parts are joined by '+', "
            f"like 'bf16+static-cache'. {_by_kind()}"
        )
    if name not in TABLE:
        raise UsageError(_unknown(name, text))
    return TABLE[name]


def _name_and_argument(text: str) -> tuple[str, str | None]:
    """Split a part's text; the number behind the name of a numbered part is its argument."""
    name, colon, argument = text.partition(":")
    bare = name.rstrip("0123456789")
    part = TABLE.get(bare)
    if part is None or not part.numbered:
        return name, argument if colon else None
    if colon:
        raise UsageError(
            f"strategy part {text!r}: the number of devices follows the name, "
            f"for example {bare + part.example!r}."
        )
    return bare, name[len(bare) :] or None


def _check_argument(part: Part, argument: str) -> None:
    if part.argument is not None:
        part.argument(argument)
        return
    if part.arguments is None:
        raise UsageError(
            f"strategy part {part.name!r} takes no argument, {argument!r} was given. "
            f"Write {part.name!r}."
        )
    if argument not in part.arguments:
        all_arguments = f"Arguments: {', '.join(part.arguments)}."
        near = did_you_mean(argument, part.arguments, otherwise=all_arguments)
        raise UsageError(f"strategy part {part.name!r}: argument {argument!r} is not known.{near}")


def _unknown(name: str, text: str) -> str:
    whole_text = "" if name == text else f" in {text!r}"
    bare = name.rstrip("0123456789")
    own = RENAMED.get(bare)
    if own is not None:
        near = f" No engine has it in its library; pytest-llmperf's is {own + name[len(bare) :]!r}."
    elif "," in name:
        near = f" Parts are joined by '+': {name.replace(',', '+').replace(' ', '')!r}."
    elif _GGUF_QUANTIZATION.fullmatch(name.lower()):
        near = " A .gguf file is quantized already: name the file as the model."
    else:
        near = did_you_mean(name.lower(), TABLE, STRATEGY_MEANINGS)
    return f"strategy part {name!r}{whole_text} is not known.{near or ' ' + _by_kind()}"


def _by_kind() -> str:
    lists = (
        f"{kind}: {', '.join(p.name for p in TABLE.values() if p.kind == kind)}" for kind in KINDS
    )
    return f"Parts by kind: {'; '.join(lists)}. 'llmperf doctor' lists what works on this machine."


def _refuse_conflicts(chosen: list[ChosenPart], text: str) -> None:
    for first, second in combinations(chosen, 2):
        conflicts = _conflicts(first, second)
        if conflicts:
            raise UsageError(
                f"strategy {text!r}: parts {first.text!r} and {second.text!r} both set "
                f"{', '.join(conflicts)}. Keep one of them.",
            )


def _conflicts(first: ChosenPart, second: ChosenPart) -> list[str]:
    """Return the fields that both parts set, but for those whose values are put together."""
    joined = first.part.joins & second.part.joins
    return sorted(first.fields.keys() & second.fields.keys() - joined)


def _listed(values: Iterable[object]) -> str:
    return ", ".join(sorted(str(value) for value in values))
