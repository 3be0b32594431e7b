"""Several client processes: one load, dealt out and put together, as one client would send it."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from pytest_llmperf.core.metrics.serving import reduce_serving
from pytest_llmperf.engines.server.client import Call
from pytest_llmperf.engines.server.clients import several
from pytest_llmperf.engines.server.clients.job import ClientJob
from pytest_llmperf.engines.server.options import options_refusal
from pytest_llmperf.engines.server.presets import ANY
from pytest_llmperf.errors import UsageError, WorkerError
from pytest_llmperf.workloads import Conversations, Serve

OPEN = Serve(rate=20, requests=8, arrivals="constant", prompt_tokens=4, max_new_tokens=4, timeout=9)
CLOSED = Serve(concurrency=3, requests=8, prompt_tokens=4, max_new_tokens=4, timeout=9)
JOB = ClientJob(
    url="http://127.0.0.1:9/x", headers={}, protocol="openai-completions", timeout_s=1.0,
    ca_file="", planned=(),
)  # fmt: skip


@pytest.mark.parametrize("work", [OPEN, CLOSED], ids=["open", "closed"])
def test_two_processes_send_what_one_would(start, work):
    """Every request once, in order, when it is due; lengths and prompts are those of one client."""
    by_two = start("--token-ms 2", prompt_ids=True, client_processes=2).serve(work, 0).trace
    by_one = start("--token-ms 2", prompt_ids=True).serve(work, 0).trace
    for trace in (by_two, by_one):
        assert len(trace.requests) == 8
        assert {request.n_output_tokens for request in trace.requests} == {4}
        assert {request.n_prompt_tokens for request in trace.requests} == {4}
    if work is OPEN:
        due = [request.t_due_ns for request in by_two.requests]
        gaps = [(after - before) / 1e9 for before, after in pairwise(due)]
        assert gaps == pytest.approx([0.05] * 7, abs=1e-6)
    result = reduce_serving([by_two], work)
    assert result.n_failed == 0
    assert result.serving.in_flight_max <= 8


def test_requests_and_lines_are_dealt_out_in_turn():
    """No process has two more than another, and none has nothing to do."""
    calls = [Call(body=b"", n_prompt_tokens=1) for _ in range(7)]
    jobs = several.dealt(JOB, calls, (), 3, 5)
    assert [job.lines for job in jobs] == [1, 1, 1]
    assert [[planned.index for planned in job.planned] for job in jobs] == [
        [0, 3, 6], [1, 4], [2, 5],
    ]  # fmt: skip
    by_rate = several.dealt(JOB, calls, (0.0,) * 7, 0, 2)
    assert [(job.lines, len(job.planned)) for job in by_rate] == [(0, 4), (0, 3)]


def test_a_failed_request_is_data_of_its_process(start):
    """Its reason comes back."""
    session = start("--fault http-503 --first 4", prompt_ids=True, client_processes=2)
    requests = session.serve(CLOSED, 0).trace.requests
    assert any("503" in (request.failure or "") for request in requests)
    assert len(requests) == 8


def test_a_client_process_that_ends_is_an_error(monkeypatch):
    """Not a load with fewer requests."""
    monkeypatch.setattr(several, "_PROGRAM", ("-c", "import sys; sys.exit(3)"))
    calls = [Call(body=b"", n_prompt_tokens=1)]
    with pytest.raises(WorkerError, match="a client process ended"):
        asyncio.run(several.send(several.dealt(JOB, calls, (0.0,), 0, 1), calls))


def test_loads_that_are_not_known_beforehand_are_refused(start):
    """A duration of a closed loop, and conversations, whose answers decide what comes next."""
    session = start(prompt_ids=True, client_processes=2)
    endless = Serve(concurrency=2, duration=1, prompt_tokens=4, max_new_tokens=2)
    talks = Serve(conversations=Conversations.synthetic(1, turns=1), concurrency=1)
    for work in (endless, talks):
        with pytest.raises(UsageError, match="client_processes = 2"):
            session.serve(work, 0)


@pytest.mark.parametrize("n", [0, -1])
def test_no_process_is_none(n, model):
    """A whole number of at least one."""
    from support.stubs import stub_plan

    assert "client_processes" in (options_refusal(stub_plan(model, client_processes=n), ANY) or "")
