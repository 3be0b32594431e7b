"""Servers that misbehave, as real processes: in start-up, in a run, and at their end."""

from __future__ import annotations

import os
import re
import time

import psutil
import pytest
from support.stubs import stub_plan

from pytest_llmperf.engines import engine
from pytest_llmperf.engines.server.engine import ServerEngine
from pytest_llmperf.errors import InvalidRun, LoadError, NotInEffect, UsageError, WorkerError
from pytest_llmperf.workloads import Decode, Serve

LOAD = Serve(concurrency=1, requests=6, prompt_tokens=4, max_new_tokens=5, timeout=0.5)


def test_a_server_that_dies_in_start_up_fails_at_once_with_its_log(start):
    """Within five seconds, whatever the time it was given."""
    began_s = time.monotonic()
    with pytest.raises(
        LoadError, match=r"(?s)died before it was healthy: .*exit code 3.*cannot find libcuda\.so"
    ):
        start("--fault dies-at-start", start_timeout=600)
    assert time.monotonic() - began_s < 5


def test_a_server_that_never_gets_healthy_is_given_up_and_ended(start, tmp_path, pids):
    """With what it answered last."""
    with pytest.raises(LoadError, match=r"not healthy within 0\.8 s .*HTTP 503.*start_timeout"):
        start(f"--fault never-healthy --pid-file {tmp_path}/pids.json", start_timeout=0.8)
    assert not psutil.pid_exists(pids()[0])


def test_a_server_that_dies_in_a_run_is_an_error_with_its_log(start):
    """Not a run of failed requests."""
    session = start("--fault die --first 4")
    with pytest.raises(
        WorkerError, match=r"(?s)died in the run: .*exit code 7.*\ufffd\[31mout of luck"
    ):
        session.serve(LOAD, 0)


def test_a_server_whose_process_outlives_its_sockets_died_too(start):
    """A server that gives its memory back refuses every request long before its process is gone."""
    session = start("--fault die-slowly --first 4")
    with pytest.raises(WorkerError, match=r"died in the run: .*exit code 7"):
        session.serve(LOAD, 0)


@pytest.mark.parametrize("fault", ["ignores-sigterm", "grandchild"])
def test_closing_ends_a_server_that_ignores_sigterm_and_what_left_its_group(
    start, tmp_path, pids, fault
):
    """The grandchild is in a session of its own; it carries the token."""
    session = start(f"--fault {fault} --pid-file {tmp_path}/pids.json")
    processes = [psutil.Process(pid) for pid in pids()]
    assert len(processes) == (2 if fault == "grandchild" else 1)
    session.close()
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert alive == []


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("break", "the stream broke after"),
        ("stall", r"no message came for 0\.5 s"),
        ("bad-json", "is not what the protocol says"),
        ("error", "the server sent an error: out of blocks"),
        ("http-429", r"HTTP 429 \(too many requests\): come back later"),
        ("http-503", r"HTTP 503 \(unavailable\)"),
        ("redirect", "HTTP 307"),
    ],
)
def test_a_request_that_fails_is_data_with_its_reason(start, fault, reason):
    """The first four answers (a probe and three of the load) are good, the other three failed."""
    session = start(f"--fault {fault} --first 5")
    requests = session.serve(LOAD, 0).trace.requests
    assert [r.failure is None for r in requests] == [True] * 3 + [False] * 3
    assert all(re.search(reason, r.failure) for r in requests[3:])


def test_an_offline_batch_of_which_a_request_fails_is_invalid(start):
    """It has no throughput without it."""
    with pytest.raises(InvalidRun, match="1 of 2 requests failed: HTTP 503"):
        start("--fault http-503 --first 3").run(Decode(batch=2, prompt_tokens=4, new_tokens=5), 0)


@pytest.mark.parametrize(
    ("fault", "said"),
    [("counts-more", "counted 15"), ("counts-less", r"counted \d+ output tokens, .* makes")],
)
def test_token_counts_that_cannot_be_right_are_marked(start, fault, said):
    """More than were asked for, or fewer than the text has.

    The same server without the fault has no such mark.
    """
    marks = start(f"--fault {fault} --first 2").serve(LOAD, 0).marks
    assert any(re.search(said, mark.detail) for mark in marks if mark.kind == "token-counts")
    honest = start("--first 2").serve(LOAD, 0).marks
    assert not [mark for mark in honest if mark.kind == "token-counts"]


def test_another_model_is_an_error(start):
    """In the list of models, or in an answer."""
    with pytest.raises(LoadError, match=r"does not serve 'large'\. It serves: tiny"):
        start(name="large")
    session = start("--fault other-model --first 3")
    with pytest.raises(NotInEffect, match="asked 'tiny', and 'somebody-else' answered"):
        session.serve(LOAD, 0)


