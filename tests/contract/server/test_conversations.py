"""Conversations with a server: contexts that grow by answers, times to think, shared prefixes."""

from __future__ import annotations

import json

import pytest

from pytest_llmperf import Conversations, Serve, Traffic, Turn
from pytest_llmperf.core.metrics.serving import reduce_serving
from pytest_llmperf.engines.server.dialogs.contexts import Context, block_prompt
from pytest_llmperf.engines.server.prompts import Prompts
from pytest_llmperf.errors import InvalidRun

TALKS = Conversations.synthetic(
    3, turns=3, prompt_tokens=5, output_tokens=4, think_s=0.05, system_tokens=12
)
LOAD = Serve(conversations=TALKS, concurrency=2, timeout=5, prefix_cache=True)


@pytest.mark.parametrize("options", [{"prompt_ids": True}, {}, {"protocol": "openai-chat"}],
                         ids=["ids", "text", "chat"])  # fmt: skip
def test_contexts_grow_by_what_was_said_and_answered(start, options):
    """12 tokens that all share, 5 a turn, 4 an answer; the server counts as many as were sent."""
    served = start("--token-ms 1", **options).serve(LOAD, 0)
    requests = served.trace.requests
    assert len(requests) == 9
    assert sorted(request.turn for request in requests) == [1] * 3 + [2] * 3 + [3] * 3
    if options.get("protocol") != "openai-chat":
        prompts = {request.turn: request.n_prompt_tokens for request in requests}
        assert prompts == {1: 17, 2: 26, 3: 35}
    summary = reduce_serving([served.trace], LOAD).serving
    assert summary.requests_by_turn == (3, 3, 3)
    assert len(summary.ttft_by_turn) == 3


def test_a_turn_waits_for_the_answer_before_it_and_for_its_time_to_think(start):
    """It is due then: the time to think is in no latency."""
    served = start("--token-ms 2", prompt_ids=True).serve(LOAD, 0)
    talks = sorted(served.trace.requests, key=lambda request: request.t_due_ns)
    firsts = [request for request in talks if request.turn == 1]
    assert firsts[2].t_due_ns >= min(r.t_end_ns for r in talks if r.turn == 3)
    for request in talks:
        if request.turn == 2:
            earlier = [r.t_end_ns for r in firsts if r.t_end_ns <= request.t_due_ns]
            assert any(request.t_due_ns - end_ns >= 49e6 for end_ns in earlier)
    latency = reduce_serving([served.trace], LOAD).latency
    assert latency.p50 <= 0.05


def test_a_failed_turn_ends_its_conversation_and_no_other(start):
    """Without its answer there is no context to go on with."""
    session = start("--fault http-503 --first 4", prompt_ids=True)
    requests = session.serve(Serve(conversations=TALKS, concurrency=1, timeout=5), 0).trace.requests
    assert [request.turn for request in requests] == [1, 2, 3, 1, 1] or len(requests) < 9
    assert any(request.failure for request in requests)


def test_conversations_start_when_their_trace_says_and_end_in_time(start):
    """An open loop of conversations; no turn is sent after the duration."""
    talks = Conversations(
        name="two", turns=((Turn(prompt_tokens=4),), (Turn(prompt_tokens=4),)), starts_s=(0.0, 0.2)
    )
    session = start(prompt_ids=True)
    work = Serve(conversations=talks, max_new_tokens=2, timeout=5)
    first, second = (request.t_due_ns for request in session.serve(work, 0).trace.requests)
    assert (second - first) / 1e9 == pytest.approx(0.2, abs=0.01)
    short = Serve(conversations=talks, max_new_tokens=2, timeout=5, duration=0.1)
    assert len(session.serve(short, 1).trace.requests) == 1


def test_a_shared_prefix_hits_and_must_be_asked_for(start):
    """The server's cache keeps what conversations share: a hit that nobody asked for is INVALID."""
    session = start("--fault says-cached --first 2", prompt_ids=True)
    with pytest.raises(InvalidRun, match="prefix cache hit"):
        session.serve(Serve(conversations=TALKS, concurrency=2, timeout=5), 0)
    assert session.serve(LOAD, 1).trace.requests[0].n_cached_tokens > 0


def test_contexts_share_their_system_and_nothing_else(model):
    """Two conversations of two repetitions begin alike; what is drawn differs."""
    from tokenizers import Tokenizer

    prompts = Prompts(Tokenizer.from_file(str(model / "tokenizer.json")))
    said = [
        Context(prompts, TALKS, repetition, number).say(TALKS.turns[0][0], 1).ids
        for repetition, number in ((0, 0), (0, 1), (1, 0))
    ]
    assert {ids[:12] for ids in said} == {said[0][:12]}
    assert len({ids[12:] for ids in said}) == 3
    tool = Context(prompts, TALKS, 0, 0)
    prompt = tool.say(Turn(text="w1 w2", role="tool"), 1)
    assert [message["role"] for message in prompt.messages] == ["system", "user"]


def test_prompts_of_a_trace_share_the_blocks_of_equal_hashes(start, model, tmp_path):
    """The first block of both is one; their second is not."""
    from tokenizers import Tokenizer

    prompts = Prompts(Tokenizer.from_file(str(model / "tokenizer.json")))
    one, two = (block_prompt(prompts, blocks, 4, 7).ids for blocks in ((1, 2), (1, 3)))
    assert one[:4] == two[:4]
    assert one[4:] != two[4:]
    assert len(one) == 7
    rows = [
        {"timestamp": at, "input_length": 6, "output_length": 2, "hash_ids": [5]} for at in (0, 50)
    ]
    path = tmp_path / "mooncake.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    work = Serve(traffic=Traffic.from_mooncake(path), timeout=5, prefix_cache=True)
    requests = start(prompt_ids=True).serve(work, 0).trace.requests
    assert [request.n_prompt_tokens for request in requests] == [6, 6]
    assert [request.n_output_tokens for request in requests] == [2, 2]


def test_the_template_of_a_chat_is_named_by_its_hash(start, model):
    """Its text decides what a server makes of messages; without one nothing is said."""
    silent = start(protocol="openai-chat").describe().effective.notes
    assert not any("chat template" in note for note in silent)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "{{ messages }}"}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    notes = start(protocol="openai-chat").describe().effective.notes
    (said,) = [note for note in notes if "chat template" in note]
    assert "sha256" in said
    (model / "chat_template.jinja").write_text("another")
    (other,) = [
        note
        for note in start(protocol="openai-chat").describe().effective.notes
        if "chat template" in note
    ]
    assert other != said
