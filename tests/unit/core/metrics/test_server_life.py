"""A server's own life: phases of its start, the size of its cache, preemptions, speculation."""

from __future__ import annotations

import pytest

from pytest_llmperf.core.metrics import server_metrics
from pytest_llmperf.core.metrics.servers import life
from pytest_llmperf.core.trace import MemoryGauges
from pytest_llmperf.core.verdicts.estimate import NotMeasurable
from pytest_llmperf.engines.server.starting import phases

VLLM_LOG = """
(Worker_TP0) INFO 11-30 [default_loader.py:262] Loading weights took 3.10 seconds
(Worker_TP1) INFO 11-30 [default_loader.py:262] Loading weights took 3.50 seconds
(Worker_TP0) INFO 11-30 [monitor.py:34] torch.compile takes 20.25 s in total
(EngineCore) INFO 11-30 [kv_cache_utils.py:864] GPU KV cache size: 123,456 tokens
(EngineCore) INFO 11-30 [kv_cache_utils.py:864] GPU KV cache size: 123,440 tokens
(Worker_TP0) INFO 11-30 [gpu_model_runner.py:2985] Graph capturing finished in 5 secs, took 0.5 GiB
"""
SGLANG_LOG = """
[TP0] Load weight end. elapsed=4.20 s, type=LlamaForCausalLM, dtype=torch.bfloat16
[TP0] Capture cuda graph end. Time elapsed: 6.00 s. mem usage=1.2 GB.
[TP0] max_total_num_tokens=438000, chunked_prefill_size=8192
"""
PAGE = """
vllm:num_preemptions_total{{engine="0"}} {0}
vllm:spec_decode_num_draft_tokens_total{{engine="0"}} {1}
vllm:spec_decode_num_accepted_tokens_total{{engine="0"}} {2}
vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",position="0"}} 99
vllm:prefix_cache_queries_total {3}
vllm:prefix_cache_hits_total {4}
"""


def test_phases_of_a_start_are_those_of_the_slowest_rank():
    """What is neither weights nor compilation is the process; the first answer ends the start."""
    start = phases.startup(VLLM_LOG, healthy_s=40.0, load_s=41.5)
    assert (start.weights_s, start.compile_s, start.warm_s) == (3.5, 25.25, 1.5)
    assert start.process_s == pytest.approx(40 - 3.5 - 25.25)
    assert phases.kv_tokens(VLLM_LOG) == 123_440
    sglang = phases.startup(SGLANG_LOG, healthy_s=20.0, load_s=20.0)
    assert (sglang.weights_s, sglang.compile_s, sglang.process_s) == (4.2, 6.0, 9.8)
    assert phases.kv_tokens(SGLANG_LOG) == 438_000


def test_a_log_that_says_nothing_leaves_phases_unknown():
    """Never 0: only the time to the first answer is our own."""
    start = phases.startup("Uvicorn running", healthy_s=2.0, load_s=2.5)
    assert (start.process_s, start.weights_s, start.compile_s) == (None, None, None)
    assert start.warm_s == 0.5
    quantities = life.startup(start)
    assert isinstance(quantities.weights, NotMeasurable)
    assert "log does not say it" in quantities.weights.reason
    assert float(quantities.warm) == 0.5
    assert phases.kv_tokens("KV cache size: many tokens") is None
    assert "ran already" in life.startup(None).process.reason


def test_counters_of_several_runs_are_added_and_shares_are_of_all():
    """Two runs: 3 preemptions of 40 requests, 30 of 50 tokens accepted, a tenth cached."""
    before, middle, after = (
        server_metrics.read(PAGE.format(*values))
        for values in ((1, 10, 5, 100, 0), (2, 30, 15, 200, 20), (4, 60, 35, 300, 20))
    )
    runs = [server_metrics.summarized([before, middle]), server_metrics.summarized([middle, after])]
    said = life.of_traffic(runs, 40)
    assert float(said["preemptions"]) == 3
    assert float(said["unpreempted"]) == pytest.approx(1 - 3 / 40)
    assert float(said["speculative_acceptance"]) == pytest.approx(30 / 50)
    assert float(said["prefix_hits"]) == pytest.approx(20 / 200)


def test_what_a_server_does_not_count_is_not_measurable():
    """No metrics at all, or no speculation: never a share of nothing."""
    silent = life.of_traffic([{}], 10)
    assert all(isinstance(quantity, NotMeasurable) for quantity in silent.values())
    idle = life.of_traffic([{"preemptions": 0.0, "drafted": 0.0, "accepted": 0.0}], 10)
    assert float(idle["preemptions"]) == 0
    assert float(idle["unpreempted"]) == 1
    assert "does not speculate" in idle["speculative_acceptance"].reason
    partly = life.of_traffic([{"preemptions": 1.0}, {}], 10)
    assert isinstance(partly["preemptions"], NotMeasurable)


def test_the_cache_in_tokens_is_a_number_of_its_own():
    """It is no gauge of bytes, and only servers have it."""
    assert float(life.kv_tokens(MemoryGauges(weights=0, kv_tokens=4096))) == 4096
    assert isinstance(life.kv_tokens(MemoryGauges(weights=0)), NotMeasurable)


def test_names_that_ray_passes_on_are_read():
    """With a prefix of its own, and an underscore for the colon."""
    assert server_metrics.read("ray_vllm_num_requests_running 3\n") == {"running": 3}
    assert server_metrics.read("ray_vllm:num_preemptions_total 2\n") == {"preemptions": 2}
