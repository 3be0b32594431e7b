"""Result files of other tools: what becomes a record, and which field is wrong where none does.

guidellm, aiperf and pytest-benchmark wrote their files here (against the scripted server: 30 ms to
the first token, 4 ms a token); the others are written by the schemas in those tools' sources.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec import structs

from pytest_llmperf.commands.cli import main
from pytest_llmperf.commands.transfer import import_command
from pytest_llmperf.errors import UsageError
from pytest_llmperf.gate.contrast import contrast
from pytest_llmperf.history.foreign import FORMATS, is_ours, read_file

RECORDED = Path(__file__).with_name("recorded")

VLLM_SERVE: dict[str, Any] = {
    "date": "20261130-101112", "endpoint_type": "vllm", "backend": "vllm", "label": None,
    "model_id": "Qwen/Qwen2.5-7B", "tokenizer_id": "t", "num_prompts": 100, "request_rate": "inf",
    "burstiness": 1.0, "max_concurrency": 8, "duration": 10.0, "completed": 100, "failed": 0,
    "total_input_tokens": 12800, "total_output_tokens": 6400, "request_throughput": 10.0,
    "request_goodput": None, "output_throughput": 640.0, "total_token_throughput": 1920.0,
    "mean_ttft_ms": 55.0, "median_ttft_ms": 50.0, "std_ttft_ms": 3.0, "p99_ttft_ms": 80.0,
    "mean_tpot_ms": 10.5, "median_tpot_ms": 10.0, "std_tpot_ms": 1.0, "p99_tpot_ms": 12.0,
    "mean_itl_ms": 10.5, "median_itl_ms": 10.0, "std_itl_ms": 1.0, "p99_itl_ms": 15.0,
    "ttfts": [0.05, 0.06, 0.0],
}  # fmt: skip
VLLM_LATENCY = {"avg_latency": 1.1, "latencies": [1.0, 1.2], "percentiles": {"50": 1.1, "99": 1.2}}
VLLM_THROUGHPUT = {
    "elapsed_time": 10.0, "num_requests": 50, "total_num_tokens": 9600,
    "requests_per_second": 5.0, "tokens_per_second": 960.0,
}  # fmt: skip
SGLANG: dict[str, Any] = {
    "backend": "sglang", "dataset_name": "random", "request_rate": 4.0, "max_concurrency": None,
    "random_input_len": 1024, "random_output_len": 128, "random_range_ratio": 0.0,
    "duration": 25.0, "completed": 100, "total_input_tokens": 102400, "total_output_tokens": 12800,
    "total_output_tokens_retokenized": 12790, "request_throughput": 4.0, "input_throughput": 4096.0,
    "output_throughput": 512.0, "mean_e2e_latency_ms": 1400.0, "median_e2e_latency_ms": 1380.0,
    "p99_e2e_latency_ms": 2000.0, "mean_ttft_ms": 90.0, "median_ttft_ms": 80.0,
    "p99_ttft_ms": 200.0, "mean_tpot_ms": 10.0, "median_tpot_ms": 9.9, "p99_tpot_ms": 12.0,
    "mean_itl_ms": 10.0, "median_itl_ms": 9.0, "p95_itl_ms": 20.0, "p99_itl_ms": 30.0,
    "concurrency": 5.6,
    "accept_length": None,
}  # fmt: skip
_STATS = {"mean": 0.2, "min": 0.1, "p90": 0.3, "p99": 0.4, "median": 0.19, "max": 0.5}
INFERENCE_PERF: dict[str, Any] = {
    "load_summary": {"count": 60, "requested_rate": 2.0, "achieved_rate": 1.99},
    "successes": {
        "count": 58,
        "latency": {
            "request_latency": _STATS, "normalized_time_per_output_token": _STATS,
            "time_per_output_token": _STATS, "time_to_first_token": _STATS,
            "inter_token_latency": None,
        },
        "throughput": {
            "input_tokens_per_sec": 200.0, "output_tokens_per_sec": 100.0,
            "total_tokens_per_sec": 300.0, "requests_per_sec": 1.9,
        },
        "prompt_len": _STATS, "output_len": _STATS,
    },
    "failures": {"count": 2},
}  # fmt: skip
LLAMA: dict[str, Any] = {
    "build_commit": "abc", "cpu_info": "Xeon", "gpu_info": "NVIDIA H200",
    "model_filename": "m.gguf", "model_type": "llama 7B Q4_0", "n_batch": 2048, "n_ubatch": 512,
    "n_threads": 8, "type_k": "f16", "type_v": "f16", "n_gpu_layers": -1, "n_prompt": 512,
    "n_gen": 0,
    "test_time": "2026-11-30T10:00:00Z", "avg_ns": 1, "stddev_ns": 0, "avg_ts": 2368.8,
    "stddev_ts": 9.0, "samples_ns": [1, 2], "samples_ts": [2360.0, 2377.6],
}  # fmt: skip
GENERATION = LLAMA | {"n_prompt": 0, "n_gen": 128, "avg_ts": 131.4, "samples_ts": []}


@pytest.fixture
def write(tmp_path):
    """`write(*objects)` writes a file: one object, or one a line."""

    def call(*values: Any, name: str = "result.json") -> Path:
        path = tmp_path / name
        path.write_text("\n".join(map(json.dumps, values)))
        return path

    return call


def numbers(record) -> dict[str, float]:
    return {metric.name: metric.value for metric in record.metrics}


def formulas(record) -> dict[str, str]:
    return {metric.name: metric.formula for metric in record.metrics}


def test_vllm_serve_has_its_own_definitions(write):
    """Milliseconds become seconds; a request that failed has no TTFT."""
    (record,) = read_file(write(VLLM_SERVE), label="nightly", facts={"device_name": "H200"})
    found = numbers(record)
    assert found["throughput"] == 640
    assert found["ttft.p50"] == pytest.approx(0.05)
    assert found["tpot.p99"] == pytest.approx(0.012)
    assert "goodput" not in found
    assert formulas(record)["ttft.p50"] == "vllm-bench:ttft_ms/1"
    assert record.samples == {"ttft": (0.05, 0.06)}
    assert (record.test, record.label, record.created) == (
        "vllm-bench::serve", "nightly", "2026-11-30T10:11:12",
    )  # fmt: skip
    assert record.workload["input_tokens"] == 128
    assert record.environment.facts == {"device_name": "H200"}
    assert {metric.direction for metric in record.metrics if metric.unit == "s"} == {"lower"}


def test_the_other_benches_of_vllm(write):
    """A latency of a whole batch, and a throughput of prompt and output tokens."""
    (latency,) = read_file(write(VLLM_LATENCY))
    assert numbers(latency) == {
        "latency.p50": 1.1, "latency.p99": 1.2, "latency.mean": 1.1, "latency.max": 1.2,
    }  # fmt: skip
    (throughput,) = read_file(write(VLLM_THROUGHPUT))
    assert numbers(throughput) == {"total_throughput": 960, "request_throughput": 5}


def test_sglang_writes_a_line_a_run(write):
    """At a rate, the median latency is what is compared."""
    first, second = read_file(write(SGLANG, SGLANG | {"request_rate": 8.0}, name="x.jsonl"))
    assert numbers(first)["latency.p50"] == pytest.approx(1.38)
    assert numbers(first)["itl.p95"] == pytest.approx(0.02)
    assert first.workload["speed"] == "latency.p50"
    assert first.workload_key != second.workload_key
    assert first.session_id == second.session_id
    assert first.id != second.id


def test_guidellm_as_it_wrote_it_here():
    """Version 0.8.1, two lines; its mean gap of a request is what we call TPOT."""
    (record,) = read_file(RECORDED / "guidellm-0.8.1.json")
    found = numbers(record)
    assert 0.030 <= found["ttft.p50"] <= 0.045
    assert 0.0035 <= found["tpot.p50"] <= 0.006
    assert 0.050 <= found["latency.p50"] <= 0.060
    assert formulas(record)["tpot.p50"] == "guidellm:inter_token_latency_ms/1"
    assert (record.model, record.workload["streams"]) == ("tiny", 2)
    assert record.environment.facts["version_guidellm"] == "0.8.1"


def test_aiperf_as_it_wrote_it_here():
    """Version 0.13.0, six requests on two lines."""
    (record,) = read_file(RECORDED / "aiperf-0.13.0.json")
    found = numbers(record)
    assert found["throughput"] == pytest.approx(121.669, rel=1e-3)
    assert found["ttft.p50"] == pytest.approx(0.040563652)
    assert found["itl.max"] == pytest.approx(0.029994166)
    assert formulas(record)["tpot.mean"] == "aiperf:inter_token_latency/1"
    assert record.workload["concurrency"] == 2
    assert record.model == "tiny"


def test_inference_perf_and_llama_bench(write):
    """Medians have a name of their own there; a test of llama-bench has one number."""
    (load,) = read_file(write(INFERENCE_PERF))
    assert numbers(load)["tpot.p50"] == 0.19
    assert "itl.p50" not in numbers(load)
    assert load.extra["failed"] == 2
    prompt, generation = read_file(write([LLAMA, GENERATION]))
    assert numbers(prompt) == {"prefill_throughput": 2368.8}
    assert numbers(generation) == {"throughput": 131.4}
    assert prompt.samples == {"prefill_throughput": (2360.0, 2377.6)}
    assert (prompt.test, generation.test) == ("llama-bench::pp512", "llama-bench::tg128")
    assert prompt.environment.facts["device_name"] == "NVIDIA H200"


def test_pytest_benchmark_as_it_wrote_it_here():
    """Rounds are of one iteration already: they are not divided again."""
    path = RECORDED / "pytest-benchmark-5.3.1.json"
    records = read_file(path)
    raw = json.loads(path.read_text())["benchmarks"]
    assert [record.test for record in records] == [
        f"pytest-benchmark::{row['fullname']}" for row in raw
    ]
    assert numbers(records[0]) == {"time": raw[0]["stats"]["median"]}
    assert records[0].samples["time"] == tuple(raw[0]["stats"]["data"])


WRONG = [
    (VLLM_SERVE, "completed", "many", "field 'completed' is a text ('many'), a number is needed"),
    (VLLM_SERVE, "output_throughput", None, "field 'output_throughput' is missing"),
    (VLLM_SERVE, "median_ttft_ms", [1], "field 'median_ttft_ms' is a list, a number is needed"),
    (VLLM_SERVE, "ttfts", [0.1, None], "field 'ttfts.1' is missing"),
    (SGLANG, "completed", True, "field 'completed' is a truth value (True)"),
    (INFERENCE_PERF, "successes.throughput.output_tokens_per_sec", None,
     "field 'successes.throughput.output_tokens_per_sec' is missing"),
    (INFERENCE_PERF, "successes.latency.request_latency", 3, "is int, no object"),
    (LLAMA, "n_prompt", 0, "field 'n_gen'"),
    (LLAMA, "avg_ts", float("nan"), "a finite number is needed"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "path", "wrong", "words"), WRONG)
def test_a_wrong_field_is_named(write, value, path, wrong, words):
    """With the file, the tool, and what is needed."""
    changed = copy.deepcopy(value)
    *parents, last = path.split(".")
    target = changed
    for name in parents:
        target = target[name]
    target[last] = wrong
    with pytest.raises(UsageError) as caught:
        read_file(write(changed))
    assert words in str(caught.value)
    assert "nothing of it was imported" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "path", "version"),
    [("guidellm-0.8.1.json", ("metadata", "version"), 3),
     ("aiperf-0.13.0.json", ("schema_version",), "2.0"),
     ("aiperf-0.13.0.json", ("request_latency", "unit"), "fortnights"),
     ("pytest-benchmark-5.3.1.json", ("version",), "6.0.0")],
)  # fmt: skip
def test_a_newer_file_is_refused_by_its_version(write, name, path, version):
    """A field that means something else is worse than one that is missing."""
    value = json.loads((RECORDED / name).read_text())
    target = value
    for part in path[:-1]:
        target = target[part]
    target[path[-1]] = version
    with pytest.raises(UsageError, match="of another version") as caught:
        read_file(write(value))
    assert repr(".".join(path)) in str(caught.value)


@pytest.mark.parametrize("text", ["{}", "[]", '{"a": 1}\n{', "[3]", "no", '{"metadata": {}}'])
def test_what_is_no_such_file_is_an_error(tmp_path, text):
    """It says which tools' files are read, or that there is no result in it."""
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"Read are files of|no result|no object"):
        read_file(path)


