"""The grammar of strategies: `part+part:argument+…`, in any order, to a value that fills in a load plan. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol, cast

from msgspec import structs

from pytest_llmperf.core.effective import Effective, Promise
from pytest_llmperf.core.plan import ANY, LoadPlan
from pytest_llmperf.errors import NotInEffect, UsageError, did_you_mean
from pytest_llmperf.strategies.base import Part
from pytest_llmperf.strategies.table import AUTO, KINDS, TABLE


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
        plain = self.argument is None or self.fields == self.part.fields
        return (
            self.part.name
            if plain
            else f"{self.part.name}{'' if self.part.numbered else ':'}{self.argument}"
        )


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
        """`plan` with the fields of all parts set, and its `strategy`."""
        fields: dict[str, object] = {}
        for chosen in self._in_force():
            for name, value in chosen.fields.items():
                joined = name in chosen.part.joins and name in fields
                fields[name] = (
                    (*cast("tuple[object, ...]", fields[name]), *cast("tuple[object, ...]", value))
                    if joined
                    else value
                )
        made = structs.replace(plan, strategy=self.canonical, **fields)
        return structs.replace(made, ranks=made.spread) if made.spread > 1 else made

    def promises(self, plan: LoadPlan) -> tuple[Promise, ...]:
        """What must be in effect once `plan` (the result of `apply`) is loaded and warm."""
        return tuple(
            promise for chosen in self._in_force() for promise in chosen.part.promises(plan)
        )

    def _in_force(self) -> tuple[ChosenPart, ...]:
        named = any(chosen.part.kind == AUTO.kind for chosen in self.parts)
        return self.parts if named else (ChosenPart(AUTO), *self.parts)


class PlanCapabilities(Protocol):
    """The part of an engine's capabilities that a load plan is checked against (`engines.base.Capabilities`)."""

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
    """The strategy that a text, a list of parts or a strategy means.

    Raises UsageError for what cannot be used.
    """
    if isinstance(value, Strategy):
        return value
    pieces = value.split("+") if isinstance(value, str) else list(value)
    text = value if isinstance(value, str) else "+".join(map(_text, pieces))
    chosen = [_choose(piece, text) for piece in pieces]
    _refuse_conflicts(chosen, text)
    kept = [c for c in chosen if c.part is not AUTO]
    return Strategy(tuple(sorted(kept, key=_place)))


def check_engine_can(plan: LoadPlan, capabilities: PlanCapabilities, engine: str) -> None:
    """Raise UsageError if `engine` cannot honour a field of `plan`; names the part that set it."""
    kind = plan.device.partition(":")[0]
    if kind not in capabilities.devices:
        raise UsageError(
            f"engine {engine!r} does not run on device {plan.device!r}. Devices: {_listed(capabilities.devices)}."
        )
    if capabilities.max_ranks is not None and plan.ranks > capabilities.max_ranks:
        raise UsageError(
            f"engine {engine!r} takes at most {capabilities.max_ranks} rank(s), {plan.ranks} were asked for."
        )
    for chosen in parse(plan.strategy).parts:
        for field in chosen.fields:
            _require_value(plan, field, chosen, capabilities, engine)
    reason = capabilities.refusal(plan)
    if reason is not None:
        raise UsageError(
            f"engine {engine!r} cannot load strategy {plan.strategy!r} on {plan.device!r}: {reason}"
        )


def require_in_effect(effective: Effective, promises: Iterable[Promise], when: str) -> None:
    """Raise NotInEffect with every broken promise that is due: those of "loaded", and for "warm" all of them."""
    due = [promise for promise in promises if when in (promise.when, "warm")]
    found = [(promise.part, promise.broken(effective)) for promise in due]
    broken = {
        part: [r for p, r in found if p == part and r is not None]
        for part, reason in found
        if reason is not None
    }
    if broken:
        said = {part: "; ".join(dict.fromkeys(reasons)) for part, reasons in broken.items()}
        raise NotInEffect(
            " ".join(f"strategy {part!r} is not in effect: {text}." for part, text in said.items())
        )


