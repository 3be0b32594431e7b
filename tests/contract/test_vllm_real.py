"""vLLM itself on a CPU: conformance, what is in effect, agreement.

It runs in the interpreter that LLMPERF_VLLM_PYTHON names.
"""

from __future__ import annotations

import os
import subprocess

import msgspec
import pytest

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.errors import InvalidRun, NotInEffect
from pytest_llmperf.strategies import parse, require_in_effect
from pytest_llmperf.wire.commands import CompareReference, Describe, MakeReference, ReadMemory, Run
from pytest_llmperf.workloads import Batch, Decode, Prefill, PromptSet

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(
        "LLMPERF_NIGHTLY" not in os.environ,
        reason="vLLM starts for half a minute: make nightly runs it",
    ),
]

SHORT = Decode(batch=2, prompt_tokens=8, new_tokens=6)
MIXED = Batch(requests=6, prompt_tokens=(4, 24), max_new_tokens=(2, 12), batch=3)
TEXTS = PromptSet.bundled("short-chat").texts[:4]
SMALL = {"kv_cache_gib": 0.25, "max_model_len": 512}


def plan(
    strategy: str = "fp32", model: str = "smollm2-135m", *, engine: str = "vllm", **options
) -> LoadPlan:
    chosen = SMALL | options if engine == "vllm" else {}
    return parse(strategy).apply(
        LoadPlan(model=model_ref(model), engine=engine, options=tuple(sorted(chosen.items())))
    )


def run(channel, workload, repetition=0):
    return channel.call(Run(workload=workload, repetition=repetition), deadline_s=300).run