def test_definitions_of_two_tools_are_never_compared(write):
    """Nor are two loads of one: the reason names what differs."""
    (vllm,) = read_file(write(VLLM_SERVE))
    (other,) = read_file(write(VLLM_SERVE | {"max_concurrency": 16}, name="b.json"))
    (change,) = contrast([vllm], [other], {"throughput": 0.05})
    assert change.reason.startswith("another workload")
    stranger = structs.replace(vllm, metrics=tuple(
        structs.replace(metric, formula="aiperf:x/1") for metric in vllm.metrics
    ))  # fmt: skip
    (change,) = contrast([vllm], [stranger], {"throughput": 0.05})
    assert "another definition: aiperf:x/1" in change.reason


def test_import_gate_and_compare(write, tmp_path):
    """Twelve sessions of one series; a loss of 20 % after them is a regression, once stored."""
    store = ["--store", f"sqlite:///{tmp_path}/h.db"]
    runner = CliRunner()
    for at in range(12):
        speed = 640.0 + at % 3
        run = VLLM_SERVE | {"output_throughput": speed, "date": f"202611{at + 10}-101112"}
        path = write(run, name=f"{at}.json")
        assert runner.invoke(import_command, [str(path), *store, "--gate"]).exit_code == 0
    slow = VLLM_SERVE | {"output_throughput": 512.0, "date": "20261129-101112"}
    path = write(slow, name="slow.json")
    result = runner.invoke(import_command, [str(path), *store, "--gate", "throughput:5%"])
    assert result.exit_code == 1
    assert "FAIL" in result.output
    again = runner.invoke(import_command, [str(path), *store, "--json", "--gate"])
    assert (again.exit_code, json.loads(again.output)["known"]) == (0, 1)
    next_one = write(slow | {"date": "20261130-101112"}, name="next.json")
    assert runner.invoke(import_command, [str(next_one), *store, "--gate"]).exit_code == 1
    accepted = runner.invoke(import_command, [str(path), *store])
    assert "1 outcomes updated" in accepted.output
    history = runner.invoke(main, ["history", "--store", store[1], "--json"])
    assert "vllm-bench::serve" in history.output
    before, after = (read_file(tmp_path / name)[0].session_id for name in ("3.json", "slow.json"))
    compared = runner.invoke(main, ["compare", before, after, *store])
    assert "throughput" in compared.output
    page = tmp_path / "report.html"
    assert runner.invoke(main, ["report", "--out", str(page), *store]).exit_code == 0
    assert "vllm-bench" in page.read_text()


def test_a_wrong_file_among_good_ones_stores_nothing(write, tmp_path):
    """All are read before the first is stored."""
    store = ["--store", f"sqlite:///{tmp_path}/h.db"]
    good, bad = write(VLLM_SERVE), write(VLLM_SERVE | {"completed": None}, name="bad.json")
    result = CliRunner().invoke(main, ["import", str(good), str(bad), *store])
    assert result.exit_code == 1
    assert "field 'completed' is missing" in result.output
    assert not (tmp_path / "h.db").exists()


def test_a_file_of_ours_is_no_other_tools(write, tmp_path):
    """By its first line; one that is cut in half is ours, and said to be."""
    assert is_ours(write({"schema_version": 1, "workload": {}}))
    assert is_ours(write({"accepted": {}}))
    cut = tmp_path / "cut.jsonl"
    cut.write_text('{"schema_version": 1, "wor')
    assert is_ours(cut)
    assert not is_ours(RECORDED / "guidellm-0.8.1.json")
    assert not is_ours(write(VLLM_SERVE, VLLM_SERVE))
    assert len(FORMATS) == 9
