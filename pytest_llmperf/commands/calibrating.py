"""Fresh sessions of unchanged tests, for `llmperf calibrate`: each a pytest process of its own, recorded nowhere but here."""

from __future__ import annotations

import ast
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from msgspec import Struct

from pytest_llmperf.core.environment import device_names, differences
from pytest_llmperf.core.record import Record
from pytest_llmperf.core.verdicts.noise import Noise, noise
from pytest_llmperf.core.verdicts.stats import median
from pytest_llmperf.errors import InvalidRun, UsageError
from pytest_llmperf.gate.calibration import Calibrated
from pytest_llmperf.settings.limits import COUNTED

_HOW = "Write Decode(batch=1, prompt_tokens=128, new_tokens=128) or Prefill(…)."
MEASURED = frozenset({"PASS", "RECORDED", "UNDECIDED", "FAIL"})
_TEST = """import pytest
from pytest_llmperf import Decode, Prefill, PromptSet


@pytest.mark.llmperf(model={model!r}, strategy={strategy!r}, engine={engine!r})
def test_calibrate(llm):
    llm.run({workload})
"""

Key = tuple[str, str, str, str]
Session = dict[Key, list[Record]]


class Found(Struct, frozen=True, kw_only=True):
    """The noise of one metric of one measurement, and what it was measured on."""

    record: Record
    metric: str
    noise: Noise

    def calibrated(self, today: date, *, any_test: bool) -> Calibrated:
        """As the project's file keeps it."""
        facts = self.record.environment.facts
        return Calibrated(
            metric=self.metric,
            test="" if any_test else self.record.test,
            model=self.record.model,
            strategy=self.record.strategy,
            workload=self.record.workload_text,
            device=next(iter(device_names(self.record.environment)), "unknown"),
            floor=self.noise.proposed,
            spread=float(f"{self.noise.spread:.3g}"),
            false_alarms=self.noise.false_alarms,
            autocorrelation=None
            if self.noise.autocorrelation is None
            else round(self.noise.autocorrelation, 3),
            sessions=self.noise.sessions,
            pairs=self.noise.pairs,
            date=today,
            versions={
                name.removeprefix("version_"): str(value)
                for name, value in facts.items()
                if name.startswith("version_")
            },
        )


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
        lines = Path(folder) / "session.jsonl"
        ours = [
            "--llmperf-only",
            "--llmperf-gate=off",
            "--llmperf-store=none",
            f"--llmperf-json={lines}",
        ]
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            *ours,
            *arguments,
        ]
        # The user's own tests.
        done = subprocess.run(command, cwd=root, capture_output=True, check=False)  # noqa: S603
        found = _records(lines)
    if not found:
        tail = "\n  ".join(
            (done.stdout + done.stderr).decode("utf-8", "replace").strip().splitlines()[-5:]
        )
        raise InvalidRun(
            f"a session recorded no valid run (pytest's exit code {done.returncode}):\n  {tail}"
        )
    return found


def enough(sessions: Sequence[Session], n_sessions: int, n_pairs: int) -> bool:
    """Whether there are as many sessions and pairs of repetitions of each measurement as were asked for; never past twice."""
    if len(sessions) < n_sessions:
        return False
    pairs = [
        sum(len(_repetitions(session.get(key, ()))) // 2 for session in sessions)
        for key in sessions[0]
    ]
    return min(pairs, default=0) >= n_pairs or len(sessions) >= 2 * n_sessions


def examine(sessions: Sequence[Session], limits: Mapping[str, float]) -> list[Found]:
    """The noise of each limited metric of each measurement that every session made.

    Raises:
        InvalidRun: sessions were made in different environments.
        UsageError: no measurement is common to all.

    """
    common = [key for key in sessions[0] if all(key in session for session in sessions)]
    if not common:
        raise UsageError(
            "no measurement is common to all sessions: calibrate tests that always measure the same."
        )
    return [
        found for key in common for found in _noise([session[key] for session in sessions], limits)
    ]


def _noise(runs: Sequence[Sequence[Record]], limits: Mapping[str, float]) -> Iterable[Found]:
    first = runs[0][0]
    for record in (record for session in runs for record in session):
        if changed := differences(first.environment, record.environment):
            raise InvalidRun(
                f"the sessions are not comparable: {changed[0][0]} was {changed[0][1]!r}, then {changed[0][2]!r}."
            )
    for metric in first.metrics:
        if metric.name not in limits or metric.name in COUNTED:
            continue
        values = [_value(session, metric.name) for session in runs]
        if all(value is not None for value in values):
            repeated = [_repetitions(session) for session in runs]
            known = [value for value in values if value is not None]
            direction: Any = metric.direction
            seen = noise(known, repeated, direction=direction, floor=limits[metric.name])
            yield Found(record=runs[-1][-1], metric=metric.name, noise=seen)


def _value(session: Sequence[Record], name: str) -> float | None:
    values = [
        metric.value for record in session for metric in record.metrics if metric.name == name
    ]
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _repetitions(session: Sequence[Record]) -> tuple[float, ...]:
    """In order of time: rates where there are, else times."""
    names = ("throughput", "prefill_throughput", "latency", "time")
    return next(
        (record.samples[name] for record in session for name in names if record.samples.get(name)),
        (),
    )


def _records(lines: Path) -> Session:
    from pytest_llmperf.report.json_lines import read  # noqa: PLC0415

    newest = (
        {line.id: line for line in read(lines) if isinstance(line, Record)}
        if lines.is_file()
        else {}
    )
    found: Session = {}
    for record in newest.values():
        if record.outcome in MEASURED and any(
            metric.value is not None for metric in record.metrics
        ):
            found.setdefault(
                (record.test, record.label, record.workload_key, record.strategy), []
            ).append(record)
    return found


def _require_workload(text: str) -> None:
    try:
        call = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise UsageError(f"--workload {text!r} is no workload: {error.msg}. {_HOW}") from error
    known = (
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id in ("Decode", "Prefill")
    )
    if not known:
        raise UsageError(f"--workload {text!r} is no workload. {_HOW}")
