"""Real load generators against the scripted server.

They run in nightly runs that name their interpreters ($LLMPERF_GENERATOR_AIPERF).
"""

from __future__ import annotations

import json
import os

import pytest
from support.stubs import stub_command, write_model

PROJECT = """
import pytest
from pytest_llmperf import Serve

OPTIONS = {{"command": {command!r}, "name": "tiny"}}
pytestmark = pytest.mark.llmperf(model={model!r}, engine="server", options=OPTIONS, device="cpu")

@pytest.mark.parametrize("load", [{{"concurrency": 2}}, {{"rate": 20, "arrivals": "constant"}}])
def test_it(llm, load):
    lengths = {{"requests": 12, "prompt_tokens": 8, "max_new_tokens": 6}}
    run = llm.run(Serve(generator={name!r}, prefix_cache=True, **lengths, **load))
    assert run.n_failed == 0
    assert run.n_requests == 12
    assert run.ttft.p50 >= 0.03
    assert run.tpot.p50 >= 0.003
"""


@pytest.mark.skipif(
    "LLMPERF_NIGHTLY" not in os.environ,
    reason="a generator starts for ten seconds: make nightly runs it",
)
@pytest.mark.parametrize("name", ["aiperf", "guidellm"])
def test_a_real_generator_ends_in_records(pytester, name):
    """Both loops, in records that name it; the server's 30 ms and 4 ms are found.

    Skipped where its client is the limit.
    """
    python = os.environ.get(f"LLMPERF_GENERATOR_{name.upper()}")
    if python is None:
        pytest.skip(f"LLMPERF_GENERATOR_{name.upper()} does not name an interpreter")
    model, command = write_model(pytester.path), stub_command("--ttft-ms 30", "--token-ms 4")
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    pytester.makepyfile(test_it=PROJECT.format(model=str(model), command=command, name=name))
    options = (
        "--llmperf-store=none",
        "--llmperf-json=out.jsonl",
        f"--llmperf-python={name}={python}",
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)
    limited = result.stdout.str().count("INVALID test_it.py")
    result.assert_outcomes(passed=2 - limited, errors=limited)
    if limited:
        result.stdout.fnmatch_lines(["*client-limited*"])
    if limited == 2:
        pytest.skip(
            "generator and server on too few cores: both loads are INVALID, as client-limited"
        )
    rows = [json.loads(line) for line in (pytester.path / "out.jsonl").read_text().splitlines()]
    assert {row["workload"]["generator"] for row in rows} == {name}
    assert all(row["extra"]["serving"]["generator"].startswith(f"{name} ") for row in rows)
