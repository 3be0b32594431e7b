"""From the bytes of a streamed answer to its tokens. Pure.

A token becomes available when the bytes of its message arrive. Which messages are tokens is in
`messages/tokens.py`; how bytes become messages in `messages/events.py`; what a message says in
`messages/protocols.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from pytest_llmperf.core.trace import TokenEvent, Untimed
from pytest_llmperf.engines.server.messages import events as sse
from pytest_llmperf.engines.server.messages.piece import Piece
from pytest_llmperf.engines.server.messages.protocols import Parse, parse_openai, parse_tgi
from pytest_llmperf.engines.server.messages.tokens import Timed, spread, token_times

__all__ = ["Answer", "BadStream", "Piece", "answer", "parse_openai", "parse_tgi", "spread"]

SHOWN_BYTES = 300
"""How much of a body that is no stream is shown."""

BROKEN_OFF = frozenset(
    (
        *("abort", "aborted", "cancel", "cancelled", "canceled", "interrupted", "timeout"),
        *("error", "failed", "failure", "internal_error", "insufficient_system_resource"),
        *("content_filter", "safety", "recitation", "refusal", "blocklist", "prohibited_content"),
    )
)
"""Finish reasons, in small letters, of an answer that did not come to its end."""


class BadStream(Exception):
    """The request failed: what is wrong with its stream, and after how many messages."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One streamed answer.

    `events` are its tokens; the counts are the server's own where it gives them, None where it does
    not. `counted`, `untimed` and `t_last_ns` are those of `messages.tokens.TokenTimes`. `finish` is
    the reason that the server gave for its end, "" where it gave none.
    """

    events: tuple[TokenEvent, ...]
    text: str
    n_prompt: int | None
    n_output: int | None
    n_cached: int | None
    model: str | None
    counted: str
    untimed: Untimed = ""
    t_last_ns: int = 0
    finish: str = ""


def answer(chunks: Sequence[tuple[int, bytes]], parse: Parse) -> Answer:
    """Return the answer in these chunks of bytes, each with its time of arrival (ns).

    Raises:
        BadStream: a message cannot be read, is an error, the stream ended before the server said
            that it was finished, or it is not the one answer of one model that was asked for.
    """
    messages = sse.messages(chunks)
    if chunks and not messages:
        raise BadStream(_no_stream(chunks, parse))
    error = next((message for message in messages if message.is_error), None)
    if error is not None:
        raise BadStream(f"the server sent an error: {sse.body([error[:2]], SHOWN_BYTES)}")
    done = any(message.data == sse.DONE for message in messages)
    timed = [
        (message.t_ns, _parsed(message.data, parse, i))
        for i, message in enumerate(messages)
        if message.data != sse.DONE
    ]
    pieces = [piece for _, piece in timed]
    if not (done or _has_ended(pieces)):
        raise BadStream(_unfinished(pieces, messages))
    _require_one_answer(pieces)
    return _put_together(timed)


def _no_stream(chunks: Sequence[tuple[int, bytes]], parse: Parse) -> str:
    """Say what a body is that has no message: an error of the server's, or something else."""
    body = b"".join(data for _, data in chunks)
    try:
        error = parse(body).error
    except (msgspec.MsgspecError, RecursionError):
        error = None
    if error is not None:
        return f"the server answered HTTP 200 with an error: {error}"
    return (
        "the server's answer is not a stream of events: "
        f"{sse.body(chunks, SHOWN_BYTES) or 'it is empty'}"
    )


def _has_ended(pieces: Sequence[Piece]) -> bool:
    """Whether the server said why it stopped, or sent its final usage."""
    if any(piece.finish for piece in pieces):
        return True
    n_usage = sum(piece.n_output is not None and not piece.n_choices for piece in pieces)
    # More than one is a running usage between the tokens, and the last of these is no end.
    return n_usage == 1 and pieces[-1].n_output is not None and not pieces[-1].n_choices


def _unfinished(pieces: Sequence[Piece], messages: Sequence[sse.Message]) -> str:
    n_texts = sum(bool(piece.text) for piece in pieces)
    last = sse.body([message[:2] for message in messages[-1:]], SHOWN_BYTES)
    ending = f". Its last message: {last}" if last and not n_texts else ""
    return (
        f"the stream ended after {n_texts} messages with text, "
        f"before the server said why it stopped{ending}"
    )


def _parsed(data: bytes, parse: Parse, index: int) -> Piece:
    try:
        piece = parse(data)
    except (msgspec.MsgspecError, RecursionError) as error:
        beginning = data[:60].decode("utf-8", "replace")
        raise BadStream(
            f"message {index} is not what the protocol says ({error}): {beginning!r}"
        ) from error
    if piece.error is not None:
        raise BadStream(f"the server sent an error: {piece.error}")
    return piece


def _require_one_answer(pieces: Sequence[Piece]) -> None:
    """Raise BadStream for several choices or models, and for an answer that was broken off."""
    n_choices = max((piece.n_choices for piece in pieces), default=1)
    if n_choices > 1:
        raise BadStream(f"the answer has {n_choices} choices, one was asked for")
    models = sorted({piece.model for piece in pieces if piece.model})
    if len(models) > 1:
        raise BadStream(f"the messages of one answer name several models: {', '.join(models)}")
    finishes = (piece.finish for piece in pieces)
    broken_off = next((finish for finish in finishes if finish.lower() in BROKEN_OFF), "")
    if broken_off:
        raise BadStream(f"the server broke the answer off: its finish reason is {broken_off!r}")


def _put_together(timed: Sequence[Timed]) -> Answer:
    pieces = [piece for _, piece in timed]
    n_output = _last(pieces, "n_output")
    times = token_times(timed, n_output if n_output is not None and n_output > 0 else None)
    return Answer(
        events=times.events,
        text=_whole_characters("".join(piece.text for piece in pieces)),
        n_prompt=_last(pieces, "n_prompt"),
        n_output=n_output,
        n_cached=max((p.n_cached for p in pieces if p.n_cached is not None), default=None),
        model=_last(pieces, "model"),
        counted=times.counted,
        untimed="first" if _reasons_unseen(pieces, n_output) else times.untimed,
        t_last_ns=times.t_last_ns,
        finish=next((piece.finish for piece in pieces if piece.finish), ""),
    )


def _reasons_unseen(pieces: Sequence[Piece], n_output: int | None) -> bool:
    """Whether the server counts tokens of a reasoning that it does not stream."""
    n_reasoning = _last(pieces, "n_reasoning") or 0
    return 0 < n_reasoning <= (n_output or 0) and not any(piece.reasons for piece in pieces)


def _whole_characters(text: str) -> str:
    """Put halves of characters together, and U+FFFD in the place of those that stand alone."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _last(pieces: Sequence[Piece], name: str) -> Any:
    """Return the last value that a piece says under a name, or None."""
    values = (getattr(piece, name) for piece in reversed(pieces))
    return next((value for value in values if value is not None), None)
