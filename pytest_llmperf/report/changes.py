"""Changes as cells of a table's row: the same texts on a terminal, in Markdown and on a page."""

from __future__ import annotations

from pytest_llmperf.core.change import Change
from pytest_llmperf.core.format import MISSING, format_number, format_value


def number_cells(change: Change) -> tuple[str, str, str, str]:
    """The cells before, after, ratio and interval; a dash stands for what is not known."""
    return (
        _value(change.before, change.unit),
        _value(change.after, change.unit),
        _value(change.ratio, "x"),
        interval_text(change.low, change.high) or MISSING,
    )


def interval_text(low: float | None, high: float | None) -> str:
    """The interval of a ratio, "[0.901, 0.945]"; "" without one."""
    if low is None or high is None:
        return ""
    return f"[{format_number(low)}, {format_number(high)}]"


def labelled_test(change: Change) -> str:
    """The test, with the run's label where it has one."""
    return f"{change.test} ({change.label})" if change.label else change.test


def _value(value: float | None, unit: str) -> str:
    return MISSING if value is None else format_value(value, unit)
