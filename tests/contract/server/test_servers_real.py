"""Real servers with the real model, each once, in nightly runs.

Name a server's program by $LLMPERF_SERVER_VLLM and so on.
"""

from __future__ import annotations

import json
import os

import pytest

nightly = pytest.mark.skipif(
    "LLMPERF_NIGHTLY" not in os.environ, reason="minutes on two cores: make nightly runs it"
)
ARGUMENTS = {
    "vllm": "--enforce-eager --max-model-len 512 --max-num-seqs 8",
    "transformers": "",
    "xllamacpp": "n_parallel=2 n_ctx=2048",
}
PROJECT = """
import pytest
from pytest_llmperf import Decode, Serve, Slo

pytestmark = pytest.mark.llmperf(
    model="smollm2-135m",
    engine="server:{name}",
    options={{"args": "{arguments}"}},
    strategy="{strategy}",
    device="cpu",
)
LENGTHS = {{"prompt_tokens": 32, "max_new_tokens": 16}}

def test_lines(llm):
    run = llm.run(Serve(concurrency=2, requests=12, slo=Slo(ttft=30), **LENGTHS))
    assert run.n_failed == 0
    assert run.serving.attainment == 1

def test_rate(llm):
    assert llm.run(Serve(rate=0.5, requests=8, **LENGTHS)).n_failed == 0

def test_offline(llm):
    assert llm.run(Decode(batch=2, prompt_tokens=32, new_tokens=16)).throughput >= 0.1
"""

AGREES = """
def test_agreement(llm, baseline):
    rule = "containment(k=5, horizon=32)+perplexity(1.01)"
    agreement = llm.agreement(baseline, new_tokens=8, rule=rule)
    assert agreement.ok
    assert agreement.top1 >= 0.95
"""
"""For the server whose protocol gives log-probabilities of token ids."""


@nightly
@pytest.mark.real_model
@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_real_server_ends_in_records(pytester, name, monkeypatch):
    """Serving and an offline batch are records with the server's engine and exact lengths.

    Each holds what the server says of itself.
    """
    variable = f"LLMPERF_SERVER_{name.upper()}"
    if variable not in os.environ:
        pytest.skip(f"{variable} does not name a program")
    if os.cpu_count() == 2:  # one for the server, one for the client, which is the limit otherwise
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0")
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
    strategy = "fp32" if name == "vllm" else "auto"
    project = PROJECT.format(name=name, arguments=ARGUMENTS[name], strategy=strategy)
    pytester.makepyfile(test_it=project + (AGREES if name == "vllm" else ""))
    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "--llmperf-store=none", "--llmperf-json=out.jsonl"
    )
    result.assert_outcomes(passed=4 if name == "vllm" else 3)
    rows = [json.loads(line) for line in (pytester.path / "out.jsonl").read_text().splitlines()]
    assert {row["engine"] for row in rows} == {f"server:{name}"}
    assert {row["workload"]["type"] for row in rows} - {"agreement"} == {"serve", "decode"}
    if name == "vllm":
        assert {row["effective"]["reported_dtype"] for row in rows} == {"float32"}
        assert all(
            "preemptions" in row["extra"]["serving"]["server"]
            for row in rows
            if row["workload"]["type"] == "serve"
        )
