"""Advice as a table and sentences. Formatting of values; decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pytest_llmperf.core.advice import AXES, Advice, Choice
from pytest_llmperf.core.format import MISSING, format_estimate, format_value

_TITLES = {"top1": "top-1", "ttft": "TTFT"}
_BOUNDS = {"higher": ">=", "lower": "<="}


def table(
    advice: Advice, choices: Sequence[Choice]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows: the front first, then what is dominated and by what, then what was not compared."""
    by_name = {choice.name: choice for choice in choices}
    rows = [(*_cells(by_name[name], advice.axes), _standing(name, advice)) for name in advice.front]
    rows += [
        (*_cells(by_name[each.name], advice.axes), f"dominated by {', '.join(each.by)}")
        for each in advice.dominated
    ]
    rows += [
        (
            *_cells(by_name[each.name], advice.axes),
            f"not compared: lacks {', '.join(_lack(*lack) for lack in each.lacks.items())}",
        )
        for each in advice.incomplete
    ]
    return ("strategy", *(_TITLES.get(axis, axis) for axis in advice.axes), ""), rows


def sentences(advice: Advice, choices: Sequence[Choice], limits: Mapping[str, float]) -> list[str]:
    """What to take, and how sure that is."""
    asked = ", ".join(_limit(axis, bound) for axis, bound in limits.items())
    lines = [_verdict(advice, {choice.name: choice for choice in choices}, asked)]
    if advice.fastest is not None and advice.certain != advice.fastest:
        surely = (
            f"The fastest for certain is {advice.certain}."
            if advice.certain
            else "No strategy meets them for certain."
        )
        lines.append(
            f"Only by its values: an interval of {advice.fastest} crosses a limit. {surely}"
        )
    if advice.left_out:
        named = " and ".join(_TITLES.get(axis, axis) for axis in advice.left_out)
        lines.append(
            f"Not compared: {named}, which no stored agreement gives. llm.agreement(baseline) in a test measures it."
        )
    return lines


def _verdict(advice: Advice, choices: Mapping[str, Choice], asked: str) -> str:
    under = f" with {asked}" if asked else ""
    if advice.fastest is None:
        compared = len(advice.front) + len(advice.dominated)
        lack = len(advice.incomplete)
        what = f"No strategy meets the limits ({asked})" if asked else "Nothing can be advised"
        return f"{what}: {compared} were compared, {lack} lack data."
    speed = format_value(choices[advice.fastest].readings["speed"].value, AXES["speed"].unit)
    return f"Fastest{under}: {advice.fastest}, {speed}."


def _standing(name: str, advice: Advice) -> str:
    return "fastest that fits" if name == advice.fastest else "front"


def _cells(choice: Choice, axes: Sequence[str]) -> tuple[str, ...]:
    return (choice.name, *(_cell(choice, axis) for axis in axes))


def _cell(choice: Choice, axis: str) -> str:
    reading = choice.readings.get(axis)
    return (
        MISSING
        if reading is None
        else format_estimate(reading.value, reading.low, reading.high, AXES[axis].unit)
    )


def _lack(axis: str, reason: str) -> str:
    return f"{_TITLES.get(axis, axis)} ({reason})"


def _limit(axis: str, bound: float) -> str:
    return f"{_TITLES.get(axis, axis)} {_BOUNDS[AXES[axis].direction]} {format_value(bound, AXES[axis].unit)}"
