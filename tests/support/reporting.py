"""Records, and a terminal of a given width, for the tests of what is printed."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

from _pytest.config import create_terminal_writer
from msgspec.structs import replace
from support import history_records

from pytest_llmperf.core.record import Environment, MetricValue, Record


def metric(
    name: str,
    value: float | None,
    unit: str,
    low: float | None = None,
    high: float | None = None,
    reason: str = "",
) -> MetricValue:
    """A metric value; None is not measurable."""
    confidence = None if low is None else 0.99
    return replace(
        history_records.metric(name, value, unit),
        low=low,
        high=high,
        confidence=confidence,
        reason=reason,
    )


METRICS = (
    metric("throughput", 14.2, "tok/s", 14.05, 14.35),
    metric("ttft.p50", 0.0831, "s", 0.082, 0.084),
    metric("ttft.p95", 0.0912, "s"),
    metric("tpot.p50", 0.0704, "s"),
    metric("memory.weights", 269e6, "B"),
    metric("memory.peak", 612e6, "B"),
    metric("mbu", 0.412, "1"),
    metric("mfu", 0.0123, "1"),
    metric(
        "energy.per_token",
        None,
        "J",
        reason="this machine has no energy counter (no RAPL, no NVML)",
    ),
    metric("load_time", 3.21, "s"),
)


def record(number: int = 0, **changes: Any) -> Record:
    """One finished run of a bf16 model; `changes` replace fields."""
    fields: dict[str, Any] = {
        "created": "2026-11-23T05:00:00.000+00:00",
        "test": "tests/test_precision.py::test_reduced_precision_pays[bf16]",
        "environment": Environment(facts={}),
        "metrics": METRICS,
        "samples": {},
        "warm_up": {},
    }
    return history_records.record(f"r{number}", **{**fields, **changes})


class Terminal:
    """What a TerminalReporter gives a report: write, write_line, write_sep and its writer.

    `text` is what was written.
    """

    def __init__(
        self, width: int, *, encoding: str = "utf-8", colour: str = "no", tty: bool = True
    ) -> None:
        self._bytes = io.BytesIO()
        self._file = io.TextIOWrapper(self._bytes, encoding=encoding, write_through=True)
        self._file.isatty = lambda: tty
        self._writer = create_terminal_writer(
            SimpleNamespace(option=SimpleNamespace(color=colour, code_highlight="no")),
            self._file,
        )
        self._writer.fullwidth = width
        self.config = SimpleNamespace(get_terminal_writer=lambda: self._writer)
        self.encoding = encoding

    def write(self, content: str, **markup: bool) -> None:
        self._writer.write(content, **markup)

    def write_line(self, line: str, **markup: bool) -> None:
        self._writer.line(line, **markup)

    def write_sep(self, sep: str, title: str) -> None:
        self._writer.sep(sep, title)

    @property
    def text(self) -> str:
        return self._bytes.getvalue().decode(self.encoding)

    @property
    def lines(self) -> list[str]:
        return self.text.split("\n")[:-1]
