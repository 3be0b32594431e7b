"""What `--llmperf-plan` prints: what would run, what it would take, and what would not run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from pytest_llmperf.core.format import MISSING, format_duration, format_value
from pytest_llmperf.report.run_names import short_names
from pytest_llmperf.report.table import Column
from pytest_llmperf.report.terminal import Out

if TYPE_CHECKING:
    import pytest

_NUMBERS = frozenset({"weights", "weights/rank", "free", "budget", "load", "processes", "expected"})


class PlanRow(Struct, frozen=True, kw_only=True):
    """One test as planned.

    Sizes in bytes and times in seconds; None where they cannot be known beforehand.

    `n_gpus` are leased for the test, `weights_bytes` is predicted for each of its `ranks`,
    `available_bytes` is what the device (or host) has free now: on several GPUs, on the fullest of
    them. `planned_s` is the budget of sampling, `expected_s` what the test took when it last ran,
    `predicted_s` what it takes at most where that is not known: its first loads of `load_s`, warm-
    up, budget, and the readings after it. The loads and warm-ups of further processes are in the
    budget. `pairs_s` is what --llmperf-against takes at most besides. `processes` are those that
    its repetitions are spread over: as last time, or as asked; None: as many as pay. `load_key` is
    equal for tests that share one loaded model. A row that would not run says why in `reason`.
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
    load_s: float | None = None
    predicted_s: float | None = None
    pairs_s: float | None = None
    processes: int | None = None
    load_key: str = ""

    @property
    def fits(self) -> bool | None:
        """Whether the weights alone fit in what is free; None when either is not known."""
        if self.weights_bytes is None or self.available_bytes is None:
            return None
        return self.weights_bytes <= self.available_bytes

    @property
    def device_s(self) -> float | None:
        """Seconds of device time: what the test takes, times its devices.

        Where that is not known its prediction counts, else its budget.
        """
        known_s = (self.expected_s, self.predicted_s, self.planned_s)
        wall_s = next((seconds for seconds in known_s if seconds is not None), None)
        return None if wall_s is None else (wall_s + (self.pairs_s or 0.0)) * max(1, self.n_gpus)


def write_plan(tr: pytest.TerminalReporter, rows: Sequence[PlanRow]) -> None:
    """Print the section "llmperf plan".

    The tests that would run are a table; the others follow with reasons, and totals end it.
    """
    out = Out(tr)
    tr.write_sep("=", "llmperf plan")
    _write_table(out, _with_status(rows, "run"))
    for row in rows:
        if row.fits is False:
            out.text(_no_room(row), colour="yellow")
    for status, title in (("error", "ERROR"), ("skip", "SKIPPED")):
        out.statuses(title, [(_name(row), row.reason) for row in _with_status(rows, status)])
    out.text(totals(rows))


def _write_table(out: Out, rows: Sequence[PlanRow]) -> None:
    if not rows:
        return
    dropped = out.table(_columns(rows)).dropped
    if dropped:
        headers = ", ".join(column.header for column in dropped)
        out.text(f"no room at {out.width} columns for: {headers}")


def _no_room(row: PlanRow) -> str:
    each_rank = " on each rank" if row.ranks > 1 else ""
    device = row.device or "the device"
    return (
        f"{_name(row)} needs {_weights(row)} for its weights{each_rank}, "
        f"{_available(row)} are free on {device}"
    )


def _with_status(rows: Iterable[PlanRow], status: str) -> list[PlanRow]:
    return [row for row in rows if row.status == status]


def totals(rows: Sequence[PlanRow]) -> str:
    """Return one sentence: tests, model loads and seconds, and how many tests would not run."""
    running = _with_status(rows, "run")
    parts = [
        f"{_count(len(running), 'test')} would run",
        _count(_n_loads(running), "model load"),
        _sampling(running),
        _device_time(running),
    ]
    for status, text in (("error", "in error"), ("skip", "skipped")):
        if n := len(_with_status(rows, status)):
            parts.append(f"{n} {text}")
    return ", ".join(filter(None, parts))