@pytest.mark.parametrize("model", ["arch:small-llama", "smollm2-135m"])
def test_it_conforms(model, vllm_python, tmp_path):
    """Every published check, on random weights and on the real model."""
    plan_file = tmp_path / "plan"
    plan_file.write_bytes(msgspec.msgpack.encode(plan(model=model)))
    code = (
        "import sys, msgspec, pathlib\n"
        "from pytest_llmperf.core.plan import LoadPlan\n"
        "from pytest_llmperf.engines import engine\n"
        "from pytest_llmperf.testing.conformance import check_engine\n"
        "plan = msgspec.msgpack.decode(pathlib.Path(sys.argv[1]).read_bytes(), type=LoadPlan)\n"
        "print(len(check_engine(engine('vllm').load(), plan)), 'checks passed')\n"
    )
    done = subprocess.run(
        [vllm_python, "-c", code, str(plan_file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert "12 checks passed" in done.stdout, done.stderr[-4000:]


def test_the_real_model_agrees_with_the_transformers_baseline(open_worker, tmp_path):
    """The same weights and token ids in fp32 give equal tokens.

    Their logits differ by rounding alone.
    """
    reference, prompts = str(tmp_path / "reference"), PromptSet(name="few", texts=TEXTS)
    made = MakeReference(prompts=prompts, new_tokens=8, batch=2, path=reference)
    with open_worker(plan(engine="transformers")) as (channel, theirs):
        channel.call(made, deadline_s=600)
        before = run(channel, SHORT)
    with open_worker(plan()) as (channel, ours):
        rows = channel.call(CompareReference(path=reference, batch=2), deadline_s=600).prompts
        again = run(channel, SHORT)
    assert ours.content_hash == theirs.content_hash
    assert ours.vocab_size == theirs.vocab_size
    assert (again.prompts_hash, again.outputs_hash) == (before.prompts_hash, before.outputs_hash)
    assert len(rows) == len(TEXTS)
    assert max(max(row.kl) for row in rows) < 1e-6
    assert all(all(row.top1) and row.first_divergence is None for row in rows)


def test_what_is_in_effect_is_read_from_its_tensors(open_worker):
    """Bytes by dtype, the KV cache as it is allocated, and its memory apart from the weights."""
    wanted = plan("bf16")
    with open_worker(wanted) as (channel, opened):
        run(channel, SHORT)
        found = channel.call(Describe(), deadline_s=60).description
        memory = channel.call(ReadMemory(workload=SHORT, repetition=1), deadline_s=60).memory
    require_in_effect(found.effective, parse("bf16").promises(wanted), "warm")
    assert set(opened.effective.parameter_bytes_by_dtype) == {"bfloat16"}
    assert found.effective.cache.endswith("of bfloat16")
    assert found.effective.batching == "continuous"
    assert memory.kv_cache == pytest.approx(2**28, rel=0.01)
    assert memory.weights < memory.kv_cache + memory.weights < memory.process
    with pytest.raises(NotInEffect, match="asked for float32"):
        require_in_effect(found.effective, parse("fp32").promises(plan()), "loaded")


@pytest.mark.parametrize("workload", [SHORT, Prefill(batch=2, prompt_tokens=8), MIXED])
def test_equal_prompts_give_equal_tokens_in_both_engines(workload, open_worker):
    """Of every workload; a small architecture is written out with the same weights."""
    hashes = []
    for engine in ("transformers", "vllm"):
        with open_worker(plan(model="arch:small-llama", engine=engine)) as (channel, _):
            ran = run(channel, workload)
        hashes.append((ran.prompts_hash, ran.outputs_hash))
    assert hashes[0] == hashes[1]


def test_the_prefix_cache_is_off_and_on_where_it_was_asked_for(open_worker):
    """On: the second run of the same prompts is answered from it, and says so. Off: nothing is."""
    work = Decode(batch=1, prompt_tokens=256, new_tokens=2)
    for options, cached in (({}, 0), ({"prefix_cache": True}, 128)):
        with open_worker(plan(model="arch:small-llama", **options)) as (channel, _):
            run(channel, work)
            assert run(channel, work).telemetry["prefix_cached_tokens"] >= cached
            assert (run(channel, work).telemetry["prefix_cached_tokens"] > 0) is bool(cached)


def test_a_prefix_cache_that_was_to_be_off_is_an_error(vllm_python, tmp_path):
    """A prefix cache is switched on behind the engine's back.

    By its configuration the plan is not in effect, by its runs it is invalid.
    """
    code = (
        "import pytest_llmperf.engines.vllm.engine as e\n"
        "from pytest_llmperf.core.plan import LoadPlan\n"
        "from pytest_llmperf.engines.models.names import model_ref\n"
        "from pytest_llmperf.engines.vllm import loaded\n"
        "from pytest_llmperf.errors import InvalidRun, NotInEffect\n"
        "from pytest_llmperf.workloads import Decode\n"
        "made = e.arguments\n"
        "e.arguments = lambda *a, **k: made(*a, **k) | {'enable_prefix_caching': True}\n"
        "plan = LoadPlan(\n"
        "    model=model_ref('arch:small-llama'),\n"
        "    engine='vllm',\n"
        "    weights_dtype='float32',\n"
        "    options=(('kv_cache_gib', 0.25), ('max_model_len', 512)),\n"
        ")\n"
        "try:\n    e.VllmEngine().open(plan)\n"
        "except NotInEffect as error:\n    print('SEEN', error)\n"
        "loaded._require_prefix_cache = lambda _: None\n"
        "opened = e.VllmEngine().open(plan)\n"
        "work = Decode(batch=1, prompt_tokens=256, new_tokens=2)\n"
        "opened.run(work, 0)\n"
        "try:\n    opened.run(work, 0)\n"
        "except InvalidRun as error:\n    print('SEEN', error)\n"
    )
    done = subprocess.run(
        [vllm_python, "-c", code], capture_output=True, text=True, check=False, timeout=600
    )
    seen = [line for line in done.stdout.splitlines() if line.startswith("SEEN")]
    assert len(seen) == 2, done.stderr[-3000:]
    assert "prefix cache is on, asked for off" in seen[0]
    assert "prompt tokens came from vLLM's prefix cache" in seen[1]


@pytest.mark.parametrize("strategy", ["fp32+prompt-lookup", "bf16+kv-fp8", "fp32+continuous"])
def test_a_part_is_in_effect(strategy, open_worker):
    """After a run, by what the worker holds and did."""
    wanted = plan(strategy, "arch:small-llama")
    with open_worker(wanted) as (channel, _):
        ran = run(channel, SHORT)
        found = channel.call(Describe(), deadline_s=120).description
    require_in_effect(found.effective, parse(strategy).promises(wanted), "warm")
    assert (ran.trace.forwards is not None) is ("lookup" in strategy)


@pytest.mark.parametrize(
    ("part", "how"), [("w8a8", {"bits": 8, "group": 0, "inputs": True}), ("w4a16", {"bits": 4})]
)
def test_a_quantized_checkpoint_is_counted_layer_by_layer(part, how, open_worker, tmp_path):
    """vLLM joins the query, key and value layers, and gate and up.

    So there are four layers a block, and the head is left out.
    """
    from support.quantizing import save_quantized

    folder = save_quantized(tmp_path / part, "arch:small-llama", **how)
    wanted = plan(f"bf16+{part}:{folder}", "arch:small-llama")
    with open_worker(wanted) as (channel, opened):
        run(channel, SHORT)
    require_in_effect(opened.effective, parse(f"bf16+{part}:{folder}").promises(wanted), "loaded")
    found = opened.effective.quantized
    assert (found.converted, found.layers, len(found.left_out)) == (32, 33, 1)
    assert sum(found.stored_bytes.values()) == pytest.approx(sum(found.analytic.values()), rel=0.02)


def test_two_ranks_hold_a_model_together(open_worker):
    """Their shares are promised, and they write the tokens of one."""
    strategy = "fp32+tp2"
    wanted = plan(strategy, "arch:small-llama")
    with open_worker(wanted) as (channel, opened):
        together = run(channel, SHORT)
    require_in_effect(opened.effective, parse(strategy).promises(wanted), "loaded")
    with open_worker(plan(model="arch:small-llama")) as (channel, _):
        alone = run(channel, SHORT)
    assert together.outputs_hash == alone.outputs_hash


def test_a_prompt_that_is_too_long_is_an_error_of_the_run(open_worker):
    """The worker goes on: it is an answer, not a crash."""
    with open_worker(plan(model="arch:small-llama")) as (channel, _):
        with pytest.raises(InvalidRun, match=r"another number of tokens|longer"):
            run(channel, Decode(batch=1, prompt_tokens=510, new_tokens=8))
        assert run(channel, SHORT).trace.requests
