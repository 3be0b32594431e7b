"""Other projects' load generators behind Serve.

They are recorded result files of real runs, and programs that fail.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace
from support.stubs import stub_command, write_model

from pytest_llmperf.core.metrics.request_times import tpot_s
from pytest_llmperf.core.metrics.serving import ServingTrace, reduce_serving
from pytest_llmperf.core.verdicts.estimate import NotMeasurable
from pytest_llmperf.engines.server.generators import (
    GENERATORS,
    aiperf,
    environment,
    find_generator,
    generate,
    guidellm,
    version_of,
)
from pytest_llmperf.engines.server.generators.job import Job
from pytest_llmperf.errors import InvalidRun, UsageError
from pytest_llmperf.session.serving import generator_program
from pytest_llmperf.workloads import Serve, Traffic, describe_serve, recorded_serve

RECORDED = Path(__file__).with_name("recorded")
"""Runs of eight requests against the stub of these tests, on a busy machine.

The stub had --ttft-ms 50 --token-ms 5.
"""
LINES = Serve(concurrency=2, requests=6, prompt_tokens=4, max_new_tokens=5, generator="aiperf")


@pytest.fixture
def program(tmp_path):
    """`program(name, text)` writes an executable Python program and gives its path."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!{sys.executable}\n{text}")
        path.chmod(0o755)
        return path

    return write


WRITES = """
import json, os
os.mkdir("out")
rows = [json.loads(line) for line in open("input.jsonl")][:{keep}]
with open("out/profile_export.jsonl", "w") as file:
    for i, row in enumerate(rows):
        start = 10**18 + i * 10**8
        metadata = dict(
            request_start_ns=start,
            credit_issued_ns=start - 10**6,
            request_end_ns=start + 9 * 10**7,
        )
        metrics = dict(
            output_sequence_length=dict(value=row["payload"]["max_tokens"]),
            input_sequence_length=dict(value=4),
            time_to_first_token=dict(value=50.0),
            inter_chunk_latency=dict(value=[10.0] * 4),
        )
        error = dict(message="HTTP 500") if i == {fails} else None
        row = dict(metadata=metadata, metrics=metrics, error=error)
        file.write(json.dumps(row) + "\\n")
"""


def test_what_a_generator_kept_is_reduced_by_our_definitions(start, program):
    """TTFT counts from when the request was due; a request that failed is data.

    The generator is named with what it measured.
    """
    served = start().serve(LINES, 0, str(program("aiperf", WRITES.format(keep=6, fails=1))))
    run = reduce_serving([served.trace], LINES)
    assert (run.n_requests, run.n_failed) == (6, 1)
    assert run.serving.failures == {"HTTP 500": 1}
    assert run.ttft.p50.value == pytest.approx(0.051)
    assert run.itl.p50.value == pytest.approx(0.01)
    assert run.serving.generator == "aiperf"
    assert run.serving.notes()[0] == "its requests were sent by aiperf"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "import sys; print('no such model'); sys.exit(3)",
            r"(?s)aiperf ended with exit code 3.*no such model",
        ),
        ("", "what aiperf left cannot be read"),
        (WRITES.format(keep=2, fails=-1), "aiperf kept 2 of 6 requests"),
    ],
)
def test_a_generator_that_fails_is_no_result(start, program, text, said):
    """With the end of its log."""
    with pytest.raises(InvalidRun, match=said):
        start().serve(LINES, 0, str(program("aiperf", text)))


def test_a_generator_is_looked_for_before_anything_is_loaded(program):
    """Beside the interpreter that is named; without one, beside this one and on the path."""
    work = Serve(rate=2, requests=3, generator="guidellm")
    beside = program("guidellm", "")
    assert generator_program(
        "server:vllm", work, {"guidellm": str(beside.with_name("python"))}
    ) == str(beside)
    assert generator_program("server:vllm", replace(work, generator=""), {}) == ""
    with pytest.raises(
        UsageError, match=r"no guidellm beside that interpreter.*pip install guidellm"
    ):
        find_generator("guidellm", "/nowhere/bin/python")
    with pytest.raises(UsageError, match=r"aiperf is not installed.*--llmperf-python aiperf="):
        find_generator("aiperf", None)
    with pytest.raises(
        UsageError, match=r"needs a server's address, and engine 'scripted' has none"
    ):
        generator_program("scripted", work, {})


