"""From the bytes of a streamed answer to token events. Pure.

It reads server-sent events and each protocol's messages, and counts tokens. A token becomes
available when the bytes of its message arrive. A message without text (a role, an empty delta,
usage) is not a token. Where one message bundles tokens, its count comes from the token ids it
carries, else from the usage so far that it carries, else the total that the server counted is
spread over the messages by the length of their texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import msgspec
from msgspec import Struct

from pytest_llmperf.core.trace import TokenEvent

DONE = b"[DONE]"


class BadStream(Exception):
    """The request failed: what is wrong with its stream, and after how many messages."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one message says. None: it does not say."""

    text: str = ""
    n_tokens: int | None = None
    finished: bool = False
    n_prompt: int | None = None
    n_output: int | None = None
    n_cached: int | None = None
    model: str | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One streamed answer.

    `events` are its tokens; the counts are the server's own where it gives them. `counted` says how
    the tokens of each message were counted: "ids", "usage", "spread", or "messages" (no total was
    given).
    """

    events: tuple[TokenEvent, ...]
    text: str
    n_prompt: int | None
    n_output: int | None
    n_cached: int
    model: str | None
    finished: bool
    counted: str
    n_messages: int


@dataclass
class Splitter:
    """Cuts arriving bytes into server-sent events, each with the time of its last byte."""

    _rest: bytes = b""
    messages: list[tuple[int, bytes]] = field(default_factory=list)

    def feed(self, t_ns: int, data: bytes) -> None:
        """Take in what arrived at `t_ns`."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                self.messages.append((t_ns, line[5:].strip()))

    def end(self, t_ns: int) -> None:
        """End the stream: a last line without its end counts."""
        self.feed(t_ns, b"\n")


def answer(chunks: Sequence[tuple[int, bytes]], parse: Callable[[bytes], Piece]) -> Answer:
    """Return the answer in these chunks of bytes, each with its time of arrival (ns).

    Raises:
        BadStream: a message cannot be read, is an error, or the stream ended before the server said
            that it was finished.
    """
    pieces = [
        (t_ns, _parsed(data, parse, i))
        for i, (t_ns, data) in enumerate(_messages(chunks))
        if data and data != DONE
    ]
    if not any(piece.finished for _, piece in pieces):
        n_texts = sum(bool(piece.text) for _, piece in pieces)
        raise BadStream(
            f"the stream ended after {n_texts} messages with text, "
            "before the server said why it stopped"
        )
    return _put_together(pieces)


