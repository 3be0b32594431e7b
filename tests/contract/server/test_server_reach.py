"""Ordinary servers are reached as they are, and what they say is shown where they are not."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time

import pytest
from support.stubs import STUB, stub_plan

from pytest_llmperf.engines import engine
from pytest_llmperf.engines.server.child import free_port
from pytest_llmperf.errors import LoadError
from pytest_llmperf.workloads import Decode, Serve

LOAD = Serve(concurrency=1, requests=2, prompt_tokens=4, max_new_tokens=5, timeout=0.3)
DECODE = Decode(batch=1, prompt_tokens=4, new_tokens=5)


@pytest.fixture
def at(start):
    """`at(*stub arguments, below="", **options)`: a client of a stub that runs already."""

    def call(*args: str, below: str = "", **options: str | float | bool):
        root = "/api" if "--root /api" in args else ""
        running = start(*args, health=f"{root}/v1/models", path=f"{root}/v1/completions")
        base = running._server.base
        return start(command="", url=base + below, **{"name": "tiny", **options})

    return call


@pytest.mark.parametrize("below", ["/v1", "/v1/", "/", ""])
def test_a_url_may_end_as_openais_client_wants_it(at, below):
    """With /v1, which is added where it is missing."""
    assert at(below=below).serve(LOAD, 0).trace.requests[0].failure is None


def test_a_server_may_be_below_a_path_and_have_requests_at_its_own(at):
    session = at("--root /api", below="/api/v1", path="/v3/complete")
    assert session.serve(LOAD, 0).trace.requests[0].failure is None


def test_a_server_without_a_path_of_health_is_healthy_where_it_lists_its_models(at):
    """Of a server that we did not start: another may not be ready yet."""
    assert at("--fault no-health").serve(LOAD, 0).trace.requests[0].failure is None


def test_a_refusal_for_good_is_told_within_seconds(start):
    """Not polled for the ten minutes that a start may take, and with what would help."""
    base = start()._server.base
    began_s = time.monotonic()
    with pytest.raises(
        LoadError, match=r"HTTP 404, again and again: and /v1/models is not there.*option 'health'"
    ):
        start(command="", url=f"{base}/elsewhere", start_timeout=600)
    assert time.monotonic() - began_s < 120


def test_fields_are_added_renamed_and_left_out(start):
    """A server that validates what it is sent is refused by it as it stands, with its words."""
    with pytest.raises(
        LoadError, match=r"not permitted: max_tokens, stream_options\. Options 'drop_fields'"
    ):
        start("--fault strict --first 1")
    session = start(
        "--fault strict --first 1",
        drop_fields="stream_options",
        rename_fields="max_tokens=max_completion_tokens",
        add_fields='{"top_k": 1}',
    )
    assert session.run(DECODE, 0).trace.requests[0].n_output_tokens == 5
    body = session._requests.of_batch(DECODE, 0)[0].body
    assert b'"top_k":1' in body
    assert b'"max_completion_tokens":5' in body


@pytest.mark.parametrize("ending", ["\n", "\r\n", "  \n"])
def test_a_key_from_a_file_may_have_its_line_end(start, monkeypatch, ending):
    monkeypatch.setenv("STUB_KEY", f"secret{ending}")
    assert start("--fault needs-key", api_key_env="STUB_KEY").serve(LOAD, 0).trace.requests


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": "http://localhost:1?x=1"}, "has a query or a fragment"),
        ({"url": "http://me:secret@localhost:1"}, "a user or a password in it"),
        ({"url": "http://localhost:99999"}, "an http or https URL is needed"),
        ({"path": "v3/complete"}, "a path begins with '/'"),
        ({"rename_fields": "max_tokens"}, "pairs of names are needed"),
        ({"add_fields": "top_k=1"}, "a JSON object is needed"),
        ({"ca_file": "/nowhere.pem"}, "cannot be read as certificates"),
        ({"api_key_env": "SPLIT_KEY"}, "a line break or another control character inside"),
        ({"timeout": 0}, "seconds above 0"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(model, monkeypatch, options, said):
    """Before anything is started, and without the password."""
    monkeypatch.setenv("SPLIT_KEY", "one\ntwo\n")
    plan = stub_plan(model)
    chosen = {"url": "http://localhost:1", **options}
    plan = type(plan)(model=plan.model, engine="server", options=tuple(chosen.items()))
    refusal = engine("server").load_capabilities().refusal(plan)
    assert said in refusal
    assert "secret" not in refusal


def test_the_servers_words_are_shown_where_a_200_is_an_error(start):
    with pytest.raises(LoadError, match="200 with an error: the model is \ufffd\\[31mloading"):
        start("--fault json-200 --first 1")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("pings", r"no message came for 0\.3 s, after \d+ messages"), ("endless", "has no end")],
)
def test_a_stream_without_an_end_fails_in_bounded_time(start, fault, reason):
    """Comments that keep a connection alive are no messages; messages without end are too many."""
    requests = start(f"--fault {fault} --first 2").serve(LOAD, 0).trace.requests
    assert [re.search(reason, request.failure) is not None for request in requests] == [True, True]


def test_the_first_token_may_take_as_long_as_the_user_says(start):
    """The first answer's deadline is that of the start, that of others is option 'timeout'."""
    session = start("--ttft-ms 600", start_timeout=20, timeout=0.2)
    with pytest.raises(Exception, match=r"no message came for 0\.2 s.*option 'timeout'"):
        session.run(DECODE, 0)


CERTIFICATE = (
    *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
    *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
)


@pytest.fixture
def tls_url(tmp_path):
    """A stub that speaks TLS with a certificate of its own (`tmp_path`/cert.pem)."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [*CERTIFICATE, "-out", str(certificate), "-keyout", str(key)],
        check=True,
        capture_output=True,
    )
    port = str(free_port())
    arguments = ["--port", port, "--model", "tiny", "--tls", str(certificate), str(key)]
    process = subprocess.Popen([sys.executable, str(STUB), *arguments])
    yield f"https://127.0.0.1:{port}"
    process.kill()
    process.wait()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_tls_is_spoken_and_a_certificate_that_is_not_trusted_is_named(start, tmp_path, tls_url):
    """With the option that would trust it, as soon as the server is there."""
    trusted = start(command="", url=tls_url, ca_file=str(tmp_path / "cert.pem"))
    assert trusted.serve(LOAD, 0).trace.requests[0].failure is None
    with pytest.raises(LoadError, match=r"TLS failed \(.*certificate.*option 'ca_file'"):
        start(command="", url=tls_url, start_timeout=600)