def test_an_export_of_aiperf_becomes_traces(tmp_path):
    """A real one: what it says of each request itself, from our reading of its times.

    Every message has a time of its own.
    """
    text = (RECORDED / "aiperf-0.13.0.jsonl").read_text()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "profile_export.jsonl").write_text(text)
    traces = aiperf.read_traces(tmp_path)
    rows = [json.loads(line)["metrics"] for line in text.splitlines()]
    assert len(traces) == len(rows) == 8
    assert (
        [len(trace.events) for trace in traces]
        == [trace.n_output_tokens for trace in traces]
        == [6] * 8
    )
    said = sorted(
        (row["time_to_first_token"]["value"], row["inter_token_latency"]["value"]) for row in rows
    )
    found = sorted(((r.events[0].t_ns - r.t_sent_ns) / 1e6, 1e3 * tpot_s(r)) for r in traces)
    assert found == [pytest.approx(each, abs=1e-3) for each in said]
    run = reduce_serving([ServingTrace(requests=traces)], Serve(rate=1, requests=8))
    assert run.itl.p50.value == pytest.approx(0.005, rel=0.5)
    assert run.serving.lateness_p99_s < 0.005


def test_the_switches_that_aiperf_misreads_are_kept_from_it():
    """And from no other; telemetry is off for both."""
    ours = {"PATH": "/bin", "HF_HUB_OFFLINE": "1"}
    assert environment(GENERATORS["aiperf"], ours) == {
        "PATH": "/bin",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
    }
    assert environment(GENERATORS["guidellm"], ours)["HF_HUB_OFFLINE"] == "1"


def test_tokens_that_aiperf_says_no_time_of_lie_between_those_it_does(tmp_path):
    """Without gaps the last token is at the end of the request.

    Fewer gaps than tokens are bundles after the first.
    """
    metrics = {
        "output_sequence_length": 7,
        "input_sequence_length": 3,
        "time_to_first_token": 20.0,
        "request_latency": 80.0,
    }
    rows = []
    for gaps in ((), (30.0, 30.0), (10.0,) * 6):
        kept = {name: {"value": value} for name, value in metrics.items()} | (
            {"inter_chunk_latency": {"value": gaps}} if gaps else {}
        )
        rows.append(
            {
                "metadata": {"request_start_ns": 10**18, "request_end_ns": 10**18 + 8 * 10**7},
                "metrics": kept,
            }
        )
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "profile_export.jsonl").write_text("\n".join(map(json.dumps, rows)))
    traces = aiperf.read_traces(tmp_path)
    assert [[event.n_tokens for event in trace.events] for trace in traces] == [
        [1, 6],
        [1, 3, 3],
        [1] * 7,
    ]
    assert [tpot_s(trace) for trace in traces] == [pytest.approx(0.01)] * 3
    assert all(trace.t_due_ns == trace.t_sent_ns == 10**9 for trace in traces)


def test_its_version_is_that_of_its_installation(tmp_path):
    """Read beside the program, or nothing."""
    (tmp_path / "lib/python3.11/site-packages/guidellm-0.8.1.dist-info").mkdir(parents=True)
    assert version_of("guidellm", tmp_path / "bin" / "guidellm") == "0.8.1"
    assert version_of("aiperf", tmp_path / "bin" / "aiperf") == ""


READS_CONFIG = "open('config.json').read()"
READS_ARGUMENTS = "' '.join(sys.argv)"


@pytest.mark.parametrize(
    ("name", "reads"), [("guidellm", READS_CONFIG), ("aiperf", READS_ARGUMENTS)]
)
def test_the_key_of_a_server_stays_in_no_file_and_no_command_line(tmp_path, program, name, reads):
    """The generator gets it all the same."""
    key = "c4n4ry-key"
    text = f"""
import sys
command_line = open("/proc/self/cmdline", "rb").read().decode()
print({reads}.count({key!r}), "of the key,", command_line.count({key!r}), "on the command line")
sys.exit(3)
"""
    folder = tmp_path / "run"
    folder.mkdir()
    job = Job(
        work=replace(LINES, generator=name),
        base="http://127.0.0.1:1/v1",
        path="/completions",
        model="m",
        api_key=key,
        bodies=(b'{"prompt": "a", "max_tokens": 5}',),
        due_s=(),
        tokenizer=None,
        program=program(name, text),
        folder=folder,
    )
    reason = r"(?s)exit code 3.*1 of the key, 0 on the command line"
    with pytest.raises(InvalidRun, match=reason) as caught:
        asyncio.run(generate(GENERATORS[name], job))
    assert key not in str(caught.value)
    assert (folder / "input.jsonl").is_file()
    assert not any(key.encode() in file.read_bytes() for file in folder.iterdir())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"generator": "guidelm", "rate": 1, "requests": 2},
            r"did you mean 'guidellm'|Did you mean 'guidellm'",
        ),
        ({"generator": "aiperf", "concurrency": 1, "duration": 2}, "give requests="),
        ({"generator": "guidellm", "rate": 1, "duration": 2}, "give requests="),
        (
            {"generator": "guidellm", "rate": 1, "requests": 2, "arrivals": "gamma"},
            "its own arrivals",
        ),
        (
            {"generator": "guidellm", "traffic": Traffic(name="t", timestamps_s=(0.0,))},
            "its own arrivals",
        ),
    ],
)
def test_what_a_generator_cannot_do_is_refused(fields, said):
    """Before anything is started."""
    with pytest.raises(UsageError, match=said):
        Serve(**fields)


