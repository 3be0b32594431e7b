"""The client against a stub: what it sends when, a client that is too slow, a server that is.

And servers in a project.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
from support.stubs import stub_command, write_model

from pytest_llmperf.core.metrics.serving import ServingTrace, client_mark, reduce_serving
from pytest_llmperf.core.verdicts.judge import Outcome, claims
from pytest_llmperf.engines.server.client import Call, Client, Endpoint
from pytest_llmperf.engines.server.prompts import Prompts
from pytest_llmperf.engines.server.starting.connecting import connections
from pytest_llmperf.engines.server.stream import parse_openai
from pytest_llmperf.errors import UsageError
from pytest_llmperf.workloads import PromptSet, Serve, Traffic


def reduced(served, *, open_loop=True, ramp_up=0.0):
    work = Serve(
        rate=1 if open_loop else None,
        concurrency=None if open_loop else 1,
        requests=1,
        ramp_up=ramp_up,
    )
    return reduce_serving([served.trace], work)


def test_an_open_loop_sends_each_request_when_it_is_due_whatever_became_of_the_others(start):
    """The server holds each for 300 ms and they are due every 20 ms.

    None is sent before it is due.
    """
    session = start("--ttft-ms 300")
    requests = session.serve(
        Serve(rate=50, arrivals="constant", requests=10, prompt_tokens=4, max_new_tokens=3),
        0,
    ).trace.requests
    due = [r.t_due_ns - requests[0].t_due_ns for r in requests]
    assert due == [20_000_000 * i for i in range(10)]
    assert all(r.t_sent_ns >= r.t_due_ns for r in requests)
    assert all(r.events[0].t_ns - r.t_sent_ns >= 300e6 for r in requests)
    assert [r.n_output_tokens for r in requests] == [3] * 10


def test_a_closed_loop_keeps_its_lines_busy_and_no_more(start):
    """Never more in flight than lines; the next is due when the last is over."""
    served = start("--ttft-ms 5").serve(
        Serve(concurrency=3, requests=12, prompt_tokens=4, max_new_tokens=3), 0
    )
    run = reduced(served, open_loop=False)
    assert run.serving.in_flight_max == 3
    assert len(served.trace.requests) == 12
    ends = {r.t_end_ns for r in served.trace.requests}
    assert all(r.t_due_ns in ends for r in served.trace.requests[3:])


ANSWER = b'data: {"choices": [{"text": "a", "finish_reason": "length"}]}\n\ndata: [DONE]\n\n'


def test_a_server_that_closes_all_its_idle_connections_fails_no_request():
    """Four connections wait, each of which the server closes at its second request.

    That request goes over a fifth.
    """
    opened = 0

    async def once(reader, writer):
        nonlocal opened
        opened += 1
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length:")[1].split()[0]))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER))
        await reader.read(1)
        writer.close()

    async def load() -> list[str | None]:
        server = await asyncio.start_server(once, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/completions"
        async with server, connections(10) as session:
            client = Client(Endpoint(url, {}, parse_openai), session)
            call = Call(body=b"{}", n_prompt_tokens=1)
            outcomes = [*await client.together([call] * 4), *await client.together([call])]
        return [outcome.failure for outcome in outcomes]

    assert asyncio.run(load()) == [None] * 5
    assert opened == 5


def test_a_request_that_a_server_saw_and_dropped_is_a_failure_and_not_sent_again():
    """Each second one breaks after 80 ms, on a connection that served another before."""
    heads = 0

    async def drops(reader, writer):
        nonlocal heads
        for number in range(2):
            head = await reader.readuntil(b"\r\n\r\n")
            heads += 1
            await reader.readexactly(int(head.lower().split(b"content-length:")[1].split()[0]))
            if number:
                await asyncio.sleep(0.08)
            else:
                answer = (len(ANSWER), ANSWER)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % answer)
        writer.close()

    async def load() -> list[str | None]:
        server = await asyncio.start_server(drops, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/completions"
        async with server, connections(10) as session:
            client = Client(Endpoint(url, {}, parse_openai), session)
            call = Call(body=b"{}", n_prompt_tokens=1)
            outcomes = [*await client.together([call]), *await client.together([call])]
        return [outcome.failure for outcome in outcomes]

    first, second = asyncio.run(load())
    assert first is None
    assert second is not None
    assert "the stream broke after 0 pieces" in second
    assert heads == 2


def test_an_answer_ends_with_its_last_line_though_the_connection_stays_open():
    """The next request need not wait for a server that keeps its sockets."""

    async def hangs(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + ANSWER)
        await writer.drain()
        await reader.read()  # until the client hangs up
        writer.close()

    async def load() -> list[str | None]:
        server = await asyncio.start_server(hangs, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/completions"
        async with connections(2) as session:
            client = Client(Endpoint(url, {}, parse_openai), session)
            (outcome,) = await client.together([Call(body=b"{}", n_prompt_tokens=1)])
        server.close()
        return [outcome.failure]

    assert asyncio.run(load()) == [None]


def test_a_trace_is_played_with_its_lengths(start):
    """Prompt and output lengths of each request."""
    traffic = Traffic(
        name="t", timestamps_s=(0.0, 0.01, 0.02), prompt_tokens=(3, 4, 5), output_tokens=(2, 3, 4)
    )
    requests = start().serve(Serve(traffic=traffic), 0).trace.requests
    assert [(r.n_prompt_tokens, r.n_output_tokens) for r in requests] == [(3, 2), (4, 3), (5, 4)]


def test_fifty_milliseconds_of_sleep_a_token_are_found(start):
    """The claim fails on that server.

    On one that sleeps for one the same claim about half of it holds the other way round.
    """
    work = Serve(concurrency=4, requests=40, prompt_tokens=4, max_new_tokens=5)
    with claims(strict=False) as findings:
        slow = reduced(start("--token-ms 50").serve(work, 0), open_loop=False)
        assert not (slow.tpot.p50 <= 0.04)
        fast = reduced(start("--token-ms 1").serve(work, 0), open_loop=False)
        assert fast.tpot.p50 <= 0.04
    assert [finding.outcome for finding in findings] == [Outcome.FAIL, Outcome.PASS]


def test_a_client_that_is_slowed_until_it_is_the_limit_is_marked(start):
    """Its event loop is held for 30 ms for each message: timers ring late."""
    session = start()

    def slow(data):
        time.sleep(0.03)
        return parse_openai(data)

    session._requests.protocol = replace(session._requests.protocol, parse=slow)
    served = session.serve(Serve(concurrency=2, requests=6, prompt_tokens=4, max_new_tokens=3), 0)
    mark = client_mark(
        ServingTrace(requests=served.trace.requests, loop_lag_s=served.trace.loop_lag_s), 0.0
    )
    assert mark is not None
    assert "the client" in mark.detail


def test_bundled_messages_are_counted_as_tokens(start):
    """Four tokens a message: the same total, fewer events."""
    (request,) = (
        start("--bundle 4")
        .serve(Serve(concurrency=1, requests=1, prompt_tokens=4, max_new_tokens=8), 0)
        .trace.requests
    )
    assert request.n_output_tokens == 8
    assert len(request.events) == 2


def test_a_refused_connection_is_a_failure_not_an_exception():
    """Nothing listens on port 9 of the loopback."""

    async def once():
        from pytest_llmperf.engines.server.client import Call
        from pytest_llmperf.engines.server.starting.connecting import connections

        async with connections(1.0) as http:
            client = Client(Endpoint("http://127.0.0.1:9/v1/completions", {}, parse_openai), http)
            return await client.together([Call(body=b"{}", n_prompt_tokens=1)])

    (outcome,) = asyncio.run(once())
    assert "the connection was refused" in outcome.failure


def test_no_prompt_comes_twice(model):
    """Drawn ones, and texts that come round; with `repeat` texts do."""
    from tokenizers import Tokenizer

    prompts = Prompts(Tokenizer.from_file(str(model / "tokenizer.json")))
    texts = PromptSet(name="t", texts=("w1 w2", "w3 w4"))
    for each, length in ((PromptSet.synthetic(1), 8), (texts, 8), (texts, None)):
        made = [
            prompts.prompt(each, length, repetition, i).text
            for repetition in range(3)
            for i in range(5)
        ]
        assert len(set(made)) == len(made), each
    assert prompts.prompt(texts, None, 0, 2, repeat=True).text == "w1 w2"
    assert len(prompts.prompt(PromptSet.synthetic(1), 8, 0, 0).ids) == 8
    with pytest.raises(UsageError, match="option 'tokenizer'"):
        Prompts(None).prompt(PromptSet.synthetic(1), 8, 0, 0)


PROJECT = """
import pytest
from pytest_llmperf import Serve

