"""Advice as a table and sentences. Formatting of values; decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pytest_llmperf.core.advice import AXES, Advice, Choice
from pytest_llmperf.core.format import MISSING, format_estimate, format_value

_TITLES = {"top1": "top-1", "ttft": "TTFT"}
_BOUNDS = {"higher": ">=", "lower": "<="}


def table(
    advice: Advice, choices: Sequence[Choice]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return header and rows: the front first, then what is dominated, then what lacks data."""
    cells = {choice.name: _cells(choice, advice.axes) for choice in choices}
    standings = [(name, _standing(name, advice)) for name in advice.front]
    standings += [(loser.name, _dominated(loser.by)) for loser in advice.dominated]
    standings += [(choice.name, _not_compared(choice.lacks)) for choice in advice.incomplete]
    header = ("strategy", *map(_title, advice.axes), "")
    return header, [(*cells[name], standing) for name, standing in standings]


def sentences(advice: Advice, choices: Sequence[Choice], limits: Mapping[str, float]) -> list[str]:
    """Return what to take, and how sure that is."""
    conditions = ", ".join(_limit(axis, bound) for axis, bound in limits.items())
    lines = [_verdict(advice, choices, conditions)]
    if advice.fastest is not None and advice.certain != advice.fastest:
        lines.append(_uncertainty(advice))
    if advice.left_out:
        titles = " and ".join(map(_title, advice.left_out))
        lines.append(
            f"Not compared: {titles}, which no stored agreement gives. "
            "llm.agreement(baseline) in a test measures it."
        )
    return lines


def _verdict(advice: Advice, choices: Sequence[Choice], conditions: str) -> str:
    if advice.fastest is None:
        return _no_verdict(advice, conditions)
    fastest = next(choice for choice in choices if choice.name == advice.fastest)
    speed = format_value(fastest.readings["speed"].value, AXES["speed"].unit)
    under = f" with {conditions}" if conditions else ""
    return f"Fastest{under}: {advice.fastest}, {speed}."


def _no_verdict(advice: Advice, conditions: str) -> str:
    n_compared = len(advice.front) + len(advice.dominated)
    outcome = "Nothing can be advised"
    if conditions:
        outcome = f"No strategy meets the limits ({conditions})"
    return f"{outcome}: {n_compared} were compared, {len(advice.incomplete)} lack data."


def _uncertainty(advice: Advice) -> str:
    certain = "No strategy meets them for certain."
    if advice.certain:
        certain = f"The fastest for certain is {advice.certain}."
    return f"Only by its values: an interval of {advice.fastest} crosses a limit. {certain}"


def _standing(name: str, advice: Advice) -> str:
    return "fastest that fits" if name == advice.fastest else "front"


def _dominated(by: Iterable[str]) -> str:
    return f"dominated by {', '.join(by)}"


def _not_compared(lacks: Mapping[str, str]) -> str:
    reasons = (f"{_title(axis)} ({reason})" for axis, reason in lacks.items())
    return f"not compared: lacks {', '.join(reasons)}"


def _cells(choice: Choice, axes: Iterable[str]) -> tuple[str, ...]:
    return (choice.name, *(_cell(choice, axis) for axis in axes))


def _cell(choice: Choice, axis: str) -> str:
    reading = choice.readings.get(axis)
    if reading is None:
        return MISSING
    return format_estimate(reading.value, reading.low, reading.high, AXES[axis].unit)


def _limit(axis: str, bound: float) -> str:
    quantity = AXES[axis]
    return f"{_title(axis)} {_BOUNDS[quantity.direction]} {format_value(bound, quantity.unit)}"


def _title(axis: str) -> str:
    return _TITLES.get(axis, axis)
