"""Greedy decoding through generate and through the static loop, and what is reported about it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from support.generating import CPU, ROWS, batch, loaded, plan, tiny_falcon, tiny_llama, uncompiled
from transformers import MistralConfig, MistralForCausalLM

from pytest_llmperf.engines.transformers import TransformersModel
from pytest_llmperf.engines.transformers.generate import GenerateLoop
from pytest_llmperf.engines.transformers.static_loop import StaticLoop, StepLayer
from pytest_llmperf.errors import InvalidRun, UsageError
from pytest_llmperf.workloads import Decode, Prefill, PromptSet

WORK = Decode(batch=2, prompt_tokens=6, new_tokens=5)


def static_loop(model, **fields):
    return StaticLoop(model, plan(cache="static", compile="default", **fields), CPU, uncompiled())


def test_tokens_are_greedy_and_their_times_increase_from_the_start():
    model = tiny_llama()
    decoded = GenerateLoop(model, plan(), 0).decode(batch(ROWS[:1]), 6)
    ids = list(ROWS[0])
    for token in decoded.tokens[0].tolist():
        assert int(model(torch.tensor([ids])).logits[0, -1].argmax()) == token
        ids.append(token)
    times = (decoded.t_start_ns, *decoded.t_tokens_ns)
    assert len(times) == 7
    assert all(a < b for a, b in pairwise(times))


def test_an_end_of_sequence_token_is_ignored():
    free = GenerateLoop(tiny_llama(), plan(), 0).decode(batch(ROWS[:1]), 8).tokens
    model = tiny_llama()
    model.generation_config.eos_token_id = model.config.eos_token_id = int(free[0, 2])
    stopped = model.generate(batch(ROWS[:1]).ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert stopped.shape[1] - len(ROWS[0]) == 3, (
        "the control: left alone, generate stops at this token"
    )
    assert torch.equal(GenerateLoop(model, plan(), 0).decode(batch(ROWS[:1]), 8).tokens, free)


def test_another_length_than_asked_is_an_invalid_run():
    model = tiny_llama()
    generate = model.generate

    def early(ids, *, generation_config, **rest):
        generation_config.max_new_tokens -= 1
        return generate(ids, generation_config=generation_config, **rest)

    model.generate = early
    with pytest.raises(InvalidRun, match="exactly 5 new tokens, got 4"):
        GenerateLoop(model, plan(), 0).decode(batch(), 5)


def test_a_static_cache_gives_the_same_tokens_and_is_seen_as_one():
    model = tiny_llama()
    dynamic = GenerateLoop(model, plan(), 0).decode(batch(), 8)
    static = GenerateLoop(model, plan(cache="static"), 0).decode(batch(), 8)
    assert torch.equal(static.tokens, dynamic.tokens)
    assert (dynamic.cache.kind, static.cache.kind) == ("DynamicCache", "StaticCache")


@pytest.mark.parametrize("make", [tiny_llama, tiny_falcon])
@pytest.mark.parametrize("rows", [ROWS[:1], ROWS], ids=["one", "padded"])
def test_the_static_loop_gives_the_tokens_of_generate(make, rows):
    model = make()
    expected = GenerateLoop(model, plan(), 0).decode(batch(rows), 12)
    loop = static_loop(model)
    for _ in range(2):  # the second run reuses cache and buffers
        decoded = loop.decode(batch(rows), 12)
        assert torch.equal(decoded.tokens, expected.tokens)
        assert len(decoded.t_tokens_ns) == 12
    assert decoded.cache.kind == "StaticCache"
    assert decoded.cache.bytes_per_position == expected.cache.bytes_per_position


def test_the_static_loop_forgets_the_batch_before():
    model = tiny_llama()
    loop = static_loop(model)
    loop.decode(batch([[9, 8, 7], [6, 5, 4]]), 10)
    again = loop.decode(batch([[31, 32, 33], [41, 42, 43]]), 10)
    fresh = static_loop(model).decode(batch([[31, 32, 33], [41, 42, 43]]), 10)
    assert torch.equal(again.tokens, fresh.tokens)


def test_a_cache_written_at_the_wrong_position_changes_the_tokens_of_the_static_loop(monkeypatch):
    """Negative control of the comparison above: the loop's tokens really come through its cache."""
    model = tiny_llama()
    expected = GenerateLoop(model, plan(), 0).decode(batch(ROWS[:1]), 12).tokens
    update = StepLayer.update

    def misplaced(self, keys, values, *args, **kwargs):
        self.position.sub_(1 if keys.shape[-2] == 1 else 0)
        written = update(self, keys, values, *args, **kwargs)
        self.position.add_(1 if keys.shape[-2] == 1 else 0)
        return written

    monkeypatch.setattr(StepLayer, "update", misplaced)
    assert not torch.equal(static_loop(model).decode(batch(ROWS[:1]), 12).tokens, expected)


