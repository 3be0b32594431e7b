"""Which strategy to take. Pure.

That is the Pareto front of speed, memory and quality, and the fastest that meets some limits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from msgspec import Struct

from pytest_llmperf.errors import UsageError


class Axis(NamedTuple):
    """What strategies are compared in, with a unit of `core.format`."""

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
"""What strategies are compared in.

Speed is output tokens a second (of a prefill: prompt tokens), memory is peak bytes, top1 is the
share of positions with the reference's first choice, perplexity is over the reference's, and ttft
is the median time to the first token.
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

    What `readings` lacks was not measured; `reasons` may say why (axis -> reason).
    """

    name: str
    readings: dict[str, Reading]
    reasons: dict[str, str] = {}


class Dominated(Struct, frozen=True, kw_only=True):
    """A strategy that others of the front beat.

    They are at least as good in everything, and better in something.
    """

    name: str
    by: tuple[str, ...]


class Incomplete(Struct, frozen=True, kw_only=True):
    """A strategy that was not compared, and what it lacks (axis -> reason)."""

    name: str
    lacks: dict[str, str]


class Advice(Struct, frozen=True, kw_only=True):
    """What follows from the readings.

    `front` and `fits` begin with the fastest. `fastest` meets the limits by its values; `certain`
    is the fastest that meets them with the whole of its intervals, too. `axes` are those that were
    compared; `left_out` are those that nobody measured and no limit asked for.
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
        (choice for choice in choices if _is_complete(choice, axes)),
        key=lambda choice: _rank(choice, axes),
    )
    front = [choice for choice in complete if not _dominating(choice, complete, axes)]
    fits = [choice.name for choice in complete if _meets_all(choice, limits)]
    certain = [choice.name for choice in complete if _surely_meets_all(choice, limits)]
    return Advice(
        axes=axes,
        left_out=left_out,
        front=tuple(choice.name for choice in front),
        dominated=_dominated(complete, front, axes),
        incomplete=_incomplete(choices, axes),
        fits=tuple(fits),
        fastest=next(iter(fits), None),
        certain=next(iter(certain), None),
    )


def _is_complete(choice: Choice, axes: Sequence[str]) -> bool:
    return choice.readings.keys() >= set(axes)


def _dominating(choice: Choice, others: Sequence[Choice], axes: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the others that dominate a choice."""
    return tuple(other.name for other in others if dominates(other, choice, axes))


def _dominated(
    choices: Sequence[Choice], front: Sequence[Choice], axes: Sequence[str]
) -> tuple[Dominated, ...]:
    return tuple(
        Dominated(name=choice.name, by=_dominating(choice, front, axes))
        for choice in choices
        if choice not in front
    )


def dominates(a: Choice, b: Choice, axes: Sequence[str]) -> bool:
    """Whether `a` is at least as good as `b` on every axis, and better on one."""
    values = [(AXES[axis], a.readings[axis].value, b.readings[axis].value) for axis in axes]
    never_worse = all(axis.at_least_as_good(x, y) for axis, x, y in values)
    return never_worse and any(x != y for _, x, y in values)


def _axes(
    choices: Sequence[Choice], limits: Mapping[str, float]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the axes to compare, and those that nobody measured and no limit asks for."""
    quality = "perplexity" if "perplexity" in limits and "top1" not in limits else "top1"
    axes = [name for name in AXES if name in ("speed", "memory", quality) or name in limits]
    measured = any(quality in choice.readings for choice in choices)
    if measured or quality in limits:
        return tuple(axes), ()
    return tuple(name for name in axes if name != quality), (quality,)


def _rank(choice: Choice, axes: Sequence[str]) -> tuple[float | str, ...]:
    """Order the fastest first, then by the other axes in order.

    Of equally fast ones, the first is dominated by none of them.
    """
    values = (_signed(axis, choice.readings[axis].value) for axis in axes)
    return (*values, choice.name)


def _signed(axis: str, value: float) -> float:
    """Return the value with the sign that makes less the better."""
    return -value if AXES[axis].direction == "higher" else value


def _meets_all(choice: Choice, limits: Mapping[str, float]) -> bool:
    return all(_meets(choice, axis, bound) for axis, bound in limits.items())


def _surely_meets_all(choice: Choice, limits: Mapping[str, float]) -> bool:
    """Whether the values meet all limits, and the whole of their intervals too."""
    surely = all(_surely_meets(choice, axis, bound) for axis, bound in limits.items())
    return surely and _meets_all(choice, limits)


def _meets(choice: Choice, axis: str, bound: float) -> bool:
    return AXES[axis].at_least_as_good(choice.readings[axis].value, bound)


def _surely_meets(choice: Choice, axis: str, bound: float) -> bool:
    reading = choice.readings[axis]
    worst = reading.low if AXES[axis].direction == "higher" else reading.high
    return AXES[axis].at_least_as_good(reading.value if worst is None else worst, bound)


def _incomplete(choices: Sequence[Choice], axes: Sequence[str]) -> tuple[Incomplete, ...]:
    return tuple(
        Incomplete(name=choice.name, lacks=_lacks(choice, axes))
        for choice in choices
        if not _is_complete(choice, axes)
    )


def _lacks(choice: Choice, axes: Sequence[str]) -> dict[str, str]:
    """Return the reason of each axis that a choice lacks."""
    return {
        axis: choice.reasons.get(axis, "not in the history")
        for axis in axes
        if axis not in choice.readings
    }


def _check(choices: Sequence[Choice], limits: Mapping[str, float]) -> None:
    for name in limits:
        if name not in AXES:
            raise UsageError(f"a limit of {name!r} is not known. Limits: {', '.join(AXES)}.")
    counts = Counter(choice.name for choice in choices)
    for name, count in counts.items():
        if count > 1:
            raise UsageError(f"strategy {name!r} is given twice.")
