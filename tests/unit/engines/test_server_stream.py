"""Streams of bytes to token events: messages that are no tokens, bundles, wrong JSON, TGI's schema.

And servers' metrics.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.core.metrics import server_metrics
from pytest_llmperf.engines.server.client import Call, RequestOutcome
from pytest_llmperf.engines.server.counting import count_marks
from pytest_llmperf.engines.server.messages.events import DoneSeen
from pytest_llmperf.engines.server.stream import (
    Answer,
    BadStream,
    answer,
    parse_openai,
    parse_tgi,
    spread,
)


def chunks(*messages, each_ns=1000):
    """Server-sent events, one chunk of bytes each."""
    return [
        ((i + 1) * each_ns, f"data: {m if isinstance(m, str) else json.dumps(m)}\n\n".encode())
        for i, m in enumerate(messages)
    ]


def text(words, **more):
    return {"model": "m", "choices": [{"text": words, **more}]}


def delta(**what):
    finish = what.pop("finish_reason", None)
    return {"choices": [{"delta": what, "finish_reason": finish}]}


USAGE = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 4}}


def test_a_completion_is_its_messages_with_text():
    """Each is a token at the time its bytes came; usage and the end are none."""
    found = answer(
        chunks(
            text("a"), text(" b"), text(" c"), text(" d", finish_reason="length"), USAGE, "[DONE]"
        ),
        parse_openai,
    )
    assert [(e.t_ns, e.n_tokens) for e in found.events] == [
        (1000, 1),
        (2000, 1),
        (3000, 1),
        (4000, 1),
    ]
    assert (found.n_prompt, found.n_output, found.model, found.text) == (7, 4, "m", "a b c d")


def test_a_role_an_empty_text_and_usage_are_no_tokens():
    """The first token of a chat is its first text, of any channel."""
    messages = [
        delta(role="assistant", content=""),
        delta(content=None),
        delta(reasoning_content="hm"),
        delta(content="yes"),
        delta(finish_reason="stop"),
    ]
    found = answer(chunks(*messages), parse_openai)
    assert [e.t_ns for e in found.events] == [3000, 4000]
    assert found.counted == "messages"


def test_tool_calls_are_tokens():
    """Their arguments are generated too."""
    found = answer(
        chunks(
            delta(tool_calls=[{"function": {"arguments": "{"}}]), delta(finish_reason="tool_calls")
        ),
        parse_openai,
    )
    assert len(found.events) == 1


def test_of_a_tool_call_the_model_wrote_name_and_arguments():
    """The id and the index are the server's."""
    call = {"index": 0, "id": "call_1", "function": {"name": "look", "arguments": '{"at": 1}'}}
    messages = [delta(tool_calls=[call]), delta(finish_reason="tool_calls")]
    assert answer(chunks(*messages), parse_openai).text == 'look{"at": 1}'


def test_an_event_that_is_an_error_by_name_is_one():
    """Whatever its data say, and although the stream ends as others do."""
    event = b'event: error\ndata: {"code": 500, "reason": "out of blocks"}\n\n'
    stream = [*chunks(text("a")), (9, event), *chunks(USAGE, "[DONE]")]
    with pytest.raises(BadStream, match=r"the server sent an error: .*out of blocks"):
        answer(stream, parse_openai)


@pytest.mark.parametrize(
    "fields",
    [
        {"usage": {"prompt_tokens_details": {"cached_tokens": 6}}},
        {"usage": {"prompt_cache_hit_tokens": 6}},
        {"usage": {"cached_tokens": 6}},
        {"timings": {"cache_n": 6}},
    ],
)
def test_tokens_from_a_cache_are_seen_wherever_a_server_says_so(fields):
    """In any message: the last may say 0."""
    last = USAGE | {"usage": USAGE["usage"] | {"prompt_tokens_details": {"cached_tokens": 0}}}
    stream = chunks(text("a") | fields, text("b", finish_reason="length"), last)
    assert answer(stream, parse_openai).n_cached == 6


@pytest.mark.parametrize(
    ("pieces", "seen"),
    [
        ([b"data: [DONE]\n\n"], [True]),
        ([b'data: {"text": "[DONE]"}\n\n'], [False]),
        ([b"data: {}\n\ndata: [DO", b"NE]\r", b"\n"], [False, True, True]),
        ([b"data: [DONE]"], [False]),
    ],
)
def test_the_line_that_ends_a_stream_is_seen_when_it_is_whole(pieces, seen):
    is_done = DoneSeen()
    assert [is_done(piece) for piece in pieces] == seen


