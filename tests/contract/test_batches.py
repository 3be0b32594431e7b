"""Many requests at once in transformers: static batches, and its own continuous ones.

They are compared with each request alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import msgspec
import pytest
from support.generating import CPU, VOCAB, loaded, tiny_llama
from transformers import LlamaForCausalLM

from pytest_llmperf.core.metrics.batching import padding_share
from pytest_llmperf.engines.outputs.inputs import Vocabulary, left_padded
from pytest_llmperf.engines.outputs.requests import BatchRequests, batch_requests
from pytest_llmperf.engines.refusals.decode import continuous
from pytest_llmperf.engines.transformers import continuous as batching_of_transformers
from pytest_llmperf.engines.transformers.batches import in_static_batches
from pytest_llmperf.engines.transformers.continuous import ContinuousLoop, require_complete
from pytest_llmperf.engines.transformers.generate import GenerateLoop
from pytest_llmperf.engines.transformers.loaded import TransformersModel
from pytest_llmperf.engines.transformers.positions import counted_positions
from pytest_llmperf.errors import InvalidRun, UsageError
from pytest_llmperf.strategies.batching import batches_continuously
from pytest_llmperf.workloads import Batch, Decode, PromptSet

WORK = Batch(requests=5, prompt_tokens=(3, 12), max_new_tokens=(2, 9), batch=2)
REQUESTS = BatchRequests([[11, 12, 13], [21, 22, 23, 24, 25, 26, 27], [31], [41, 42]], (2, 7, 5, 3))


def session(**fields) -> TransformersModel:
    return TransformersModel(loaded(tiny_llama(), **fields))


def alone(model, requests: BatchRequests) -> list[list[int]]:
    """Each request by itself, without padding."""
    loop = GenerateLoop(model, loaded(model).plan, 0)
    return [
        loop.decode(left_padded([row], 0, CPU), n).tokens[0].tolist()
        for row, n in zip(requests.rows, requests.new_tokens, strict=True)
    ]


def test_static_batches_give_each_request_the_tokens_it_gets_alone():
    """In batches of two and of three, whose last one is short.

    Its times end with its own last token.
    """
    model = tiny_llama()
    loop = GenerateLoop(model, loaded(model).plan, 0)
    for size in (2, 3):
        answered = in_static_batches(loop, REQUESTS, size, 0, CPU)
        assert answered.tokens == alone(model, REQUESTS)
        assert [len(events) for events in answered.events] == list(REQUESTS.new_tokens)
        assert answered.events[0] == answered.events[1][:2]
        assert answered.events[2][0].t_ns > answered.events[1][-1].t_ns or size == 3


def test_continuous_batches_give_each_request_the_tokens_it_gets_alone():
    """No request waits for a longer one of its batch: the short ones end before the long one."""
    model = tiny_llama()
    answered = ContinuousLoop(model, 0).answer(REQUESTS)
    assert answered.tokens == alone(model, REQUESTS)
    ends = [events[-1].t_ns for events in answered.events]
    assert ends[0] < ends[3] < ends[2] < ends[1]
    assert all(events[0].t_ns > answered.start_ns for events in answered.events)
    assert answered.cache.kind == "PagedAttentionCache"
    assert answered.cache.bytes_per_position == 2 * 2 * 2 * 8 * 4


def test_the_manager_is_kept_for_equal_work_and_made_anew_for_other():
    """A larger cache is not left from before, and the attention implementation is put back."""
    model = tiny_llama()
    before = model.config._attn_implementation
    loop = ContinuousLoop(model, 0)
    first = loop.answer(REQUESTS)
    again = loop.answer(REQUESTS)
    other = loop.answer(BatchRequests([[1, 2, 3] * 20], (4,)))
    assert first.tokens == again.tokens
    assert first.cache == again.cache
    assert other.cache.bytes != first.cache.bytes
    assert model.config._attn_implementation == before


def test_computed_positions_are_those_of_the_forward_passes():
    """Two batches of two by hand: (7 + 7 - 1) x 2 and (2 + 5 - 1) x 2.

    The counter sees every call and no other.
    """
    model = tiny_llama()
    loop = GenerateLoop(model, loaded(model).plan, 0)
    with counted_positions(model) as positions:
        in_static_batches(loop, REQUESTS, 2, 0, CPU)
    assert positions.n == 2 * (7 + 7 - 1) + 2 * (2 + 5 - 1)
    loop.decode(left_padded(REQUESTS.rows, 0, CPU), 2)
    assert positions.n == 38
    assert positions.at_least(38) == 38
    assert positions.at_least(39) is None


@pytest.mark.parametrize("batching", [None, "continuous"])
def test_a_session_runs_a_batch(batching):
    """Every request with its length; padding is counted, and continuous batches have none.

    Memory and energy go through too.
    """
    opened = session(batching=batching)
    ran = opened.run(WORK, 0)
    lengths = [request.n_output_tokens for request in ran.trace.requests]
    assert tuple(lengths) == WORK.output_lengths
    assert tuple(request.n_prompt_tokens for request in ran.trace.requests) == WORK.prompt_lengths
    padding = padding_share(ran.trace, ran.trace.requests)
    assert (padding == 0) is (batching is not None)
    assert 0 <= padding < 0.9
    assert opened.describe().effective.batching == (batching or "static")
    assert opened.read_memory(WORK, 1).kv_cache > 0
    opened.read_energy(WORK, 2, 0.0)


class OneByOne(LlamaForCausalLM):
    """Its manager is told to take one request at a time."""

    def init_continuous_batching(self, *args, continuous_batching_config=None, **kwargs):
        config = replace(continuous_batching_config, max_requests_per_batch=1)
        return super().init_continuous_batching(*args, continuous_batching_config=config, **kwargs)


@pytest.mark.parametrize(
    ("cls", "batching"), [(LlamaForCausalLM, "continuous"), (OneByOne, "one request at a time")]
)
def test_requests_that_are_decoded_one_by_one_are_no_continuous_batch(cls, batching):
    """Their tokens' times show it, whatever the manager is called."""
    model = tiny_llama()
    model.__class__ = cls
    opened = TransformersModel(loaded(model, batching="continuous"))
    opened.run(WORK, 0)
    described = opened.describe().effective
    assert described.batching == batching
    assert (batches_continuously("continuous").broken(described) is None) == (cls is not OneByOne)
    assert any("requests were decoded at once" in note for note in described.notes)


