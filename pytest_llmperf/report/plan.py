"""What `--llmperf-plan` prints: every test that would run, what it would take, and what would be skipped or in error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from pytest_llmperf.core.format import MISSING, format_duration, format_value
from pytest_llmperf.report.summary import short_names
from pytest_llmperf.report.table import Column
from pytest_llmperf.report.terminal import Out

if TYPE_CHECKING:
    import pytest

_NUMBERS = frozenset({"weights", "weights/rank", "free", "budget", "expected"})


class PlanRow(Struct, frozen=True, kw_only=True):
    """One test as planned.

    Sizes in bytes and times in seconds; None where they cannot be known beforehand.

    `n_gpus` are leased for the test, `weights_bytes` is predicted for each of its `ranks`,
    `available_bytes` is what the device (or host) has free now: on several GPUs, on the fullest of
    them. `planned_s` is the budget of sampling, `expected_s` what the test took when it last ran.
    `load_key` is equal for tests that share one loaded model. A row that would not run says why in
    `reason`.
    """

    test: str
    status: Literal["run", "skip", "error"] = "run"
    reason: str = ""
    model: str = ""
    engine: str = ""
    device: str = ""
    n_gpus: int = 0
    ranks: int = 1
    strategy: str = ""
    weights_bytes: int | None = None
    available_bytes: int | None = None
    planned_s: float | None = None
    expected_s: float | None = None
    load_key: str = ""

    @property
    def fits(self) -> bool | None:
        """Whether the weights alone fit in what is free; None when either is not known."""
        if self.weights_bytes is None or self.available_bytes is None:
            return None
        return self.weights_bytes <= self.available_bytes

    @property
    def device_s(self) -> float | None:
        """Seconds of device time: what the test takes, or its budget where that is not known, times its devices."""
        took_s = self.planned_s if self.expected_s is None else self.expected_s
        return None if took_s is None else took_s * max(1, self.n_gpus)


def write_plan(tr: pytest.TerminalReporter, rows: Sequence[PlanRow]) -> None:
    """Print the section "llmperf plan": the tests that would run as a table, the others with reasons, and totals."""
    out = Out(tr)
    tr.write_sep("=", "llmperf plan")
    running = [row for row in rows if row.status == "run"]
    if running:
        table = out.table(_columns(running))
        if table.dropped:
            out.text(
                f"no room at {out.width} columns for: {', '.join(c.header for c in table.dropped)}"
            )
    for row in rows:
        if row.fits is False:
            each = " on each rank" if row.ranks > 1 else ""
            room = f"{_weights(row)} for its weights{each}, {_available(row)} are free on {row.device or 'the device'}"
            out.text(f"{_name(row)} needs {room}", colour="yellow")
    out.named("ERROR", [(_name(row), row.reason) for row in rows if row.status == "error"])
    out.named("SKIPPED", [(_name(row), row.reason) for row in rows if row.status == "skip"])
    out.text(totals(rows))


def totals(rows: Sequence[PlanRow]) -> str:
    """One sentence: how many tests, model loads and seconds, and how many tests would not run."""
    running = [row for row in rows if row.status == "run"]
    loads = {
        row.load_key or (row.model, row.engine, row.device, row.strategy)
        for row in running
        if row.model
    }
    known = [row.planned_s for row in running if row.planned_s is not None]
    parts = [f"{_count(len(running), 'test')} would run", _count(len(loads), "model load")]
    if known:
        unknown = len(running) - len(known)
        parts.append(
            f"{format_duration(sum(known))} of sampling at most"
            + (f" ({unknown} not known)" if unknown else "")
        )
    if any(row.expected_s is not None or row.n_gpus for row in running):
        known_s = [row.device_s for row in running if row.device_s is not None]
        from_history = sum(row.expected_s is not None for row in running)
        parts.append(
            f"{format_duration(sum(known_s))} of device time ({from_history} of {len(running)} from history)"
        )
    for status, word in (("error", "in error"), ("skip", "skipped")):
        n = sum(row.status == status for row in rows)
        if n:
            parts.append(f"{n} {word}")
    return ", ".join(parts)


def _columns(rows: Sequence[PlanRow]) -> list[Column]:
    def column(
        header: str, text: Callable[[PlanRow], str], rank: int | None, floor: int | None = None
    ) -> Column:
        cells = tuple(text(row) or MISSING for row in rows)
        return Column(header=header, cells=cells, rank=rank, right=header in _NUMBERS, floor=floor)

    names = dict(
        zip([row.test for row in rows], short_names([row.test for row in rows]), strict=True)
    )
    weights = "weights/rank" if any(row.ranks > 1 for row in rows) else "weights"
    expected = (
        [column("expected", _expected, 75)]
        if any(row.expected_s is not None for row in rows)
        else []
    )
    return [
        column("test", lambda row: names[row.test], None, floor=14),
        column("strategy", lambda row: row.strategy, 90, floor=10),
        column("model", lambda row: row.model, 60, floor=10),
        column("engine", lambda row: row.engine, 40),
        column(
            "device",
            lambda row: f"{row.n_gpus} x {row.device}" if row.n_gpus > 1 else row.device,
            70,
        ),
        column(weights, _weights, 85),
        column("free", _available, 65),
        column(
            "budget",
            lambda row: "" if row.planned_s is None else format_duration(row.planned_s),
            80,
        ),
        *expected,
        column(
            "fits",
            lambda row: {True: "fits", False: "too large", None: "not known"}[row.fits],
            None,
        ),
    ]


def _name(row: PlanRow) -> str:
    return (
        f"{row.test} ({row.strategy})"
        if row.strategy and row.strategy not in row.test
        else row.test
    )


def _weights(row: PlanRow) -> str:
    return "" if row.weights_bytes is None else format_value(row.weights_bytes, "B")


def _expected(row: PlanRow) -> str:
    return "" if row.expected_s is None else format_duration(row.expected_s)


def _available(row: PlanRow) -> str:
    return "" if row.available_bytes is None else format_value(row.available_bytes, "B")


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
