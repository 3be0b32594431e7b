"""When a token came is told by its message, not by its text; what no sign tells is named."""

from __future__ import annotations

import json

import pytest

from pytest_llmperf.core.metrics.request_times import latency_s, tpot_s, ttft_s
from pytest_llmperf.core.trace import RequestTrace
from pytest_llmperf.engines.server.stream import answer, parse_openai, parse_tgi

MS = 1_000_000
N = 16
"""Tokens of each answer, one each 10 ms."""

SHOWN = {
    "all": range(N),
    "head hidden": range(14, N),
    "tail hidden": range(2),
    "middle hidden": (0, 1, 14, 15),
    "all hidden": (),
}


def event(t_ms: int, message: object) -> tuple[int, bytes]:
    data = message if isinstance(message, str) else json.dumps(message)
    return t_ms * MS, f"data: {data}\n\n".encode()


def usage(n: int = N, **more: object) -> dict:
    return {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": n, **more}}


def openai(i: int, shown: bool, *, signs: str, chat: bool) -> dict:
    words = " the" if shown else ""
    choice: dict = {"delta": {"content": words}} if chat else {"text": words}
    choice["finish_reason"] = "length" if i == N - 1 else None
    if signs == "ids":
        choice["token_ids"] = [5]
    message = {"choices": [choice]}
    return message | {"usage": usage(i + 1)["usage"]} if signs == "usage" else message


def stream(shown, *, signs: str = "total", chat: bool = False) -> list[tuple[int, bytes]]:
    role = {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
    tokens = [event(10 * (i + 1), openai(i, i in shown, signs=signs, chat=chat)) for i in range(N)]
    ending = [event(10 * N + 1, usage()), event(10 * N + 1, "[DONE]")]
    return [*([event(1, role)] if chat else []), *tokens, *ending]


@pytest.mark.parametrize("shown", SHOWN.values(), ids=SHOWN)
@pytest.mark.parametrize("signs", ["total", "ids", "usage"])
@pytest.mark.parametrize("chat", [False, True], ids=["completions", "chat"])
def test_a_token_whose_text_is_hidden_has_its_own_time(shown, signs, chat):
    """By ids, by usage so far, and by a total that is the number of messages."""
    found = answer(stream(shown, signs=signs, chat=chat), parse_openai)
    assert [(e.t_ns // MS, e.n_tokens) for e in found.events] == [
        (10 * (i + 1), 1) for i in range(N)
    ]
    assert (found.counted, found.untimed) == (signs, "")


TGI_END = {"finish_reason": "length", "generated_tokens": N}


def test_tgis_special_tokens_have_no_text_and_are_tokens():
    messages = [
        event(
            10 * (i + 1),
            {
                "token": {"id": 5, "text": "" if i > 2 else " the", "special": i > 2},
                "details": TGI_END if i == N - 1 else None,
            },
        )
        for i in range(N)
    ]
    found = answer(messages, parse_tgi)
    assert [e.t_ns // MS for e in found.events] == [10 * (i + 1) for i in range(N)]


def traced(messages: list[tuple[int, bytes]]) -> RequestTrace:
    found = answer(messages, parse_openai)
    return RequestTrace(
        n_prompt_tokens=3,
        t_due_ns=0,
        events=found.events,
        t_last_ns=found.t_last_ns,
        untimed=found.untimed,
    )


def text(t_ms: int, words: str, finish: str | None = None) -> tuple[int, bytes]:
    return event(t_ms, {"choices": [{"text": words, "finish_reason": finish}]})


def end(t_ms: int) -> tuple[int, bytes]:
    return event(t_ms, {"choices": [{"delta": {}, "finish_reason": "length"}]})


def test_tokens_without_any_message_end_with_the_message_that_says_the_end():
    """Four of sixteen are shown, and nothing says when the others came: no mean time of a token."""
    request = traced([*(text(10 * i, " a") for i in range(1, 5)), end(160), event(160, usage())])
    assert (ttft_s(request), latency_s(request)) == (0.01, 0.16)
    assert request.n_output_tokens == N
    assert (request.untimed, tpot_s(request)) == ("tokens", None)


def test_one_hidden_token_in_a_hundred_moves_no_mean():
    """Half of a character: within 2 % it is known, and the gaps one by one are not."""
    texts = [text(10 * i, " a") for i in range(1, 199)]
    request = traced([*texts, end(2000), event(2001, usage(200))])
    assert request.untimed == "gaps"
    assert tpot_s(request) == pytest.approx(0.01)


def test_an_empty_message_first_and_too_few_messages_leave_the_first_token_unknown():
    """It may be the first of a bundle, or nothing. Where all others are counted it is nothing."""
    bundles = [text(10 * i, " a b c d") for i in range(2, 6)]
    request = traced([text(1, ""), *bundles, end(60), event(60, usage())])
    assert request.untimed == "first"
    counted = traced([text(1, ""), *bundles, end(60), event(60, usage(4))])
    assert (counted.untimed, ttft_s(counted)) == ("", 0.02)


def test_a_reasoning_that_is_counted_and_not_streamed_hides_the_first_token():
    hidden = usage(completion_tokens_details={"reasoning_tokens": 12})
    texts = [text(10 * i, " a") for i in range(13, 17)]
    assert traced([*texts, end(160), event(160, hidden)]).untimed == "first"
    thoughts = [
        event(10 * i, {"choices": [{"delta": {"reasoning_content": " a"}}]}) for i in range(1, 13)
    ]
    assert traced([*thoughts, *texts, end(160), event(160, hidden)]).untimed == ""


def test_empty_messages_without_a_total_are_no_sign():
    """Nothing says that they are tokens: their time is not taken, and not taken for known."""
    request = traced([text(10, " a"), text(20, " a"), text(30, ""), text(40, "", "length")])
    assert (request.n_output_tokens, request.untimed, latency_s(request)) == (2, "tokens", 0.04)


def test_one_message_has_no_time_of_a_token():
    request = traced([text(160, " a" * N, "length"), event(160, usage())])
    assert (request.n_output_tokens, tpot_s(request), latency_s(request)) == (N, None, 0.16)


@pytest.mark.parametrize("finish", [None, ""])
def test_done_or_the_final_usage_ends_a_stream_without_a_reason(finish):
    """An empty reason is none: what is cut in the middle is not whole."""
    texts = [text(10 * i, " a", finish) for i in range(1, N + 1)]
    assert traced([*texts, event(170, usage())]).n_output_tokens == N
    assert traced([*texts, event(170, "[DONE]")]).n_output_tokens == N
    with pytest.raises(Exception, match="before the server said why it stopped"):
        traced(texts)


CARRIAGE = [(t_ns, data.replace(b"\n", b"\r")) for t_ns, data in stream(range(N))[:N]]
SPANNING = [
    (
        10 * (i + 1) * MS,
        "".join(
            f"data: {line}\n"
            for line in json.dumps(openai(i, True, signs="total", chat=False), indent=1).split("\n")
        ).encode()
        + b": kept alive\n\n",
    )
    for i in range(N)
]


@pytest.mark.parametrize("messages", [CARRIAGE, SPANNING], ids=["CR", "several lines"])
def test_events_as_the_format_allows_them(messages):
    found = answer([*messages, event(161, usage())], parse_openai)
    assert [e.t_ns // MS for e in found.events] == [10 * (i + 1) for i in range(N)]


def test_lines_without_empty_ones_between_them_are_messages():
    """As some servers send them."""
    messages = [(t_ns, data.rstrip() + b"\n") for t_ns, data in stream(range(N))]
    assert len(answer(messages, parse_openai).events) == N


def test_halves_of_a_character_are_text_again_and_a_lone_one_is_no_error():
    messages = [
        (10 * MS, b'data: {"choices": [{"text": "\\ud83d"}]}\n\n'),
        (20 * MS, b'data: {"choices": [{"text": "\\ude00"}]}\n\n'),
        (30 * MS, b'data: {"choices": [{"text": "\\ud83d", "finish_reason": "length"}]}\n\n'),
        (40 * MS, b'data: {"choices": [{"text": "\xff"}]}\n\n'),
    ]
    found = answer(messages, parse_openai)
    assert (len(found.events), found.text) == (4, "\U0001f600\ufffd\ufffd")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            b'{"error": {"message": "the model is loading", "code": 503}}',
            "200 with an error: the m",
        ),
        (b'{"object": "error", "message": "too long"}', "200 with an error: too long"),
        (
            b"<html>\n<title>Sign in</title>",
            "not a stream of events: <html> <title>Sign in</title>",
        ),
        (
            b'{"choices": [{"text": " a", "finish_reason": "length"}]}',
            'not a stream of events: {"choi',
        ),
        (b"\x1b[31mred\x1b]0;t\x07", "not a stream of events: \ufffd[31mred"),
    ],
)
def test_a_body_that_is_no_stream_is_shown(body, said):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - its words are looked at
        answer([(1, body)], parse_openai)
    assert said in str(caught.value)