def test_loads_of_our_own_client_go_on_record_as_before():
    """Their series go on; a generator makes another one, and is in the workload's text."""
    own = Serve(rate=1, requests=2)
    assert "generator" not in recorded_serve(own)
    assert recorded_serve(replace(own, generator="aiperf"))["generator"] == "aiperf"
    assert describe_serve(replace(own, generator="aiperf")) == describe_serve(own) + " by aiperf"


def test_a_report_of_guidellm_becomes_traces(tmp_path):
    """A real report: what it says of each request itself, from our reading of its times.

    No gap between messages is made up.
    """
    text = (RECORDED / "guidellm-0.8.1.json").read_text()
    (tmp_path / "out.json").write_text(text)
    traces = guidellm.read_traces(tmp_path)
    rows = json.loads(text)["benchmarks"][0]["requests"]["successful"]
    assert len(traces) == len(rows) == 8
    assert [trace.n_output_tokens for trace in traces] == [6] * 8
    said = sorted(
        (row["request_start_time"], row["time_to_first_token_ms"], row["inter_token_latency_ms"])
        for row in rows
    )
    found = sorted(
        (r.t_sent_ns, (r.events[0].t_ns - r.t_sent_ns) / 1e6, 1e3 * tpot_s(r)) for r in traces
    )
    assert [f[1:] for f in found] == [pytest.approx(s[1:], abs=1e-3) for s in said]
    run = reduce_serving([ServingTrace(requests=traces, gaps=False)], Serve(rate=1, requests=8))
    assert isinstance(run.itl, NotMeasurable)
    assert "first and last token alone" in run.itl.reason
    assert run.ttft.p50.value >= 0.05


PROJECT = """
import pytest
from pytest_llmperf import Serve

OPTIONS = {{"command": {command!r}, "name": "tiny", "stop_timeout": 0.5}}
pytestmark = pytest.mark.llmperf(model={model!r}, engine="server", options=OPTIONS, device="cpu")

LENGTHS = {{"requests": 6, "prompt_tokens": 4, "max_new_tokens": 5}}

def test_named(llm, baseline):
    assert baseline.plan.engine == "transformers"
    assert llm.run(Serve(concurrency=2, generator="aiperf", **LENGTHS)).n_failed == 1

def test_missing(llm):
    llm.run(Serve(concurrency=2, generator="guidellm", **LENGTHS))
"""


def test_a_load_by_a_generator_is_on_record_with_its_name(pytester, program):
    """Its interpreter is named by the option of engines' interpreters.

    One that is not there is an error before the load.
    """
    beside = program("aiperf", WRITES.format(keep=6, fails=1)).with_name("python")
    beside.symlink_to(sys.executable)
    model = str(write_model(pytester.path))
    pytester.makepyfile(test_it=PROJECT.format(model=model, command=stub_command()))
    options = (
        "--llmperf-store=none",
        "--llmperf-json=out.jsonl",
        f"--llmperf-python=aiperf={beside}",
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["*UsageError: Serve(generator='guidellm'): guidellm is not installed*"]
    )
    assert "its requests were sent by aiperf" in result.stdout.str()
    rows = [json.loads(line) for line in (pytester.path / "out.jsonl").read_text().splitlines()]
    row = rows[-1]
    assert {each["id"] for each in rows} == {row["id"]}
    assert row["workload"]["generator"] == row["extra"]["serving"]["generator"] == "aiperf"
    assert row["workload_text"].endswith(" by aiperf")
