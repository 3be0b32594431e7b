"""The messages of each protocol, read.

OpenAI's are https://platform.openai.com/docs/api-reference/completions and …/chat-streaming, with
fields of vLLM's on top; TGI's are https://huggingface.github.io/text-generation-inference/
(StreamResponse), one token in each message.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from pytest_llmperf.engines.server.messages.piece import Piece, Sign
from pytest_llmperf.engines.server.messages.words import shown

ERROR_CHARACTERS = 300

T = TypeVar("T")

Parse = Callable[[bytes], Piece]
"""Reads one message. Raises msgspec.MsgspecError where it is not what the protocol says."""


class _Details(Struct):
    cached_tokens: int | None = None


class _Timings(Struct):
    """llama.cpp's."""

    cache_n: int | None = None


class _OutputDetails(Struct):
    reasoning_tokens: int | None = None


class _Usage(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_cache_hit_tokens: int | None = None  # DeepSeek's
    cached_tokens: int | None = None  # Moonshot's
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _OutputDetails | None = None


class _Delta(Struct):
    role: str | None = None
    content: str | list[Any] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(Struct):
    index: int = 0
    text: str | None = None
    delta: _Delta | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None


class _Chunk(Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    model: str | None = None
    object: Any = None
    message: Any = None
    detail: Any = None
    timings: _Timings | None = None
    error: Any = None


_openai = msgspec.json.Decoder(_Chunk)


def parse_openai(data: bytes) -> Piece:
    """Read one message of /v1/completions or /v1/chat/completions. Raises msgspec.MsgspecError."""
    chunk = _decoded(data, _openai, _Chunk)
    if error := _error_of(chunk):
        return Piece(error=error)
    usage = chunk.usage or _Usage()
    choices = chunk.choices or []
    choice = choices[0] if choices else None
    text = _text_of(choice)
    return Piece(
        text=text,
        n_tokens=_n_ids(choice),
        empty="none" if text or choice is None else _sign(choice),
        reasons=choice is not None and _reasoning(choice.delta) != "",
        finish=_finish(choice),
        n_prompt=usage.prompt_tokens,
        n_output=usage.completion_tokens,
        n_cached=_n_cached(usage, chunk.timings or _Timings()),
        n_reasoning=(usage.completion_tokens_details or _OutputDetails()).reasoning_tokens,
        n_choices=max([len(choices), *(choice.index + 1 for choice in choices)]),
        model=chunk.model or None,
    )


def _error_of(chunk: _Chunk) -> str:
    """Return what a message says went wrong.

    That is `error`, an object of that name, or a message that has words (FastAPI's `detail`) in the
    place of choices and of usage.
    """
    if chunk.error is not None:
        return _error_text(chunk.error)
    if chunk.object == "error":
        return _error_text(chunk.message)
    words = chunk.detail if chunk.detail is not None else chunk.message
    if words is None or chunk.choices is not None or chunk.usage is not None:
        return ""
    return _error_text(words)


def _finish(choice: _Choice | None) -> str:
    """Return the reason for the end; some servers write that there is none as a word."""
    reason = (choice.finish_reason or "") if choice is not None else ""
    return "" if reason.lower() in ("null", "none") else reason


def _n_cached(usage: _Usage, timings: _Timings) -> int | None:
    """Return the prompt's tokens that came from a cache, wherever a server says so."""
    counts = (
        (usage.prompt_tokens_details or _Details()).cached_tokens,
        usage.prompt_cache_hit_tokens,
        usage.cached_tokens,
        timings.cache_n,
    )
    return max((count for count in counts if count is not None), default=None)


def _n_ids(choice: _Choice | None) -> int | None:
    if choice is None or choice.token_ids is None:
        return None
    return len(choice.token_ids)


def _sign(choice: _Choice) -> Sign:
    """Say what a choice without text is there for."""
    delta = choice.delta
    if delta is not None and delta.role and not _finish(choice):
        return "role"
    has_text_field = choice.text is not None or (delta is not None and delta.content is not None)
    return "empty" if has_text_field else "end"


def _text_of(choice: _Choice | None) -> str:
    """Return the text of any channel: an answer, a reasoning, or a tool call's arguments."""
    if choice is None:
        return ""
    delta = choice.delta or _Delta()
    calls = "".join(map(_call_text, delta.tool_calls or ()))
    return (choice.text or "") + _content(delta.content) + _reasoning(choice.delta) + calls


def _call_text(call: Any) -> str:
    """Return what the model wrote of a tool call: its name and arguments, and no id."""
    function = call.get("function") if isinstance(call, dict) else None
    fields = function if isinstance(function, dict) else {}
    return "".join(str(fields[name]) for name in ("name", "arguments") if fields.get(name))


def _content(content: str | list[Any] | None) -> str:
    """Return the text of a delta's content: a text, or parts with a text each."""
    if isinstance(content, list):
        texts = (part.get("text", "") for part in content if isinstance(part, dict))
        return "".join(map(str, texts))
    return content or ""


def _reasoning(delta: _Delta | None) -> str:
    if delta is None:
        return ""
    return delta.reasoning_content or delta.reasoning or ""


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
    """Read one message of /generate_stream. A special token is a token, whatever its text.

    Raises msgspec.MsgspecError.
    """
    chunk = _decoded(data, _tgi, _TgiChunk)
    if chunk.error is not None:
        return Piece(error=_error_text(chunk.error))
    if chunk.token is None:
        raise msgspec.ValidationError("neither 'token' nor 'error'")
    details = chunk.details or _TgiDetails()
    return Piece(
        text=chunk.token.text,
        n_tokens=1,
        empty="none" if chunk.token.text else "empty",
        finish=details.finish_reason or "",
        n_prompt=details.input_length,
        n_output=details.generated_tokens,
    )


def _decoded(data: bytes, decoder: msgspec.json.Decoder[T], kind: type[T]) -> T:
    """Return a message as its protocol has it.

    Text that msgspec takes for none (half of a surrogate pair, bytes that are no UTF-8) is read
    by the standard library, and what is no character in it becomes U+FFFD when the answer is put
    together. Raises msgspec.MsgspecError.
    """
    try:
        return decoder.decode(data)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError):
        try:
            value = json.loads(data.decode("utf-8", "replace"), strict=False)
            return msgspec.convert(value, kind)
        except ValueError as error:  # a name with half of a surrogate pair as well
            raise msgspec.DecodeError(f"no JSON: {error}") from None


def _error_text(error: Any) -> str:
    """Return the words of an error in one line, whatever its form."""
    words = error.get("message", error) if isinstance(error, dict) else error
    return shown(str(words), ERROR_CHARACTERS) or "an error without words"