def _require_value(
    plan: LoadPlan, field: str, chosen: ChosenPart, capabilities: PlanCapabilities, engine: str
) -> None:
    default = next(f.default for f in structs.fields(LoadPlan) if f.name == field)
    honoured = capabilities.plan_fields.get(field, frozenset({default}))
    asked = getattr(plan, field)
    if honoured is not ANY and asked not in honoured:
        raise UsageError(
            f"strategy part {chosen.text!r} cannot be honoured by engine {engine!r}: it asks for {field} = {asked!r}. "
            f"Engine {engine!r} takes {field}: {_listed(honoured)}. Leave the part out or choose another engine.",
        )


def _place(chosen: ChosenPart) -> tuple[int, str]:
    """Where a part stands in the canonical text: parts that join (several adapters) stay in the order they were named."""
    return KINDS.index(chosen.part.kind), "" if chosen.part.joins else chosen.text


def _text(piece: object) -> str:
    if isinstance(piece, str):
        return piece
    if isinstance(piece, Part):
        return piece.name
    if isinstance(piece, ChosenPart):
        return piece.text
    raise UsageError(
        f"strategy part {piece!r} is a {type(piece).__name__}; a text like 'bf16' or a Part is needed."
    )


def _choose(piece: str | Part | ChosenPart, text: str) -> ChosenPart:
    if isinstance(piece, ChosenPart):
        return piece
    if isinstance(piece, Part):
        return ChosenPart(piece)
    name, colon, argument = _pieces(piece.strip())
    if not name:
        raise UsageError(
            f"strategy {text!r} has an empty part. Parts are joined by '+', like 'bf16+static-cache'. {_by_kind()}"
        )
    if name not in TABLE:
        raise UsageError(_unknown(name, text))
    part = TABLE[name]
    if colon:
        _check_argument(part, argument)
    elif part.argument is not None and not part.fields:
        raise UsageError(
            f"strategy part {name!r} needs an argument, for example {ChosenPart(part, part.example).text!r}."
        )
    return ChosenPart(part, argument if colon else None)


def _pieces(text: str) -> tuple[str, str, str]:
    """Name, colon and argument; the number behind the name of a numbered part is its argument."""
    name, colon, argument = text.partition(":")
    bare = name.rstrip("0123456789")
    part = TABLE.get(bare)
    if part is None or not part.numbered:
        return name, colon, argument
    if colon:
        raise UsageError(
            f"strategy part {text!r}: the number of devices follows the name, for example {bare + part.example!r}."
        )
    return bare, name[len(bare) :], name[len(bare) :]


def _check_argument(part: Part, argument: str) -> None:
    if part.argument is not None:
        part.argument(argument)
        return
    if part.arguments is None:
        raise UsageError(
            f"strategy part {part.name!r} takes no argument, {argument!r} was given. Write {part.name!r}."
        )
    if argument not in part.arguments:
        near = did_you_mean(argument, part.arguments)
        raise UsageError(
            f"strategy part {part.name!r}: argument {argument!r} is not known.{near} Arguments: {', '.join(part.arguments)}.",
        )


def _unknown(name: str, text: str) -> str:
    where = "" if name == text else f" in {text!r}"
    return f"strategy part {name!r}{where} is not known.{did_you_mean(name.lower(), TABLE)} {_by_kind()}"


def _by_kind() -> str:
    lists = (
        f"{kind}: {', '.join(p.name for p in TABLE.values() if p.kind == kind)}" for kind in KINDS
    )
    return f"Parts by kind: {'; '.join(lists)}. 'llmperf doctor' lists what works on this machine."


def _refuse_conflicts(chosen: list[ChosenPart], text: str) -> None:
    for one, other in combinations(chosen, 2):
        shared = sorted(
            one.fields.keys() & other.fields.keys() - (one.part.joins & other.part.joins)
        )
        if shared:
            raise UsageError(
                f"strategy {text!r}: parts {one.text!r} and {other.text!r} both set {', '.join(shared)}. Keep one of them.",
            )


def _listed(values: Iterable[object]) -> str:
    return ", ".join(sorted(str(value) for value in values))