def test_token_ids_count_what_a_message_bundles():
    """As vLLM sends them with return_token_ids."""
    found = answer(
        chunks(
            text("a", token_ids=[1]),
            text("bcd", token_ids=[2, 3, 4], finish_reason="length"),
            USAGE,
        ),
        parse_openai,
    )
    assert [e.n_tokens for e in found.events] == [1, 3]
    assert found.counted == "ids"


def test_running_usage_counts_what_a_message_bundles():
    """As vLLM sends it with continuous_usage_stats."""
    first = text("a") | {"usage": {"prompt_tokens": 7, "completion_tokens": 1}}
    last = text("bcd", finish_reason="length") | {
        "usage": {"prompt_tokens": 7, "completion_tokens": 4}
    }
    found = answer(chunks(first, last), parse_openai)
    assert [e.n_tokens for e in found.events] == [1, 3]
    assert found.counted == "usage"


def test_without_either_the_total_is_spread_by_length():
    """Four tokens in two messages, the second three times as long."""
    found = answer(chunks(text("a"), text("bcd", finish_reason="length"), USAGE), parse_openai)
    assert [e.n_tokens for e in found.events] == [1, 3] or [e.n_tokens for e in found.events] == [
        2,
        2,
    ]
    assert sum(e.n_tokens for e in found.events) == 4
    assert found.counted == "spread"


def test_fewer_tokens_than_messages_end_in_as_many():
    """A character whose bytes came one message each: the others are no tokens, the last is."""
    assert spread(2, [1, 1, 1, 1]) == [0, 1, 0, 1]
    assert spread(3, [1, 1, 1]) == [1, 1, 1]
    assert spread(6, [1, 2, 0]) == [2, 3, 1]


@given(st.integers(0, 200), st.lists(st.integers(0, 30), min_size=1, max_size=30))
def test_spreading_keeps_the_total(total, weights):
    """Nothing is lost, nothing is negative, and each message has one where there are enough."""
    counts = spread(total, weights)
    assert sum(counts) == total
    assert min(counts) >= (1 if total >= len(weights) else 0)


def test_usage_that_goes_back_is_not_believed():
    """Then the last of it is the total."""
    first = text("a") | {"usage": {"completion_tokens": 3}}
    last = text("b", finish_reason="length") | {"usage": {"completion_tokens": 2}}
    found = answer(chunks(first, last), parse_openai)
    assert ([e.n_tokens for e in found.events], found.counted) == ([1, 1], "total")


def test_bytes_may_be_cut_anywhere():
    """The time of a message is that of its last byte."""
    whole = b"".join(data for _, data in chunks(text("a"), text("b", finish_reason="length")))
    found = answer([(i, whole[i : i + 1]) for i in range(len(whole))], parse_openai)
    first_end = whole.index(b"\n")
    assert found.events[0].t_ns == first_end
    assert found.text == "ab"


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (
            [text("a"), text("b")],
            "ended after 2 messages with text, before the server said why it stopped",
        ),
        ([text("a"), '{"choices": ['], "message 1 is not what the protocol says"),
        ([text("a"), '{"choices": 5}'], "message 1 is not what the protocol says"),
        (
            [text("a"), {"error": {"message": "out of blocks"}}],
            "the server sent an error: out of blocks",
        ),
        ([{"error": "gone"}], "the server sent an error: gone"),
        (
            [{"object": "error", "message": "context is 512 tokens", "code": 400}],
            "the server sent an error: context is 512 tokens",
        ),
        ([], "ended after 0 messages"),
        (
            [text("a"), {"choices": [{"index": 1, "text": "b"}]}, "[DONE]"],
            "has 2 choices, one was asked for",
        ),
        (
            [text("a"), {"model": "n", "choices": [{"text": "b"}]}, "[DONE]"],
            "name several models: m, n",
        ),
        ([text("a", finish_reason="abort")], "broke the answer off: its finish reason is 'abort'"),
        ([text("a"), "[" * 200_000], "message 1 is not what the protocol says"),
        ([text("a", finish_reason="")], "before the server said why it stopped"),
        ([text("a", finish_reason="null")], "before the server said why it stopped"),
        ([text("a", finish_reason="canceled")], "its finish reason is 'canceled'"),
        ([text("a", finish_reason="SAFETY")], "its finish reason is 'SAFETY'"),
        (
            [text("a"), {"detail": "Internal Server Error"}, USAGE, "[DONE]"],
            "the server sent an error: Internal Server Error",
        ),
        (
            [text("a"), {"message": "out of memory", "code": 500}, USAGE, "[DONE]"],
            "the server sent an error: out of memory",
        ),
        ([text("a"), USAGE, text("b"), USAGE], "before the server said why it stopped"),
    ],
)
def test_a_stream_that_is_wrong_says_how(messages, said):
    """The request failed, with this reason."""
    with pytest.raises(BadStream, match=said):
        answer(chunks(*messages), parse_openai)


