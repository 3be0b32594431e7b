"""Which strategy to take: the Pareto front of speed, memory and quality, and the fastest that meets some limits. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from msgspec import Struct

from pytest_llmperf.errors import UsageError


class Axis(NamedTuple):
    """What strategies are compared in. `unit` as in `core.format`."""

    name: str
    direction: Literal["higher", "lower"]
    unit: str

    def at_least_as_good(self, a: float, b: float) -> bool:
        """Whether `a` is as good as `b`, or better."""
        return a >= b if self.direction == "higher" else a <= b


AXES: dict[str, Axis] = {
    axis.name: axis
    for axis in (
        Axis("speed", "higher", "tok/s"),
        Axis("memory", "lower", "B"),
        Axis("top1", "higher", "1"),
        Axis("perplexity", "lower", "x"),
        Axis("ttft", "lower", "s"),
    )
}
"""Output (of a prefill: prompt) tokens a second; peak bytes.

Share of positions with the reference's first choice; perplexity over the reference's; median time
to the first token.
"""

QUALITY = ("top1", "perplexity")


class Reading(Struct, frozen=True, kw_only=True):
    """A stored value.

    The ends of its interval are None where it has none; `created` is when it was measured.
    """

    value: float
    low: float | None = None
    high: float | None = None
    created: str = ""


class Choice(Struct, frozen=True, kw_only=True):
    """A strategy as it was measured.

    What `readings` lacks was not; `reasons` may say why (axis -> reason).
    """

    name: str
    readings: dict[str, Reading]
    reasons: dict[str, str] = {}


class Dominated(Struct, frozen=True, kw_only=True):
    """A strategy, and those of the front that are at least as good in everything and better in something."""

    name: str
    by: tuple[str, ...]


class Incomplete(Struct, frozen=True, kw_only=True):
    """A strategy that was not compared, and what it lacks (axis -> reason)."""

    name: str
    lacks: dict[str, str]


class Advice(Struct, frozen=True, kw_only=True):
    """What follows from the readings. `front` and `fits` begin with the fastest.

    `fastest` meets the limits by its values; `certain` is the fastest that meets them with the
    whole of its intervals, too. `axes` are those that were compared; `left_out` are those that
    nobody measured and no limit asked for.
    """

    axes: tuple[str, ...]
    left_out: tuple[str, ...]
    front: tuple[str, ...]
    dominated: tuple[Dominated, ...]
    incomplete: tuple[Incomplete, ...]
    fits: tuple[str, ...]
    fastest: str | None
    certain: str | None


def advise(choices: Sequence[Choice], limits: Mapping[str, float]) -> Advice:
    """Compare the choices that have every axis; nothing is guessed for those that lack one.

    `limits` holds the worst value that is acceptable by axis. Quality is top1 unless only a
    perplexity is limited; each limited axis is compared, too. Ties in everything stand on the front
    together.

    Raises:
        UsageError: a limit of no axis, or two choices of one name.
    """
    _check(choices, limits)
    axes, left_out = _axes(choices, limits)
    complete = sorted(
        (c for c in choices if all(axis in c.readings for axis in axes)),
        key=lambda c: _rank(c, axes),
    )
    front = [c for c in complete if not any(dominates(other, c, axes) for other in complete)]
    fits = [c for c in complete if all(_meets(c, axis, bound) for axis, bound in limits.items())]
    surely = [
        c.name for c in fits if all(_surely(c, axis, bound) for axis, bound in limits.items())
    ]
    return Advice(
        axes=axes,
        left_out=left_out,
        front=tuple(c.name for c in front),
        dominated=tuple(
            Dominated(name=c.name, by=tuple(f.name for f in front if dominates(f, c, axes)))
            for c in complete
            if c not in front
        ),
        incomplete=tuple(_incomplete(c, axes) for c in choices if c not in complete),
        fits=tuple(c.name for c in fits),
        fastest=fits[0].name if fits else None,
        certain=next(iter(surely), None),
    )


def dominates(a: Choice, b: Choice, axes: Sequence[str]) -> bool:
    """Whether `a` is at least as good as `b` on every axis, and better on one."""
    pairs = [(AXES[axis], a.readings[axis].value, b.readings[axis].value) for axis in axes]
    return all(axis.at_least_as_good(x, y) for axis, x, y in pairs) and any(
        x != y for _, x, y in pairs
    )


def _axes(
    choices: Sequence[Choice], limits: Mapping[str, float]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    quality = "perplexity" if "perplexity" in limits and "top1" not in limits else "top1"
    wanted = [name for name in AXES if name in ("speed", "memory", quality) or name in limits]
    kept = [
        name
        for name in wanted
        if name != quality or name in limits or any(name in c.readings for c in choices)
    ]
    return tuple(kept), tuple(name for name in wanted if name not in kept)


def _rank(choice: Choice, axes: Sequence[str]) -> tuple[float | str, ...]:
    """Fastest first, then by the other axes in order: of equally fast ones the first is dominated by none of them."""
    signed = (
        -r.value if AXES[axis].direction == "higher" else r.value
        for axis, r in ((a, choice.readings[a]) for a in axes)
    )
    return (*signed, choice.name)


def _meets(choice: Choice, axis: str, bound: float) -> bool:
    return AXES[axis].at_least_as_good(choice.readings[axis].value, bound)


def _surely(choice: Choice, axis: str, bound: float) -> bool:
    reading = choice.readings[axis]
    worst = reading.low if AXES[axis].direction == "higher" else reading.high
    return AXES[axis].at_least_as_good(reading.value if worst is None else worst, bound)


def _incomplete(choice: Choice, axes: Sequence[str]) -> Incomplete:
    lacks = {
        axis: choice.reasons.get(axis, "not in the history")
        for axis in axes
        if axis not in choice.readings
    }
    return Incomplete(name=choice.name, lacks=lacks)


def _check(choices: Sequence[Choice], limits: Mapping[str, float]) -> None:
    strange = next((name for name in limits if name not in AXES), None)
    if strange is not None:
        raise UsageError(f"a limit of {strange!r} is not known. Limits: {', '.join(AXES)}.")
    names = [choice.name for choice in choices]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"strategy {twice!r} is given twice.")
