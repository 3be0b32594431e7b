"""Two servers side by side: what is fresh, what traffic gives, what they have in common."""

from __future__ import annotations

import pytest
import two_servers
from support.scripted_sides import SERVED, Servers

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.verdicts.judge import Outcome
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.session.processes.renewal import runs_by_itself, why_not_renewed

NOISE = "noise=0.01,correlation=0.5,process=0.01"
EQUAL, SLOWER = "ttft=50ms,tpot=10ms", "ttft=50ms,tpot=11ms"


def plan(**options: str) -> LoadPlan:
    return LoadPlan(
        model=model_ref("smollm2-135m"), engine="server", options=tuple(options.items())
    )


def test_a_server_at_a_url_is_no_fresh_one_unless_a_command_restarts_it():
    """Its pairs are of the same two processes, whatever became of our client's worker."""
    assert runs_by_itself(plan(url="http://h"))
    assert not runs_by_itself(plan(url="http://h", restart="systemctl restart vllm"))
    assert not runs_by_itself(plan(command="x {port}"))
    why = why_not_renewed([plan(url="http://h")], adopted=lambda _: False)
    assert "cannot be started anew (without option 'restart')" in why


def test_urls_are_compared_as_two_processes(session, monkeypatch):
    """No worker that is new makes the server new: Session.renew says so."""
    ours = session()
    monkeypatch.setattr(ours.pool, "renew", lambda _: True)

    class One:
        def __init__(self, of: LoadPlan) -> None:
            self.plan = of

    assert ours.renew([One(plan(command="x {port}"))])
    assert not ours.renew([One(plan(command="x {port}")), One(plan(url="http://h"))])


@pytest.mark.parametrize("work", SERVED, ids=["decode", "open loop", "closed loop"])
def test_slower_tokens_fail_and_equal_ones_pass(compared, work):
    """A batch, traffic at a rate (by its latency) and on lines (by its throughput)."""
    slower, equal = Servers(work, SLOWER, EQUAL, NOISE), Servers(work, EQUAL, EQUAL, NOISE)
    _, (failed,), _, raised = compared(*slower.scripts(1), work=work)
    assert (failed.outcome, raised is not None) == (Outcome.FAIL, True)
    record, (passed,), _, raised = compared(*equal.scripts(2), work=work)
    assert (passed.outcome, raised) == (Outcome.PASS, None)
    metric = "latency.p50" if getattr(work, "rate", None) else "throughput"
    assert set(record.extra["against"]["metrics"]) == {metric}


def test_engines_that_are_no_servers_are_not_compared_with_one(compared):
    """They would be measured against themselves."""
    _record, (finding,), base, _ = compared(EQUAL, EQUAL, kind="server")
    assert finding.outcome is Outcome.NOT_COMPARABLE
    assert "the base is another server, and engine scripted is none" in finding.text
    assert not base.commands


@pytest.mark.parametrize("work", SERVED[1:], ids=["open loop", "closed loop"])
def test_equal_servers_never_fail_and_slower_ones_do(work, tmp_path):
    """A small form of `benchmarks/two_servers.py`: servers differ by 1 % from start to start."""
    found = two_servers.find(work, NOISE, 2, tmp_path)
    assert found.met
    assert not two_servers.Found(found.slower, found.equal).met
