"""A session with judges and stand-ins of our own: scripted models in this process, no pytest."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from pytest_llmperf.core.metrics.results import RunResult
from pytest_llmperf.errors import InvalidRun, NoRequestSucceeded
from pytest_llmperf.session.model import Model
from pytest_llmperf.session.rate_search import search
from pytest_llmperf.session.session import LlmperfSession
from pytest_llmperf.settings.options import OPTIONS
from pytest_llmperf.settings.settings import read
from pytest_llmperf.testing import scripted_plan
from pytest_llmperf.wire.messages import Failure
from pytest_llmperf.worker.host import Host
from pytest_llmperf.workers import this_host
from pytest_llmperf.workers.exchange import is_answer
from pytest_llmperf.workers.in_process import InProcess
from pytest_llmperf.workloads import Decode, Serve, Slo

WORK = Decode(batch=1, prompt_tokens=8, new_tokens=11)
TRAFFIC = Serve(concurrency=2, requests=4, prompt_tokens=4, max_new_tokens=3)


class InProcessSession(LlmperfSession):
    """A session whose workers are hosts in this process."""

    def _start_worker(self, plan) -> InProcess:  # noqa: ARG002
        return InProcess(Host())


class Remembering:
    """Judges nothing, and remembers what it was asked to judge."""

    def __init__(self, *, measures_again: bool = False) -> None:
        self.judged = []
        self._measures_again = measures_again

    def judge(self, records, own_limits, again) -> None:  # noqa: ARG002 - as Judge
        self.judged.append((records, again.workload, again.models))
        if self._measures_again:
            self.judged.append((again(), again.workload, again.models))


@pytest.fixture
def session(tmp_path, monkeypatch):
    """Gives a session that keeps no history, while a test of it runs."""
    monkeypatch.setattr(this_host, "exclusive", lambda *_, **__: nullcontext())
    values = {option.name: _default(option) for option in OPTIONS}
    values |= {"store": "none", "budget": "1"}
    settings = read(lambda option: values[option.name], tmp_path)
    in_process = InProcessSession(settings, lambda *_: None)
    in_process.recorder.begin("test_it.py::test_speed", "")
    return in_process


def _default(option):
    if option.many:
        return []
    return False if option.flag else option.default


def test_every_judge_sees_the_records_the_work_and_the_models(session):
    """They are called in their order, each with one record a model."""
    session.judges += [Remembering(), Remembering()]
    model = Model(session, scripted_plan("seed=1"))
    model.run(WORK)
    for judge in session.judges:
        ((records, workload, models),) = judge.judged
        assert [record.strategy for record in records] == [model.strategy]
        assert (workload, list(models)) == (WORK, [model])


@pytest.mark.parametrize("work", [WORK, TRAFFIC], ids=["workload", "traffic"])
def test_a_judge_can_have_it_measured_again(session, work):
    """Workloads and traffic alike: the second record says that it is a second attempt."""
    judge = Remembering(measures_again=True)
    session.judges.append(judge)
    Model(session, scripted_plan("seed=1")).run(work)
    (first,), (second,) = (records for records, _, _ in judge.judged)
    assert (first.extra.get("attempt"), second.extra["attempt"]) == (None, 2)
    assert first.workload_key == second.workload_key


def test_a_stand_in_measures_in_the_place_of_the_session(session):
    """Nothing is recorded and nothing is judged here."""

    class StandIn:
        def measure(self, models, workload):  # noqa: ARG002
            return [RunResult.unmeasured("elsewhere") for _ in models]

    judge = Remembering()
    session.judges.append(judge)
    session.stand_in = StandIn()
    result = Model(session, scripted_plan("seed=1")).run(WORK)
    assert result.throughput.reason == "elsewhere"
    assert (judge.judged, session.recorder.records) == ([], {})


def test_a_rate_at_which_no_request_succeeds_is_one_that_is_not_kept():
    """Any other invalid run ends the search."""
    load = Serve(rate=1.0, requests=5, slo=Slo(ttft=0.2))

    def overwhelmed(_work):
        raise NoRequestSucceeded("no request of 5 succeeded: HTTP 503 (5 times).")

    def unstable(_work):
        raise InvalidRun("0 of 3 runs of the load are valid")

    searched = search(overwhelmed, load, start=1.0, attainment=0.99, within=0.5)
    assert searched.highest is None
    assert "HTTP 503" in searched.probes[0].why
    with pytest.raises(InvalidRun, match="0 of 3 runs"):
        search(unstable, load, start=1.0, attainment=0.99, within=0.5)


@pytest.mark.parametrize("kind", ["InvalidRun", "NoRequestSucceeded"])
def test_an_invalid_run_of_any_kind_leaves_its_worker_usable(kind):
    """So a base side whose block was not valid can measure another."""
    assert is_answer(Failure(kind=kind, message="no request of 5 succeeded", traceback=""))