TGI = """data:{"index":1,"token":{"id":325,"text":" Deep","logprob":-0.53,"special":false},\
"generated_text":null,"details":null}

data:{"index":2,"token":{"id":3257,"text":" learning","logprob":-0.15,"special":false},\
"generated_text":null,"details":null}

data:{"index":3,"token":{"id":2,"text":"</s>","logprob":-0.01,"special":true},\
"generated_text":" Deep learning","details":\
{"finish_reason":"eos_token","generated_tokens":3,"seed":null,"input_length":5}}

"""
"""A conversation in the form of TGI's published schema (StreamResponse, StreamDetails)."""


def test_a_conversation_with_tgi_is_read():
    """One token a message, the special one too."""
    found = answer([(10, TGI.encode())], parse_tgi)
    assert [e.n_tokens for e in found.events] == [1, 1, 1]
    assert (found.n_prompt, found.n_output) == (5, 3)


def test_tgis_errors_are_failures():
    """`{"error": …, "error_type": …}` in the stream."""
    with pytest.raises(BadStream, match="Request failed during generation"):
        answer(
            chunks({"error": "Request failed during generation", "error_type": "generation"}),
            parse_tgi,
        )
    with pytest.raises(BadStream, match="neither 'token' nor 'error'"):
        answer(chunks({"text": "x"}), parse_tgi)


PAGE = """# HELP vllm:num_preemptions_total Cumulative
vllm:num_preemptions_total{engine="0",model_name="m"} 2.0
vllm:num_preemptions_total{engine="1",model_name="m"} 1.0
vllm:kv_cache_usage_perc{engine="0"} 0.5
vllm:num_requests_running{engine="0"} NaN
vllm:prefix_cache_queries_total 100
vllm:prefix_cache_hits_total 10
other_metric{le="+Inf"} 5
"""


def test_a_page_of_metrics_is_read_by_our_names():
    """Engines add up; what is not a number is left out."""
    assert server_metrics.read(PAGE) == {
        "preemptions": 3,
        "kv_use": 0.5,
        "prefix_queries": 100,
        "prefix_hits": 10,
    }
    assert server_metrics.read("<html>") == {}


def test_samples_give_the_largest_gauges_and_what_the_counters_grew_by():
    """Hits of 30 in 100 tokens, 2 preemptions, at most 7 running."""
    first = {"preemptions": 1.0, "running": 2.0, "prefix_queries": 100.0, "prefix_hits": 10.0}
    last = {"preemptions": 3.0, "running": 0.0, "prefix_queries": 200.0, "prefix_hits": 40.0}
    found = server_metrics.summarized([first, {"running": 7.0}, last])
    assert found == {
        "running_max": 7,
        "preemptions": 2,
        "prefix_hits": 30,
        "prefix_queries": 100,
        "prefix_hit_share": 0.3,
    }
    assert server_metrics.summarized([]) == {}


def test_bytes_that_are_no_text_are_not_counted_again():
    """A token of such bytes reads as several.

    The same count of readable text is held against the tokenizer's.
    """

    def marks(text: str) -> list:
        outcome = RequestOutcome(Call(body=b"", n_prompt_tokens=1, n_output_tokens=20), due_ns=0)
        outcome.answer = Answer(
            events=(),
            text=text,
            n_prompt=1,
            n_output=20,
            n_cached=0,
            model=None,
            counted="usage",
        )
        return count_marks([outcome], len, fixed=True)

    assert marks("\ufffd" * 60) == []
    assert [mark.kind for mark in marks("a" * 60)] == ["token-counts"]


@pytest.mark.parametrize(("piece", "kinds"), [("abcd", ["token-counts"]), ("a", [])])
def test_messages_of_several_tokens_that_nobody_counts_are_marked(piece, kinds):
    """A tokenizer of letters: 30 messages of four each, or of one."""
    messages = [*[text(piece)] * 30, text(piece, finish_reason="stop")]
    outcome = RequestOutcome(Call(body=b"", n_prompt_tokens=1, n_output_tokens=64), due_ns=0)
    outcome.answer = answer(chunks(*messages), parse_openai)
    marks = count_marks([outcome], len, fixed=False)
    assert [mark.kind for mark in marks] == kinds
    assert all("makes 124 of the text of 31 messages" in mark.detail for mark in marks)
