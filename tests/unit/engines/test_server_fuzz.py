"""A stream of any bytes is an answer or a failed request with a reason: no internal error."""

from __future__ import annotations

import contextlib
import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.engines.server.client import Call, RequestOutcome
from pytest_llmperf.engines.server.counting import count_marks, require_lengths, require_prompts
from pytest_llmperf.engines.server.messages.events import messages
from pytest_llmperf.engines.server.stream import Answer, BadStream, answer, parse_openai, parse_tgi
from pytest_llmperf.errors import InvalidRun

COUNTS = st.none() | st.integers(-(2**70), 2**70) | st.integers(0, 40)
WORDS = st.none() | st.text(max_size=6) | st.lists(st.just({"text": "a"}), max_size=2)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def some(**fields: st.SearchStrategy) -> st.SearchStrategy[dict]:
    return st.fixed_dictionaries({}, optional=fields)


CHOICE = some(
    index=st.integers(-1, 2),
    text=WORDS,
    delta=some(role=st.just("assistant"), content=WORDS, reasoning=WORDS, tool_calls=JUNK),
    token_ids=st.none() | st.lists(st.integers(0, 9), max_size=4),
    finish_reason=st.sampled_from([None, "", "stop", "length", "error", 3]),
)
USAGE = some(
    prompt_tokens=COUNTS,
    completion_tokens=COUNTS,
    prompt_tokens_details=some(cached_tokens=COUNTS),
    completion_tokens_details=some(reasoning_tokens=COUNTS),
)
MESSAGE = some(
    choices=st.lists(CHOICE, max_size=2) | JUNK,
    usage=st.none() | USAGE | JUNK,
    model=st.sampled_from(["m", "n", None]),
    error=JUNK,
    object=JUNK,
    token=some(text=WORDS, special=st.booleans()),
    details=some(generated_tokens=COUNTS, finish_reason=st.just("length")),
)
LINE = st.one_of(
    MESSAGE.map(lambda message: b"data: " + json.dumps(message).encode()),
    st.binary(max_size=20).map(lambda junk: b"data:" + junk),
    st.binary(max_size=20),
    st.sampled_from([b"", b"data: [DONE]", b": ping", b"event: error", b"data:", b"\xef\xbb\xbf"]),
)
ENDS = st.sampled_from([b"\n\n", b"\r\n\r\n", b"\r\r", b"\n", b"\r", b""])


@st.composite
def streams(draw) -> list[tuple[int, bytes]]:
    """Lines with ends of any kind, cut anywhere, each piece later than the one before."""
    whole = b"".join(line + end for line, end in draw(st.lists(st.tuples(LINE, ENDS), max_size=12)))
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    edges = [0, *cuts, len(whole)]
    return [(10 * i, whole[begin:end]) for i, (begin, end) in enumerate(pairwise(edges), start=1)]


def read(chunks, parse) -> Answer | str:
    try:
        return answer(chunks, parse)
    except BadStream as error:
        return str(error)


@given(streams(), st.sampled_from([parse_openai, parse_tgi]))
def test_any_stream_is_an_answer_or_has_a_reason(chunks, parse):
    """Its times are in order and those of its bytes, its text can be written, its reason shown."""
    found = read(chunks, parse)
    if isinstance(found, str):
        assert found
        found.encode()
        return
    times_ns = [event.t_ns for event in found.events]
    assert times_ns == sorted(times_ns)
    assert set(times_ns) <= {t_ns for t_ns, _ in chunks}
    assert all(event.n_tokens > 0 for event in found.events)
    found.text.encode()


@given(streams())
def test_any_answer_is_judged_without_an_internal_error(chunks):
    """As the client reads it, and as it is held against what was asked for."""
    outcome = RequestOutcome(Call(body=b"", n_prompt_tokens=4, n_output_tokens=8), due_ns=0)
    outcome.chunks = list(chunks)
    outcome.read(parse_openai)
    trace = outcome.trace()
    assert (trace.failure is None) == bool(trace.events)
    count_marks([outcome], len, fixed=True)
    for check in (require_lengths, require_prompts):
        with contextlib.suppress(InvalidRun):
            check([outcome], **{"fixed": True} if check is require_lengths else {"chat": False})


@given(streams())
def test_messages_are_the_same_wherever_the_bytes_are_cut(chunks):
    """Only their times differ."""
    whole = b"".join(data for _, data in chunks)
    single = [(i, whole[i : i + 1]) for i in range(len(whole))]
    assert [m.data for m in messages(chunks)] == [m.data for m in messages(single)]