def served(*args):
    options = {{"command": "{command} " + " ".join(args), "name": "tiny"}}
    return pytest.mark.llmperf(model="{model}", engine="server", options=options)

WORK = Serve(concurrency=1, requests=4, prompt_tokens=4, max_new_tokens=3)

@served()
@pytest.mark.llmperf(strategy="bf16")
def test_precision_is_not_shown(llm):
    llm.run(WORK)

@served("--dtype float16")
@pytest.mark.llmperf(strategy="bf16")
def test_precision_is_another(llm):
    llm.run(WORK)

@served("--fault other-model --first 4")
def test_somebody_else_answers(llm):
    llm.run(WORK)

@served("--fault dies-at-start")
def test_dies(llm):
    llm.run(WORK)
"""


def test_servers_in_a_project_are_errors_where_they_are_not_what_was_asked_for(pytester, tmp_path):
    """Each with its reason, in one session; nothing is left running."""
    pytester.makepyfile(test_it=PROJECT.format(model=write_model(tmp_path), command=stub_command()))
    result = pytester.runpytest_subprocess(
        "-p",
        "no:cacheprovider",
        "--llmperf-store=none",
        "--llmperf-allow-load",
        f"--basetemp={tmp_path}/base",
    )
    result.assert_outcomes(errors=4)
    result.stdout.fnmatch_lines_random(
        [
            "E*NotInEffect: strategy 'bf16' is not in effect: the server does not say its dtype*",
            (
                "E*NotInEffect: strategy 'bf16' is not in effect: "
                "the dtype that the server says is float16, asked for bfloat16*"
            ),
            "E*NotInEffect: asked 'tiny', and 'somebody-else' answered*",
            (
                "E*LoadError: the server died before it was healthy: "
                "the server ended with exit code 3*"
            ),
        ],
    )
