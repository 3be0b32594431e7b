"""Fresh sessions of unchanged tests, for `llmperf calibrate`.

Each is a pytest process of its own, recorded nowhere but here.
"""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from msgspec import Struct

from pytest_llmperf.core.environment import device_names, differences
from pytest_llmperf.core.record import Record
from pytest_llmperf.core.verdicts.noise import Noise, noise
from pytest_llmperf.core.verdicts.processes import split
from pytest_llmperf.errors import InvalidRun, UsageError
from pytest_llmperf.gate.calibration import Calibrated
from pytest_llmperf.settings.limits import COUNTED

_HOW = "Write Decode(batch=1, prompt_tokens=128, new_tokens=128) or Prefill(…)."
MEASURED = frozenset({"PASS", "RECORDED", "UNDECIDED", "FAIL"})
_PYTEST = (
    "-m",
    "pytest",
    "-q",
    "-p",
    "no:cacheprovider",
    "--llmperf-only",
    "--llmperf-gate=off",
    "--llmperf-store=none",
)
_TAIL_LINES = 5
_NOTHING_COMMON = (
    "no measurement is common to all sessions: calibrate tests that always measure the same."
)
_TEST = """import pytest
from pytest_llmperf import Decode, Prefill, PromptSet


@pytest.mark.llmperf(model={model!r}, strategy={strategy!r}, engine={engine!r})
def test_calibrate(llm):
    llm.run({workload})
"""

Key = tuple[str, str, str, str]
Session = dict[Key, list[Record]]


class Floor(Struct, frozen=True, kw_only=True):
    """The noise of one metric of one measurement, and what it was measured on."""

    record: Record
    metric: str
    noise: Noise

    def calibrated(self, today: date, *, any_test: bool) -> Calibrated:
        """The floor as the project's file keeps it."""
        record, noise = self.record, self.noise
        correlation = noise.autocorrelation
        return Calibrated(
            metric=self.metric,
            test="" if any_test else record.test,
            model=record.model,
            strategy=record.strategy,
            workload=record.workload_text,
            device=next(iter(device_names(record.environment)), "unknown"),
            floor=noise.proposed,
            spread=_rounded(noise.spread),
            between=_rounded_if_known(noise.between),
            within=_rounded_if_known(noise.within),
            false_alarms=noise.false_alarms,
            at_most=_rounded(noise.at_most),
            unseen=_rounded(noise.unseen),
            autocorrelation=None if correlation is None else round(correlation, 3),
            sessions=noise.sessions,
            pairs=noise.pairs,
            date=today,
            versions=_versions(record),
        )


def _rounded(share: float) -> float:
    return float(f"{share:.3g}")


def _rounded_if_known(share: float | None) -> float | None:
    return None if share is None else _rounded(share)


def _versions(record: Record) -> dict[str, str]:
    return {
        name.removeprefix("version_"): str(value)
        for name, value in record.environment.facts.items()
        if name.startswith("version_")
    }


def test_file(folder: Path, model: str, strategy: str, engine: str, workload: str) -> Path:
    """A test of one model under one strategy and workload.

    Raises UsageError for a workload that is no plain call.
    """
    path = folder / "test_calibrate.py"
    _require_workload(workload)
    path.write_text(
        _TEST.format(model=model, strategy=strategy, engine=engine, workload=workload),
        encoding="utf-8",
    )
    return path


def run_session(root: Path, arguments: Sequence[str]) -> Session:
    """One session of tests in a fresh process: its valid runs by measurement.

    Raises:
        InvalidRun: it recorded nothing valid; its last lines are in the message.

    """
    with tempfile.TemporaryDirectory(prefix="llmperf-calibrate-") as folder:
        file = Path(folder) / "session.jsonl"
        command = [sys.executable, *_PYTEST, f"--llmperf-json={file}", *arguments]
        # The user's own tests.
        finished = subprocess.run(command, cwd=root, capture_output=True, check=False)  # noqa: S603
        session = _session(file)
    if not session:
        raise InvalidRun(_nothing_recorded(finished))
    return session


def _nothing_recorded(finished: subprocess.CompletedProcess[bytes]) -> str:
    exit_code = f"pytest's exit code {finished.returncode}"
    return f"a session recorded no valid run ({exit_code}):\n  {_tail(finished)}"


def _tail(finished: subprocess.CompletedProcess[bytes]) -> str:
    output = (finished.stdout + finished.stderr).decode("utf-8", "replace").strip()
    return "\n  ".join(output.splitlines()[-_TAIL_LINES:])