@pytest.mark.parametrize(
    "make_loop",
    [lambda model, **f: GenerateLoop(model, plan(**f), 0), static_loop],
    ids=["generate", "static"],
)
@pytest.mark.parametrize("dtype", ["bfloat16", None])
def test_autocast_is_in_force_in_both_loops_when_asked_for(make_loop, dtype):
    model, seen = tiny_llama(), set()
    model.model.layers[0].mlp.down_proj.register_forward_hook(
        lambda _module, _inputs, out: seen.add(out.dtype)
    )
    make_loop(model, autocast_dtype=dtype).decode(batch(), 4)
    assert seen == {torch.bfloat16 if dtype else torch.float32}


def test_a_static_cache_under_autocast_is_refused_where_transformers_cannot_hold_it():
    with pytest.raises(UsageError, match="one dtype"):
        GenerateLoop(tiny_llama(), plan(cache="static", autocast_dtype="bfloat16"), 0)


def test_a_model_with_a_sliding_window_is_refused_by_the_static_loop():
    config = MistralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        sliding_window=8,
    )
    with pytest.raises(UsageError, match="StaticSlidingWindowLayer"):
        static_loop(MistralForCausalLM(config).eval()).decode(batch(), 4)


def test_a_session_runs_a_workload_as_one_request_a_sequence():
    session = TransformersModel(loaded(tiny_llama()))
    ran = session.run(WORK, 0)
    assert [r.n_output_tokens for r in ran.trace.requests] == [5, 5]
    assert [r.n_prompt_tokens for r in ran.trace.requests] == [6, 6]
    assert all(r.t_due_ns < r.events[0].t_ns for r in ran.trace.requests)
    assert ran.trace.clock == "host"


def test_prefill_ends_with_the_first_token():
    session = TransformersModel(loaded(tiny_llama()))
    ran = session.run(Prefill(batch=3, prompt_tokens=9), 0)
    assert [r.n_output_tokens for r in ran.trace.requests] == [1, 1, 1]


def test_a_session_says_what_its_last_run_used():
    session = TransformersModel(loaded(tiny_llama(), cache="static"))
    assert session.opened().effective.cache == ""
    session.run(WORK, 0)
    effective = session.describe().effective
    assert effective.cache == "StaticCache"
    assert effective.decode_loop == "generate"
    assert (effective.compile_mode, effective.compiled_graphs) == (None, 0)


def test_memory_of_a_run_counts_weights_and_the_cache():
    model = tiny_llama()
    memory = TransformersModel(loaded(model)).read_memory(WORK, 0)
    assert memory.weights == sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    per_token = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, head_dim, bytes
    assert memory.kv_cache == per_token * 2 * (6 + 5 - 1)
    assert memory.peak is not None
    assert memory.reserved is None
    assert "CPU" in memory.reasons["reserved"]


@pytest.mark.parametrize("tied", [False, True])
def test_the_cost_of_a_step_is_that_of_the_tensors_it_reads(tied):
    """By hand: hidden 32, 4 heads of 8, 2 KV heads, MLP 64, 2 layers, vocabulary 320, float32."""
    step = TransformersModel(loaded(tiny_llama(tied=tied))).run(WORK, 0).step
    layer = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64
    norms, head = 32 * 5, 320 * 32
    looked_up = 0 if tied else 2 * 32  # one row of the embedding for each of two sequences
    assert step.weight_bytes_read == 4 * (2 * layer + norms + head + looked_up)
    assert step.flops_per_token == 2 * (2 * layer + head)
    assert step.attention_flops_per_token_per_position == 2 * 4 * 32
    assert step.kv_bytes_per_token == 2 * 2 * 16 * 4
    assert step.compute_dtype == "float32"


def test_right_padding_asked_for_in_the_plan_is_refused():
    with pytest.raises(UsageError, match="padding_side"):
        TransformersModel(loaded(tiny_llama(), options=(("padding_side", "right"),)))


def test_texts_for_a_model_without_tokenizer_are_a_usage_error():
    session = TransformersModel(loaded(tiny_llama()))
    with pytest.raises(UsageError, match="no tokenizer"):
        session.run(
            Decode(prompts=PromptSet(name="x", texts=("hello",)), prompt_tokens=None, new_tokens=2),
            0,
        )


def test_a_closed_session_holds_no_model():
    session = TransformersModel(loaded(tiny_llama()))
    session.close()
    with pytest.raises(AttributeError):
        session.run(WORK, 0)
