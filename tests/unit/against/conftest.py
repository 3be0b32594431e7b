"""Side by side without a process, through the real comparison.

A session and a base of scripted models are on virtual clocks.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from support.scripted_sides import TEST, WORK, LocalSession, ScriptedBase, session_model

from pytest_llmperf.against.comparison import Comparison
from pytest_llmperf.core.verdicts.judge import claims
from pytest_llmperf.gate.gate import Regression
from pytest_llmperf.session.judges import Measurement
from pytest_llmperf.settings.options import OPTIONS
from pytest_llmperf.settings.settings import read
from pytest_llmperf.worker.host import Host
from pytest_llmperf.workers import this_host
from pytest_llmperf.workers.in_process import InProcess


@pytest.fixture(autouse=True)
def no_leases(monkeypatch):
    """Nobody else's measuring is waited for: clocks are virtual."""
    monkeypatch.setattr(this_host, "exclusive", lambda *_, **__: nullcontext())


@pytest.fixture
def session(tmp_path):
    """`session(**options)` is a session with these options that keeps no history."""

    def make(**options: str) -> LocalSession:
        values = {
            "store": "none",
            "budget": "2",
            **{name.replace("_", "-"): value for name, value in options.items()},
        }
        raw = {
            o.name: values.get(o.name, [] if o.many else False if o.flag else o.default)
            for o in OPTIONS
        }
        return LocalSession(read(lambda option: raw[option.name], tmp_path), lambda *_: None)

    return make


@pytest.fixture
def compared(session, tmp_path):
    """`compared(here, there)` makes one comparison.

    It gives its record, findings and base, and the error that it ended with.
    """

    def run(
        here: str,
        there: str,
        *,
        errors: list[Exception] | None = None,
        limits=None,
        planned: int = 1,
        work=WORK,
        kind="folder",
        **options: str,
    ):
        ours = session(**options)
        base = ScriptedBase(session(), there, folder=tmp_path, errors=errors, work=work, kind=kind)
        comparison = Comparison(base, ours)
        comparison.planned_tests = planned
        comparison.begin(TEST, None)
        model, raised = session_model(ours, here), None
        ours.recorder.begin(TEST, "")
        (record,) = ours.recorder.add(ours._sample([model], work))
        measurement = Measurement(models=[model], workload=work, again=list)
        with claims() as findings:
            try:
                comparison.judge([record], limits or {}, measurement)
            except Regression as error:
                raised = error
        return ours.recorder.records[record.id], findings, base, raised

    return run


@pytest.fixture
def opened(monkeypatch):
    """The models that workers were started for, in their order."""
    started: list[str] = []

    def start(_, plan):
        started.append(plan.model.location)
        return InProcess(Host())

    monkeypatch.setattr(LocalSession, "_start_worker", start)
    return started
