"""The Pareto pictures of a group: speed against memory, and speed against agreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pytest_llmperf.core import advice
from pytest_llmperf.core.format import format_value
from pytest_llmperf.core.record import Record
from pytest_llmperf.report.html.answers import number, of_run
from pytest_llmperf.report.html.blocks import Block, Figure, Note
from pytest_llmperf.report.html.runs import Group, headline, interval, memory, named, shown, value

_GB = 1e9


class Standing(NamedTuple):
    """A strategy of a group as the pictures place it. What was not measured is None."""

    record: Record
    name: str
    speed: float
    memory_bytes: float | None
    top1: float | None
    agreement: Mapping[str, Any] | None


def standings(group: Group, records: Sequence[Record]) -> list[Standing]:
    """Each strategy of the group, fastest first.

    The reference agrees with itself whether or not a test says so.
    """
    found = []
    for run in group.runs:
        agreement = of_run(run, records)
        top1 = number(agreement, "top1")
        if top1 is None and run.strategy == group.reference:
            top1 = 1.0
        found.append(
            Standing(
                run, named(run), value(run, headline(run)) or 0.0, memory(run), top1, agreement
            )
        )
    return found


def front(standing: Sequence[Standing], axis: str) -> set[str]:
    """Names of those that no other beats in speed and in "memory" or "top1".

    Only what has both is compared.
    """
    field = {"memory": "memory_bytes", "top1": "top1"}[axis]
    known = [each for each in standing if getattr(each, field) is not None]
    choices = [
        advice.Choice(
            name=each.name,
            readings={
                "speed": advice.Reading(value=each.speed),
                axis: advice.Reading(value=getattr(each, field)),
            },
        )
        for each in known
    ]
    axes = ("speed", axis)
    return {
        c.name for c in choices if not any(advice.dominates(other, c, axes) for other in choices)
    }


def figures(group: Group, records: Sequence[Record]) -> list[Block]:
    """Both pictures; in place of one that has fewer than two points, why."""
    standing = standings(group, records)
    return [_figure(standing, "memory"), _figure(standing, "top1")]


def _figure(standing: Sequence[Standing], axis: str) -> Figure | Note:
    what = {"memory": "memory", "top1": "agreement"}[axis]
    field, scale = ("memory_bytes", _GB) if axis == "memory" else ("top1", 0.01)
    known = [each for each in standing if getattr(each, field) is not None]
    if len(known) < 2:  # noqa: PLR2004 - one point trades nothing
        return Note(
            f"Speed against {what} needs two strategies with both; {len(known)} of {len(standing)} have them.",
            "quiet",
        )
    on_front = front(standing, axis)
    points = [
        {
            "name": each.name,
            "x": getattr(each, field) / scale,
            "y": each.speed,
            "front": each.name in on_front,
            "tip": _tip(each),
            "low": _end(each.record, "low"),
            "high": _end(each.record, "high"),
        }
        for each in known
    ]
    labels = {"memory": "memory (GB), less to the right", "top1": "top-1 agreement (%)"}
    best = ", ".join(each.name for each in known if each.name in on_front)
    return Figure(
        chart="pareto",
        title=f"Speed against {what}",
        alt=f"{len(known)} strategies by speed and {what}. On the front, beaten by none in both: {best}.",
        data={
            "points": points,
            "x": labels[axis],
            "y": "prompt tok/s" if headline(known[0].record).startswith("prefill") else "tok/s",
            "reverse": axis == "memory",
            "span": 1.0 if axis == "top1" else 0.05,
        },
        note=f"On the front: {best}.",
    )


def _end(record: Record, name: str) -> float | None:
    found = next(each for each in record.metrics if each.name == headline(record))
    return getattr(found, name)  # type: ignore[no-any-return]


def _tip(each: Standing) -> str:
    lines = [
        each.name,
        f"{shown(each.record, headline(each.record))} {interval(each.record, headline(each.record))}".strip(),
    ]
    lines += (
        [f"memory {format_value(each.memory_bytes, 'B')}"] if each.memory_bytes is not None else []
    )
    lines += [f"top-1 {format_value(each.top1, '1')}"] if each.top1 is not None else []
    return "\n".join(lines)