def test_a_missing_key_is_refused_before_and_a_wrong_one_when_it_answers(start, model, monkeypatch):
    """The variable is not set; then the key is sent, and is in nothing that is recorded."""
    plan = stub_plan(model, "--fault needs-key", api_key_env="STUB_KEY")
    assert "STUB_KEY" in engine("server").load_capabilities().refusal(plan)
    with pytest.raises(LoadError, match=r"HTTP 401 \(the API key is missing or wrong\)"):
        start("--fault needs-key")
    monkeypatch.setenv("STUB_KEY", "secret")
    session = start("--fault needs-key", api_key_env="STUB_KEY")
    assert "secret" not in repr(session.opened())


def test_a_key_on_the_command_line_of_a_server_is_in_nothing_that_is_recorded(start):
    """The rest of the command is: what the server was started with."""
    opened = repr(start("--api-key c4n4ry --token-ms 1").opened())
    assert "--api-key ***" in opened
    assert "--token-ms 1" in opened
    assert "c4n4ry" not in opened


def test_a_prefix_cache_that_hits_is_invalid_unless_it_was_asked_for(start):
    """The stub counts a prompt that it has seen as a hit.

    Prompts are sent again only where that is allowed.
    """
    session = start()
    assert session.serve(LOAD, 0).trace.server["prefix_hit_share"] == 0
    with pytest.raises(
        InvalidRun, match=r"prefix cache hit 100% of the prompt tokens.*prefix_cache=True"
    ):
        session.serve(LOAD, 0)  # the same repetition again: the same prompts
    allowed = Serve(concurrency=1, requests=6, prompt_tokens=4, max_new_tokens=5, prefix_cache=True)
    assert session.serve(allowed, 0).trace.server["prefix_hit_share"] == 1


def test_preemptions_are_counted_over_the_run(start):
    """Those before it are not its own."""
    assert start("--fault preempt --first 3").serve(LOAD, 0).trace.server["preemptions"] == 5


def test_a_precision_is_what_the_server_says(model):
    """Shown, it is in the description; not shown, the promise breaks (see test_server_plugin)."""
    said = ServerEngine().open(stub_plan(model, "--dtype bfloat16"))
    assert said.opened().effective.reported_dtype == "bfloat16"
    said.close()
    silent = ServerEngine().open(stub_plan(model))
    assert silent.opened().effective.reported_dtype == ""
    silent.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "which server"),
        ({"command": "serve"}, "has no {port}"),
        ({"command": "serve {port}", "url": "http://localhost:1"}, "exclude each other"),
        ({"url": "localhost:8000"}, "an http or https URL is needed"),
        ({"url": "http://localhost:1", "protokol": "tgi"}, "Did you mean 'protocol'"),
        ({"url": "http://localhost:1", "protocol": "grpc"}, "Protocols: openai-completions"),
        ({"url": "http://localhost:1", "start_timeout": 0}, "seconds above 0"),
        ({"url": "http://localhost:1", "prompt_ids": "yes"}, "bool is needed"),
    ],
)
def test_options_that_mean_nothing_are_refused(model, options, said):
    """Before anything is started."""
    plan = stub_plan(model)
    plan = type(plan)(model=plan.model, engine="server", options=tuple(options.items()))
    assert said in engine("server").load_capabilities().refusal(plan)


def test_a_program_that_is_not_there_is_named(start, model):
    """The command of the user, and that of a preset."""
    with pytest.raises(UsageError, match="'no-such-server' cannot be run"):
        start(command="no-such-server --port {port}")
    with pytest.raises(UsageError, match="LLMPERF_SERVER_TGI"):
        ServerEngine().open(
            type(stub_plan(model))(model=stub_plan(model).model, engine="server:tgi")
        )


def test_tgis_protocol_is_spoken(start):
    """Its info names model and dtype; one token a message."""
    session = start("--protocol tgi --dtype float16", protocol="tgi")
    assert session.opened().effective.reported_dtype == "float16"
    ran = session.run(Decode(batch=2, prompt_tokens=4, new_tokens=5), 0)
    assert [r.n_output_tokens for r in ran.trace.requests] == [5, 5]


def test_chat_is_spoken(start):
    """The role comes first and is no token."""
    ran = start(protocol="openai-chat").run(Decode(prompt_tokens=4, new_tokens=5), 0)
    assert [r.n_output_tokens for r in ran.trace.requests] == [5]


def test_a_url_that_runs_already_is_used_and_left_alone(start, tmp_path, pids):
    """Closing the client's session does not end the server."""
    server = start(f"--pid-file {tmp_path}/pids.json")
    client = start(command="", url=server._server.base)
    assert client.serve(LOAD, 0).trace.requests[0].failure is None
    client.close()
    assert os.path.exists(f"/proc/{pids()[0]}")  # noqa: PTH110
