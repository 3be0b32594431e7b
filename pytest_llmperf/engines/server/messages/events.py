"""Server-sent events: from bytes with their times of arrival to messages with theirs. Pure.

The format is https://html.spec.whatwg.org/multipage/server-sent-events.html: lines end in LF, CR or
both, an empty line ends an event, and an event may have several `data` lines. Streams that leave
the empty lines out are read too: then each `data` line is a message of its own.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import msgspec

from pytest_llmperf.engines.server.messages.words import shown

DONE = b"[DONE]"

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


_DONE_LINE = re.compile(rb"(?:^|[\r\n])data: ?\[DONE\][ \t]*[\r\n]")
_LONGEST_DONE = 16


class DoneSeen:
    """Whether the line that ends a stream is complete; to be called with each piece of bytes."""

    def __init__(self) -> None:
        self._tail = b""

    def __call__(self, data: bytes) -> bool:
        """Return True once the line has come."""
        window = self._tail + data
        self._tail = window[-_LONGEST_DONE:]
        return b"[DONE]" in window and _DONE_LINE.search(window) is not None


class Message(NamedTuple):
    """The data of one event, when its last byte came (ns), and whether it is an `error` by name."""

    t_ns: int
    data: bytes
    is_error: bool = False


class _Line(NamedTuple):
    t_ns: int
    text: bytes


def messages(chunks: Sequence[tuple[int, bytes]]) -> list[Message]:
    """Return the messages in these chunks of bytes, each chunk with its time of arrival (ns).

    A last line without its end counts.
    """
    found: list[Message] = []
    event: list[_Line] = []
    name = b""
    for line in _lines(chunks):
        if line.text.startswith(b"data:"):
            event.append(_Line(line.t_ns, line.text[len(b"data:") :].strip()))
        elif line.text.startswith(b"event:"):
            name = line.text[len(b"event:") :].strip()
        elif not line.text:
            found += _of_event(event, name)
            event, name = [], b""
    return found + _of_event(event, name)


def body(chunks: Sequence[tuple[int, bytes]], limit: int) -> str:
    """Return the first `limit` characters as they may be shown."""
    beginning = b"".join(data for _, data in chunks)[: 4 * limit]
    return shown(beginning.decode("utf-8", "replace"), limit)


def _of_event(lines: Sequence[_Line], name: bytes) -> list[Message]:
    """Return the message of an event; several where each of its lines is one by itself."""
    is_error = name == b"error"
    if len(lines) > 1 and not all(_is_whole(line.text) for line in lines):
        return [Message(lines[-1].t_ns, b"\n".join(line.text for line in lines), is_error)]
    return [Message(*line, is_error) for line in lines if line.text]


def _is_whole(data: bytes) -> bool:
    if data == DONE:
        return True
    try:
        return isinstance(msgspec.json.decode(data), dict)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False


def _lines(chunks: Sequence[tuple[int, bytes]]) -> list[_Line]:
    """Cut the bytes into lines, each with the time at which its end came."""
    whole = b"".join(data for _, data in chunks)
    times_ns = [t_ns for t_ns, data in chunks if data]
    starts = list(accumulate((len(data) for _, data in chunks if data), initial=0))[:-1]

    def t_ns(position: int) -> int:
        return times_ns[bisect_right(starts, position) - 1]

    lines: list[_Line] = []
    begin = len(_BYTE_ORDER_MARK) if whole.startswith(_BYTE_ORDER_MARK) else 0
    for end in _LINE_END.finditer(whole):
        lines.append(_Line(t_ns(end.start()), whole[begin : end.start()]))
        begin = end.end()
    if begin < len(whole):
        lines.append(_Line(times_ns[-1], whole[begin:]))
    return lines
