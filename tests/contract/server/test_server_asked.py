"""What was asked for is what was served: lengths, prompts, prefix hits. Else a run is invalid."""

from __future__ import annotations

import re

import pytest

from pytest_llmperf.core.metrics.serving import reduce_serving
from pytest_llmperf.core.metrics.slo import Slo
from pytest_llmperf.errors import InvalidRun
from pytest_llmperf.session.serving import WARM_UP
from pytest_llmperf.workloads import Decode, Serve

LOAD = Serve(concurrency=1, requests=4, prompt_tokens=4, max_new_tokens=8, timeout=5)
DECODE = Decode(batch=1, prompt_tokens=4, new_tokens=8)
BY_ITSELF = Serve(
    concurrency=1, requests=4, prompt_tokens=4, max_new_tokens=8, timeout=5, ignore_eos=False
)


@pytest.mark.parametrize("fault", ["fewer", "capped"])
def test_a_server_that_stops_early_is_invalid_in_every_workload(start, fault):
    """It is not four times as fast. The reason that it gave is said, and how to allow an end."""
    session = start(f"--fault {fault} --first 2")
    reason = "stop" if fault == "fewer" else "length"
    with pytest.raises(
        InvalidRun, match=rf"2 tokens, 8 were asked for \(finish reason: {reason}\).*ignore_eos"
    ):
        session.serve(LOAD, 0)
    with pytest.raises(InvalidRun, match="2 tokens, 8 were asked for"):
        session.run(DECODE, 0)


def test_an_output_may_end_by_itself_where_that_was_asked_for(start):
    """By the end-of-sequence token: not by a limit of the server's own."""
    served = start("--fault fewer --first 2").serve(BY_ITSELF, 0)
    assert [request.n_output_tokens for request in served.trace.requests] == [2] * 4
    allowed = start("--fault fewer --first 2", ignore_eos=False).serve(LOAD, 0)
    assert len(allowed.trace.requests) == 4
    with pytest.raises(InvalidRun, match="the server has a limit of its own, perhaps its context"):
        start("--fault capped --first 2").serve(BY_ITSELF, 0)


@pytest.mark.parametrize("options", [{"prompt_ids": True}, {}], ids=["ids", "text"])
def test_prompts_are_counted_as_they_were_sent(start, options):
    """Ten times as many are another prompt, or a wrong count: no throughput with them."""
    session = start("--fault prompt-tenfold --first 2", **options)
    for measure in (lambda: session.serve(LOAD, 0), lambda: session.run(DECODE, 7)):
        with pytest.raises(InvalidRun, match=r"counted 40 prompt tokens, 4 were sent as t"):
            measure()
    honest = start("--first 2", **options)
    assert honest.serve(LOAD, 0).trace.requests[0].n_prompt_tokens == 4
    assert honest.run(DECODE, 7).trace.requests[0].n_prompt_tokens == 4


def test_a_hit_of_the_prefix_cache_is_invalid_in_a_batch_too(start):
    """By the answers' own counts, and by the server's metrics."""
    session = start("--fault says-cached --first 2")
    with pytest.raises(InvalidRun, match=r"hit 100% of the prompt tokens.*option 'prefix_cache'"):
        session.run(DECODE, 0)
    silent = start()
    silent.run(DECODE, WARM_UP)
    with pytest.raises(InvalidRun, match="prefix cache hit 100%"):
        silent.run(DECODE, WARM_UP)
    start("--fault says-cached --first 2", prefix_cache=True).run(DECODE, 0)


def test_an_slo_on_a_time_that_is_not_known_is_not_kept(start):
    """All tokens in one message: their mean time could be anything. One token alone has none."""
    slo = Slo(ttft=5, tpot=5)
    work = Serve(concurrency=1, requests=3, prompt_tokens=4, max_new_tokens=8, slo=slo, timeout=5)
    one_message = reduce_serving([start("--bundle 8").serve(work, 0).trace], work)
    assert one_message.serving.attainment == 0
    assert float(one_message.goodput) == 0
    shown = reduce_serving([start("--token-ms 30").serve(work, 0).trace], work)
    assert shown.serving.attainment == 1
    single = Serve(concurrency=1, requests=3, prompt_tokens=4, max_new_tokens=1, slo=slo, timeout=5)
    assert reduce_serving([start().serve(single, 0).trace], single).serving.attainment == 1


def test_bundles_whose_text_is_whole_have_a_mean_time_of_a_token(start):
    """The model's tokenizer makes as many tokens of it: none was hidden before the first."""
    (request,) = (
        start("--bundle 4 --token-ms 5")
        .serve(Serve(concurrency=1, requests=1, prompt_tokens=4, max_new_tokens=8), 0)
        .trace.requests
    )
    assert request.untimed == "gaps"


def test_each_fault_is_said_of_the_run_and_not_of_the_test(start):
    """The words name both numbers and what to do."""
    with pytest.raises(InvalidRun) as caught:
        start("--fault prompt-tenfold --first 2", prompt_ids=True).serve(LOAD, 0)
    assert re.search(r"sent as token ids: it cuts or changes prompts", str(caught.value))
