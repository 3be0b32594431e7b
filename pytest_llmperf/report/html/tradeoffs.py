"""The Pareto pictures of a group: speed against memory, and speed against agreement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pytest_llmperf.core.format import format_value
from pytest_llmperf.report.html.blocks import Block, Figure, Note
from pytest_llmperf.report.html.groups import MEMORY, TOP1, GroupView, Standing


class _Axis(NamedTuple):
    """How a picture shows what speed is traded for.

    Values are divided by `scale`; the axis is at least `span` long.
    """

    name: str
    noun: str
    label: str
    scale: float
    span: float


_PICTURES = (
    _Axis(MEMORY, "memory", "memory (GB), less to the right", 1e9, 0.05),
    _Axis(TOP1, "agreement", "top-1 agreement (%)", 0.01, 1.0),
)


def figures(group: GroupView) -> list[Block]:
    """Return both pictures; in place of one that has fewer than two points, the reason."""
    return [_figure(group, axis) for axis in _PICTURES]


def _figure(group: GroupView, axis: _Axis) -> Figure | Note:
    placed = [standing for standing in group.standings if standing.traded(axis.name) is not None]
    if len(placed) < 3:  # noqa: PLR2004 - two points are told sooner by their rows
        needs = f"Speed against {axis.noun} is drawn of three strategies or more with both"
        return Note(f"{needs}; {len(placed)} of {len(group.standings)} have them.", "quiet")
    speed_unit = "prompt tok/s" if group.is_prefill else "tok/s"
    return _drawn(placed, axis, speed_unit)


def _drawn(placed: Sequence[Standing], axis: _Axis, speed_unit: str) -> Figure:
    best = ", ".join(standing.name for standing in placed if axis.name in standing.fronts)
    count = f"{len(placed)} strategies by speed and {axis.noun}."
    return Figure(
        chart="pareto",
        title=f"Speed against {axis.noun}",
        alt=f"{count} On the front, beaten by none in both: {best}.",
        data=_data(placed, axis, speed_unit),
        note=f"On the front: {best}.",
    )


def _data(placed: Sequence[Standing], axis: _Axis, speed_unit: str) -> dict[str, Any]:
    return {
        "points": [_point(standing, axis) for standing in placed],
        "x": axis.label,
        "y": speed_unit,
        "reverse": axis.name == MEMORY,
        "span": axis.span,
    }


def _point(standing: Standing, axis: _Axis) -> dict[str, Any]:
    return {
        "name": standing.name,
        "x": (standing.traded(axis.name) or 0.0) / axis.scale,
        "y": standing.speed,
        "front": axis.name in standing.fronts,
        "tip": _tip(standing),
        "low": standing.speed_low,
        "high": standing.speed_high,
    }


def _tip(standing: Standing) -> str:
    lines = [standing.name, standing.speed_with_interval]
    if standing.memory_bytes is not None:
        lines.append(f"memory {format_value(standing.memory_bytes, 'B')}")
    if standing.top1 is not None:
        lines.append(f"top-1 {format_value(standing.top1, '1')}")
    return "\n".join(lines)
