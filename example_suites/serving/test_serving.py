"""A chat server under load: what one line gets, what several get, and which rate it can promise.

Runs on whatever server is here: `vllm serve`, `transformers serve`, or llama.cpp in the wheel
`xllamacpp`.
"""

import os
import shutil

import pytest
from msgspec.structs import replace

from pytest_llmperf import PromptSet, Serve, Slo

CHAT = PromptSet.bundled("short-chat")
LINE = Serve(concurrency=1, requests=8, prompts=CHAT, prompt_tokens=32, max_new_tokens=16)
THREADS = max(1, (os.cpu_count() or 1) - 1)
"""llama.cpp takes every core that it is left.

One is the client's, which would be the limit otherwise.
"""

SERVERS = {
    "vllm": ("vllm", "--enforce-eager --max-model-len 512 --max-num-seqs 8"),
    "transformers": ("transformers", ""),
    "xllamacpp": (
        "",
        (
            f"n_parallel=4 n_ctx=2048 cpuparams.n_threads={THREADS} "
            f"cpuparams_batch.n_threads={THREADS}"
        ),
    ),
}


def server(name):
    """Return the parameter of one server: how it is started, and a skip where it is missing."""
    program, arguments = SERVERS[name]
    is_installed = f"LLMPERF_SERVER_{name.upper()}" in os.environ or (
        name == "vllm" and shutil.which(program)
    )
    return pytest.param(
        name,
        marks=[
            pytest.mark.llmperf(
                model="smollm2-135m", engine=f"server:{name}", options={"args": arguments}
            ),
            pytest.mark.skipif(
                not is_installed, reason=f"no server program: set LLMPERF_SERVER_{name.upper()}"
            ),
        ],
    )


@pytest.fixture
def name(request):
    """The server that a test is run on; its marks say how."""
    return request.param


every_server = pytest.mark.parametrize("name", [server(name) for name in SERVERS], indirect=True)


@pytest.mark.usefixtures("name")
@every_server
def test_one_line_is_answered(llm):
    """No request fails, each has exactly the tokens asked for, and the first comes soon."""
    run = llm.run(LINE)
    assert run.n_failed == 0
    assert run.ttft.p50 <= 5
    assert run.serving.in_flight_max == 1


@pytest.mark.usefixtures("name")
@every_server
def test_more_lines_get_more_tokens_from_the_server(llm):
    """Four lines together get at least the tokens a second of one, and each waits longer."""
    longer = replace(LINE, requests=32)
    one_line, four_lines = llm.run(longer), llm.run(longer.at(concurrency=4))
    assert four_lines.throughput >= one_line.throughput
    assert four_lines.latency.p50 >= one_line.latency.p50


@pytest.mark.usefixtures("name")
@every_server
def test_the_rate_that_can_be_promised(llm):
    """At the highest rate, nine requests in ten have their first token within three seconds."""
    load = Serve(
        rate=1,
        requests=16,
        prompts=CHAT,
        prompt_tokens=32,
        max_new_tokens=16,
        slo=Slo(ttft=3),
        prefix_cache=True,
    )
    search = llm.highest_rate(load, start=0.5, attainment=0.9, within=0.5)
    assert search.highest is not None


@pytest.mark.parametrize("name", [server("vllm")], indirect=True)
@pytest.mark.usefixtures("name")
@pytest.mark.llmperf(strategy="fp32")
def test_the_server_answers_as_the_model_does(llm, baseline):
    """The server gives log-probabilities of token ids: they agree with transformers in fp32.

    Compared are top-1, perplexity and containment.
    """
    agreement = llm.agreement(
        baseline, new_tokens=16, rule="containment(k=5, horizon=32)+perplexity(1.01)"
    )
    assert agreement.ok
    assert agreement.top1 >= 0.97
