"""Twelve shapes of streams: the client's times are those that the server kept by its own clock.

The clock is virtual and stands still until the client has read: no time is waited for. With real
clocks, in two processes, `benchmarks/server_shapes.py` asks the same.
"""

from __future__ import annotations

import asyncio

import pytest
from support.shaped_stub import N_TOKENS, SHAPES, ShapedStub, VirtualClock

from pytest_llmperf.core.metrics.request_times import NOT_TIMED
from pytest_llmperf.core.metrics.results import RunResult
from pytest_llmperf.core.metrics.serving import ServingTrace, reduce_serving
from pytest_llmperf.engines.server import client as clients
from pytest_llmperf.engines.server.engine import stream_headers
from pytest_llmperf.engines.server.messages.bounds import Bounds
from pytest_llmperf.engines.server.messages.protocols import parse_openai, parse_tgi
from pytest_llmperf.engines.server.starting.connecting import connections
from pytest_llmperf.errors import NoRequestSucceeded
from pytest_llmperf.workloads import Serve

N_REQUESTS = 3
NOT_MEASURED = {"bundles": NOT_TIMED, "one message": NOT_TIMED}
"""Shapes of which nobody can know the mean time of a token, with the reason that is given."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualClock:
    """A clock that knows how much the client has read."""
    clock = VirtualClock()
    exceeded = Bounds.exceeded

    def counted(self, t_ns: int, data: bytes) -> bool:
        clock.n_read += len(data)
        return exceeded(self, t_ns, data)

    monkeypatch.setattr(Bounds, "exceeded", counted)
    return clock


def loaded(stub: ShapedStub) -> RunResult:
    """What the client makes of three requests, one after the other."""

    async def load() -> clients.ClientRun:
        server = await asyncio.start_server(stub.connection, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        parse = parse_tgi if stub.shape.tgi else parse_openai
        endpoint = clients.Endpoint(url, stream_headers(), parse)
        async with server, connections(10) as session:
            client = clients.Client(endpoint, session, now_ns=stub.clock.now_ns)
            call = clients.Call(body=b"{}", n_prompt_tokens=4, n_output_tokens=N_TOKENS)
            return await client.closed_loop(lambda _: call, 1, requests=N_REQUESTS, duration_s=None)

    run = asyncio.run(load())
    trace = ServingTrace(requests=tuple(outcome.trace() for outcome in run.outcomes))
    return reduce_serving([trace], Serve(concurrency=1, requests=N_REQUESTS))


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "gzip all the same"])
def test_the_clients_times_are_the_servers_own_or_are_marked(clock, name):
    stub = ShapedStub(SHAPES[name], clock)
    run = loaded(stub)
    first, last = stub.kept[0], stub.kept[-1]
    duration_s = (last.tokens_ns[-1] - first.came_ns) / 1e9
    assert len(stub.kept) == N_REQUESTS
    assert float(run.ttft.max) == pytest.approx(first.ttft_s)
    assert float(run.latency.max) == pytest.approx(first.latency_s)
    assert float(run.throughput) == pytest.approx(N_REQUESTS * N_TOKENS / duration_s)
    if name in NOT_MEASURED:
        assert run.tpot.reason == NOT_MEASURED[name]
    else:
        assert float(run.tpot.max) == pytest.approx(first.tpot_s)


def test_a_server_that_compresses_all_the_same_is_told_so(clock):
    with pytest.raises(NoRequestSucceeded, match=r"compressed \(Content-Encoding: gzip\) although"):
        loaded(ShapedStub(SHAPES["gzip all the same"], clock))