def enough(sessions: Sequence[Session], n_sessions: int, n_pairs: int) -> bool:
    """Whether each measurement has so many sessions and pairs of repetitions of one process.

    Twice the sessions are enough in any case.
    """
    if len(sessions) < n_sessions:
        return False
    return len(sessions) >= 2 * n_sessions or _fewest_pairs(sessions) >= n_pairs


def _fewest_pairs(sessions: Sequence[Session]) -> int:
    """The pairs of repetitions of the measurement that has the fewest."""
    return min((_pairs(sessions, key) for key in sessions[0]), default=0)


def _pairs(sessions: Sequence[Session], key: Key) -> int:
    """The pairs of repetitions of one measurement in all sessions."""
    runs = (session.get(key, ()) for session in sessions)
    return sum(len(process) // 2 for run in runs for process in _repetitions(run))


def examine(sessions: Sequence[Session], limits: Mapping[str, float]) -> list[Floor]:
    """The noise of each limited metric of each measurement that every session made.

    Raises:
        InvalidRun: sessions were made in different environments.
        UsageError: no measurement is common to all.

    """
    floors: list[Floor] = []
    for key in _common(sessions):
        runs = [session[key] for session in sessions]
        _require_one_environment(runs)
        floors += _floors(runs, limits)
    return floors


def _common(sessions: Sequence[Session]) -> list[Key]:
    """The measurements that every session made. Raises UsageError where there are none."""
    common = [key for key in sessions[0] if all(key in session for session in sessions)]
    return common or _refuse_sessions()


def _refuse_sessions() -> NoReturn:
    raise UsageError(_NOTHING_COMMON)


def _require_one_environment(runs: Sequence[Sequence[Record]]) -> None:
    first = runs[0][0]
    for record in chain.from_iterable(runs):
        changed = differences(first.environment, record.environment)
        if changed:
            name, before, after = changed[0]
            raise InvalidRun(
                f"the sessions are not comparable: {name} was {before!r}, then {after!r}."
            )


def _floors(runs: Sequence[Sequence[Record]], limits: Mapping[str, float]) -> Iterator[Floor]:
    """The floor of each limited metric that every session has a value of."""
    for metric in runs[0][0].metrics:
        limit = limits.get(metric.name)
        values = [value for run in runs if (value := _value(run, metric.name)) is not None]
        if limit is None or metric.name in COUNTED or len(values) < len(runs):
            continue
        direction: Any = metric.direction
        repetitions = [_repetitions(run, metric.name) for run in runs]
        spread = noise(values, repetitions, direction=direction, floor=limit)
        yield Floor(record=runs[-1][-1], metric=metric.name, noise=spread)


def _value(run: Sequence[Record], name: str) -> float | None:
    values = [
        metric.value
        for record in run
        for metric in record.metrics
        if metric.name == name and metric.value is not None
    ]
    return statistics.median(values) if values else None


def _repetitions(run: Sequence[Record], metric: str = "") -> tuple[Sequence[float], ...]:
    """Each process's repetitions in order of time: of the metric, else rates, else times.

    A load has more samples of some times than repetitions: those are not told apart by process.
    """
    own = metric.partition(".")[0]
    for record in run:
        sizes = record.in_processes.sizes
        for name in (own, "throughput", "prefill_throughput", "latency", "time"):
            samples = record.samples.get(name, ())
            if samples and min(samples) > 0 and sum(sizes) in (0, len(samples)):
                return tuple(split(samples, sizes)) if sizes else (samples,)
    return ()


def _session(file: Path) -> Session:
    """The newest valid records of a session's file, by measurement."""
    from pytest_llmperf.report.json_lines import read  # noqa: PLC0415

    lines = read(file) if file.is_file() else ()
    newest = {line.id: line for line in lines if isinstance(line, Record)}
    session: Session = {}
    for record in filter(_is_valid, newest.values()):
        key = (record.test, record.label, record.workload_key, record.strategy)
        session.setdefault(key, []).append(record)
    return session


def _is_valid(record: Record) -> bool:
    has_values = any(metric.value is not None for metric in record.metrics)
    return record.outcome in MEASURED and has_values


def _require_workload(text: str) -> None:
    if not _is_workload(_expression(text)):
        raise UsageError(f"--workload {text!r} is not a workload. {_HOW}")


def _expression(text: str) -> ast.expr:
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise UsageError(f"--workload {text!r} is not a workload: {error.msg}. {_HOW}") from error


def _is_workload(call: ast.expr) -> bool:
    """Whether an expression is a call of a workload by its name."""
    return isinstance(call, ast.Call) and _names_a_workload(call.func)


def _names_a_workload(function: ast.expr) -> bool:
    return isinstance(function, ast.Name) and function.id in ("Decode", "Prefill")