def test_both_ways_read_and_write_the_same_tokens():
    """The hashes of a record are equal for equal work."""
    static, batched = session().run(WORK, 3), session(batching="continuous").run(WORK, 3)
    assert (static.prompts_hash, static.outputs_hash) == (
        batched.prompts_hash,
        batched.outputs_hash,
    )
    assert session().run(WORK, 4).prompts_hash != static.prompts_hash


def test_continuous_batching_decodes_one_batch_too():
    """The workloads whose sequences step together run under the part as well."""
    work = Decode(batch=2, prompt_tokens=5, new_tokens=4)
    static, batched = session().run(work, 0), session(batching="continuous").run(work, 0)
    assert static.outputs_hash == batched.outputs_hash
    assert [r.n_output_tokens for r in batched.trace.requests] == [4, 4]


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ({"error": "out of pages"}, "request 0 of a continuous batch failed: out of pages"),
        (
            {"generated_tokens": (1,)},
            "asked for exactly 2 new tokens, got 1 tokens and 2 timestamps",
        ),
        ({"timestamps": (1.0,)}, "got 2 tokens and 1 timestamps"),
    ],
)
def test_a_request_that_failed_or_is_too_short_is_an_invalid_run(output, reason):
    """What transformers logs and goes on from."""
    complete = {"error": None, "generated_tokens": (1, 2), "timestamps": (1.0, 2.0)}
    require_complete([SimpleNamespace(**complete)], [2])
    with pytest.raises(InvalidRun, match=reason):
        require_complete([SimpleNamespace(**complete | output)], [2])


@pytest.mark.parametrize(
    "fields",
    [
        {"cache": "static"},
        {"compile": "default"},
        {"assist": "prompt-lookup"},
        {"autocast_dtype": "bfloat16"},
        {"adapters": ("/a",)},
        {"tp": 2, "ranks": 2},
        {"offload": "disk"},
    ],
)
def test_what_continuous_batching_does_not_go_with_is_refused(fields):
    """Before anything loads, with what to leave out.

    A merged adapter and a quantized model are fine.
    """
    plain = loaded(tiny_llama(), batching="continuous").plan
    assert continuous(plain) is None
    assert "does not go with" in continuous(msgspec.structs.replace(plain, **fields))
    assert continuous(msgspec.structs.replace(plain, adapters=("/a",), merge_adapters=True)) is None


def test_a_transformers_without_these_settings_is_named_before_anything_loads(monkeypatch):
    """5.17 calls a page a block: on an H200 it failed in the first run, with everything loaded."""

    @dataclass
    class Older:
        block_size: int = 256

    asked_for = loaded(tiny_llama(), batching="continuous").plan
    batching_of_transformers.require_continuous(asked_for)
    monkeypatch.setattr(batching_of_transformers, "ContinuousBatchingConfig", Older)
    with pytest.raises(
        UsageError, match=r"'continuous' needs transformers 5\.19 or newer, .* is installed"
    ):
        batching_of_transformers.require_continuous(asked_for)
    batching_of_transformers.require_continuous(msgspec.structs.replace(asked_for, batching=None))


def test_prompts_are_drawn_as_the_workload_says():
    """Fresh in each repetition, of equal lengths; a text without a tokenizer is an error."""
    vocabulary = Vocabulary(size=VOCAB, special=frozenset({0}), pad=0)
    first, second = (
        batch_requests(WORK, 0, vocabulary, None),
        batch_requests(WORK, 1, vocabulary, None),
    )
    assert [len(row) for row in first.rows] == list(WORK.prompt_lengths)
    assert first.rows != second.rows
    assert first.positions == sum(WORK.prompt_lengths) + sum(WORK.output_lengths) - 5
    assert batch_requests(WORK, 0, vocabulary, None).rows == first.rows
    with pytest.raises(UsageError, match="no tokenizer"):
        batch_requests(Batch(prompts=PromptSet.bundled("short-chat")), 0, vocabulary, None)


def test_replicas_are_not_given_a_batch():
    """Each would have to take its own requests."""
    opened = session(dp=2)
    with pytest.raises(UsageError, match="not divided among replicas"):
        opened.run(WORK, 0)