def _messages(chunks: Sequence[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    splitter = Splitter()
    for t_ns, data in chunks:
        splitter.feed(t_ns, data)
    if chunks:
        splitter.end(chunks[-1][0])
    return splitter.messages


def _parsed(data: bytes, parse: Callable[[bytes], Piece], index: int) -> Piece:
    try:
        piece = parse(data)
    except msgspec.MsgspecError as error:
        beginning = data[:60].decode("utf-8", "replace")
        raise BadStream(
            f"message {index} is not what the protocol says ({error}): {beginning!r}"
        ) from error
    if piece.error is not None:
        raise BadStream(f"the server sent an error: {piece.error}")
    return piece


def _put_together(pieces: Sequence[tuple[int, Piece]]) -> Answer:
    all_pieces = [piece for _, piece in pieces]
    with_text = [piece for piece in all_pieces if piece.text]
    n_output = _last(all_pieces, "n_output")
    counts, counted = token_counts(with_text, n_output)
    return Answer(
        events=_events([t_ns for t_ns, piece in pieces if piece.text], counts),
        text="".join(piece.text for piece in with_text),
        n_prompt=_last(all_pieces, "n_prompt"),
        n_output=n_output,
        n_cached=_last(all_pieces, "n_cached") or 0,
        model=_last(all_pieces, "model"),
        finished=True,
        counted=counted,
        n_messages=len(with_text),
    )


def _events(times_ns: Sequence[int], counts: Sequence[int]) -> tuple[TokenEvent, ...]:
    """Return the events of the messages that hold a token."""
    return tuple(TokenEvent(t, n) for t, n in zip(times_ns, counts, strict=True) if n)


def token_counts(pieces: Sequence[Piece], n_output: int | None) -> tuple[list[int], str]:
    """Return tokens of each message with text, and how they were counted (see `Answer.counted`).

    Ids that came with messages without text (held-back bytes of one character, hidden special
    tokens) are in the total only: they go to the messages that have text.
    """
    by_ids = _counts_by_ids(pieces, n_output)
    if by_ids is not None:
        return by_ids, "ids"
    by_usage = _counts_by_usage(pieces, n_output)
    if by_usage is not None:
        return by_usage, "usage"
    if n_output is None:
        return [1] * len(pieces), "messages"
    return spread(n_output, [len(piece.text) for piece in pieces]), "spread"


def _counts_by_ids(pieces: Sequence[Piece], n_output: int | None) -> list[int] | None:
    """Count by the token ids of the messages; None where one message has none."""
    if not pieces or any(piece.n_tokens is None for piece in pieces):
        return None
    counts = [piece.n_tokens or 0 for piece in pieces]
    if n_output is None or n_output == sum(counts):
        return counts
    return spread(n_output, counts)


def _counts_by_usage(pieces: Sequence[Piece], n_output: int | None) -> list[int] | None:
    """Count by the usage so far that the messages carry; None where that is not consistent."""
    if len(pieces) <= 1 or any(piece.n_output is None for piece in pieces):
        return None
    so_far = [0, *(piece.n_output or 0 for piece in pieces)]
    counts = _differences(so_far)
    return counts if min(counts) >= 0 and so_far[-1] == n_output else None


def spread(total: int, weights: Sequence[int]) -> list[int]:
    """Return `total` tokens over messages: one each, the rest in proportion to the weights.

    Remainders go to the largest first. With fewer tokens than messages, a token ended in as many
    messages, evenly spread and the last among them; the others are 0.
    """
    n = len(weights)
    if total <= n:
        return _differences([i * total // n for i in range(n + 1)]) if n else []
    return [1 + extra for extra in _in_proportion(total - n, weights)]


def _in_proportion(total: int, weights: Sequence[int]) -> list[int]:
    """Return whole shares of `total` by the largest remainders; equal weights where all are 0."""
    if not any(weights):
        weights = [1] * len(weights)
    scale = sum(weights)
    shares = [total * weight / scale for weight in weights]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _differences(values: Sequence[int]) -> list[int]:
    return [after - before for before, after in pairwise(values)]


def _last(pieces: Sequence[Piece], name: str) -> Any:
    """Return the last value that a piece says under a name, or None."""
    values = (getattr(piece, name) for piece in reversed(pieces))
    return next((value for value in values if value is not None), None)


# OpenAI: https://platform.openai.com/docs/api-reference/completions, .../chat-streaming, with
# fields of vLLM's on top


class _Details(Struct):
    cached_tokens: int | None = None


class _Usage(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Delta(Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(Struct):
    text: str | None = None
    delta: _Delta | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None


class _Chunk(Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    model: str | None = None
    error: Any = None


_openai = msgspec.json.Decoder(_Chunk)


def parse_openai(data: bytes) -> Piece:
    """Read one message of /v1/completions or /v1/chat/completions. Raises msgspec.MsgspecError."""
    chunk = _openai.decode(data)
    if chunk.error is not None:
        return Piece(error=_error_text(chunk.error))
    choice = chunk.choices[0] if chunk.choices else _Choice()
    usage = chunk.usage or _Usage()
    details = usage.prompt_tokens_details or _Details()
    return Piece(
        text=choice.text or _delta_text(choice.delta),
        n_tokens=None if choice.token_ids is None else len(choice.token_ids),
        finished=choice.finish_reason is not None,
        n_prompt=usage.prompt_tokens,
        n_output=usage.completion_tokens,
        n_cached=details.cached_tokens,
        model=chunk.model or None,
    )


def _delta_text(delta: _Delta | None) -> str:
    """Return the text of any channel: an answer, a reasoning, or a tool call's arguments."""
    if delta is None:
        return ""
    calls = msgspec.json.encode(delta.tool_calls).decode() if delta.tool_calls else ""
    return (delta.content or "") + (delta.reasoning_content or delta.reasoning or "") + calls


# TGI: https://huggingface.github.io/text-generation-inference/ (StreamResponse), one token in
# each message


class _TgiToken(Struct):
    text: str
    special: bool = False


class _TgiDetails(Struct):
    generated_tokens: int | None = None
    input_length: int | None = None
    finish_reason: str | None = None


class _TgiChunk(Struct):
    token: _TgiToken | None = None
    details: _TgiDetails | None = None
    error: str | None = None


_tgi = msgspec.json.Decoder(_TgiChunk)


def parse_tgi(data: bytes) -> Piece:
    """Read one message of /generate_stream. A special token is a token: TGI sends its text.

    Raises msgspec.MsgspecError.
    """
    chunk = _tgi.decode(data)
    if chunk.error is not None:
        return Piece(error=chunk.error)
    if chunk.token is None:
        raise msgspec.ValidationError("neither 'token' nor 'error'")
    details = chunk.details or _TgiDetails()
    return Piece(
        text=chunk.token.text,
        n_tokens=1,
        finished=details.finish_reason is not None,
        n_prompt=details.input_length,
        n_output=details.generated_tokens,
    )


def _error_text(error: Any) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    return str(message)[:200]