def _n_loads(rows: Iterable[PlanRow]) -> int:
    """Count the models to load: tests with one key share one."""
    models = (row for row in rows if row.model)
    keys = (row.load_key or (row.model, row.engine, row.device, row.strategy) for row in models)
    return len(set(keys))


def _sampling(rows: Sequence[PlanRow]) -> str:
    budgets = [row.planned_s for row in rows if row.planned_s is not None]
    if not budgets:
        return ""
    n_unknown = len(rows) - len(budgets)
    unknown = f" ({n_unknown} not known)" if n_unknown else ""
    return f"{format_duration(sum(budgets))} of sampling at most{unknown}"


def _device_time(rows: Sequence[PlanRow]) -> str:
    if not any(_expected(row) or row.n_gpus for row in rows):
        return ""
    times = [row.device_s for row in rows if row.device_s is not None]
    n_from_history = sum(row.expected_s is not None for row in rows)
    return (
        f"{format_duration(sum(times))} of device time "
        f"({n_from_history} of {len(rows)} from history)"
    )


def _columns(rows: Sequence[PlanRow]) -> list[Column]:
    weights = "weights/rank" if any(row.ranks > 1 for row in rows) else "weights"
    columns = [
        _test_column(rows),
        _column(rows, "strategy", attrgetter("strategy"), rank=90, floor=10),
        _column(rows, "model", attrgetter("model"), rank=60, floor=10),
        _column(rows, "engine", attrgetter("engine"), rank=40),
        _column(rows, "device", _device, rank=70),
        _column(rows, weights, _weights, rank=85),
        _column(rows, "free", _available, rank=65),
        _column(rows, "budget", _budget, rank=80),
    ]
    if any(row.load_s is not None for row in rows):
        columns.append(_column(rows, "load", _load, rank=68))
    if any(row.processes is not None for row in rows):
        columns.append(_column(rows, "processes", _processes, rank=72))
    if any(_expected(row) for row in rows):
        columns.append(_column(rows, "expected", _expected, rank=82))
    return [*columns, _column(rows, "fits", _fits, rank=None)]


def _test_column(rows: Sequence[PlanRow]) -> Column:
    tests = [row.test for row in rows]
    return Column(header="test", cells=tuple(short_names(tests)), rank=None, floor=14)


def _column(
    rows: Sequence[PlanRow],
    header: str,
    text: Callable[[PlanRow], str],
    *,
    rank: int | None,
    floor: int | None = None,
) -> Column:
    cells = tuple(text(row) or MISSING for row in rows)
    return Column(header=header, cells=cells, rank=rank, right=header in _NUMBERS, floor=floor)


def _name(row: PlanRow) -> str:
    if not row.strategy or row.strategy in row.test:
        return row.test
    return f"{row.test} ({row.strategy})"


def _device(row: PlanRow) -> str:
    return f"{row.n_gpus} x {row.device}" if row.n_gpus > 1 else row.device


def _weights(row: PlanRow) -> str:
    return "" if row.weights_bytes is None else format_value(row.weights_bytes, "B")


def _available(row: PlanRow) -> str:
    return "" if row.available_bytes is None else format_value(row.available_bytes, "B")


def _budget(row: PlanRow) -> str:
    return "" if row.planned_s is None else format_duration(row.planned_s)


def _load(row: PlanRow) -> str:
    return "" if row.load_s is None else format_duration(row.load_s)


def _processes(row: PlanRow) -> str:
    if not row.model:
        return ""
    return "auto" if row.processes is None else str(row.processes)


def _expected(row: PlanRow) -> str:
    """Return what the test took last time, or what it takes at most: '≤ 41 s'.

    What a comparison with another version takes is known at most.
    """
    if row.expected_s is not None and row.pairs_s is None:
        return format_duration(row.expected_s)
    own_s = row.predicted_s if row.expected_s is None else row.expected_s
    return "" if own_s is None else f"≤ {format_duration(own_s + (row.pairs_s or 0.0))}"


def _fits(row: PlanRow) -> str:
    return {True: "fits", False: "too large", None: "not known"}[row.fits]


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
