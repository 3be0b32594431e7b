"""A server that streams answers of every shape, and keeps by its own clock when each token went.

In a test its clock is a virtual one that stands still until the client has read what was written,
so that nothing races. As a program it keeps real time: python shaped_stub.py --port P --shape NAME,
and GET /record gives what it kept.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

MS = 1_000_000
N_TOKENS = 16
FIRST_MS, TOKEN_MS = 20, 10
N_PROMPT = 4

Message = tuple[list[int], Any]
"""The tokens that are made before it is sent (by their numbers), and what is sent."""


class RealClock:
    """The time of this machine."""

    def now_ns(self) -> int:
        return time.perf_counter_ns()

    async def until(self, t_ns: int) -> None:
        if (wait_ns := t_ns - self.now_ns()) > 0:
            await asyncio.sleep(wait_ns / 1e9)

    async def delivered(self, n_bytes: int) -> None:
        """The client reads when it can."""


@dataclass
class VirtualClock:
    """Time that passes only where the stub waits, once the client has read what was written."""

    t_ns: int = 10**12
    n_read: int = 0
    n_written: int = 0

    def now_ns(self) -> int:
        return self.t_ns

    async def until(self, t_ns: int) -> None:
        self.t_ns = max(self.t_ns, t_ns)

    async def delivered(self, n_bytes: int) -> None:
        self.n_written += n_bytes
        while self.n_read < self.n_written:  # noqa: ASYNC110 - time stands still meanwhile
            await asyncio.sleep(0)


@dataclass
class Kept:
    """One request by the stub's clock: when it came, and when each of its tokens was written."""

    came_ns: int
    tokens_ns: list[int] = field(default_factory=list)

    @property
    def ttft_s(self) -> float:
        return (self.tokens_ns[0] - self.came_ns) / 1e9

    @property
    def tpot_s(self) -> float:
        return (self.tokens_ns[-1] - self.tokens_ns[0]) / (len(self.tokens_ns) - 1) / 1e9

    @property
    def latency_s(self) -> float:
        return (self.tokens_ns[-1] - self.came_ns) / 1e9


@dataclass(frozen=True)
class Shape:
    """How the tokens of an answer become messages."""

    shown: Callable[[int], bool] = lambda _i: True
    bundle: int = 1
    chat: bool = False
    tgi: bool = False
    ids: bool = False
    running_usage: bool = False
    at_end: bool = False
    line_end: str = "\n"
    gzip: str = ""

    def messages(self) -> Iterator[Message]:
        if self.chat:
            yield [], choice({"delta": {"role": "assistant", "content": ""}})
        size = N_TOKENS if self.at_end else self.bundle
        for begin in range(0, N_TOKENS, size):
            yield self.message(list(range(begin, min(begin + size, N_TOKENS))))
        if not self.tgi:
            usage = {"prompt_tokens": N_PROMPT, "completion_tokens": N_TOKENS}
            yield [], {"model": "tiny", "choices": [], "usage": usage}
            yield [], "[DONE]"

    def message(self, tokens: list[int]) -> Message:
        words = "".join(f"w{i} " for i in tokens if self.shown(i))
        is_last = tokens[-1] == N_TOKENS - 1
        if self.tgi:
            details = {"finish_reason": "length", "generated_tokens": N_TOKENS}
            token = {"id": 5, "text": words, "special": not words}
            return tokens, {"token": token, "details": details if is_last else None}
        content = {"delta": {"content": words}} if self.chat else {"text": words}
        ids = {"token_ids": tokens} if self.ids else {}
        message = choice({**content, **ids, "finish_reason": "length" if is_last else None})
        if self.running_usage:
            message["usage"] = {"prompt_tokens": N_PROMPT, "completion_tokens": tokens[-1] + 1}
        return tokens, message


def choice(fields: dict[str, Any]) -> dict[str, Any]:
    return {"model": "tiny", "choices": [{"index": 0, **fields}]}


SHAPES = {
    "each token shown": Shape(),
    "hidden head": Shape(shown=lambda i: i >= N_TOKENS - 2),
    "hidden tail": Shape(shown=lambda i: i < 2),
    "hidden middle": Shape(shown=lambda i: i < 2 or i >= N_TOKENS - 2),
    "bundles": Shape(bundle=4),
    "running usage": Shape(shown=lambda i: i % 3 == 0, bundle=2, running_usage=True),
    "ids": Shape(shown=lambda i: i % 3 == 0, bundle=2, ids=True),
    "chat deltas": Shape(shown=lambda i: i % 2 == 0, chat=True),
    "TGI": Shape(shown=lambda i: i < 5, tgi=True),
    "one message": Shape(at_end=True),
    "CR events": Shape(line_end="\r"),
    "gzip refused": Shape(gzip="where it is taken"),
    "gzip all the same": Shape(gzip="always"),
}


class ShapedStub:
    """The server, on any clock."""

    def __init__(self, shape: Shape, clock: RealClock | VirtualClock) -> None:
        self.shape, self.clock = shape, clock
        self.kept: list[Kept] = []

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = head.partition("content-length: ")[2].partition("\r\n")[0]
                await reader.readexactly(int(length or 0))
                if head.startswith("get"):
                    self.plain(writer, head.split()[1])
                else:
                    await self.stream(writer, head)
                await writer.drain()
        writer.close()

    def plain(self, writer: asyncio.StreamWriter, path: str) -> None:
        pages = {
            "/health": "ok",
            "/v1/models": '{"data": [{"id": "tiny"}]}',
            "/record": json.dumps([[kept.came_ns, kept.tokens_ns] for kept in self.kept]),
        }
        status, body = ("200 OK", pages[path]) if path in pages else ("404 Not Found", "")
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())

    async def stream(self, writer: asyncio.StreamWriter, head: str) -> None:
        kept = Kept(came_ns=self.clock.now_ns())
        self.kept.append(kept)
        accepted = head.partition("accept-encoding: ")[2].partition("\r\n")[0]
        packs = self.shape.gzip == "always" or (self.shape.gzip != "" and "gzip" in accepted)
        encoding = b"Content-Encoding: gzip\r\n" if packs else b""
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            + encoding
            + b"Transfer-Encoding: chunked\r\n\r\n"
        )
        start_ns = kept.came_ns + FIRST_MS * MS
        for tokens, message in self.shape.messages():
            if tokens:
                await self.clock.until(start_ns + TOKEN_MS * MS * tokens[-1])
            data = message if isinstance(message, str) else json.dumps(message)
            raw = f"data: {data}{2 * self.shape.line_end}".encode()
            raw = gzip.compress(raw) if packs else raw
            kept.tokens_ns += [self.clock.now_ns()] * len(tokens)
            writer.write(f"{len(raw):x}\r\n".encode() + raw + b"\r\n")
            await writer.drain()
            if not packs:
                await self.clock.delivered(len(raw))
        writer.write(b"0\r\n\r\n")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    arguments = parser.parse_args()
    stub = ShapedStub(SHAPES[arguments.shape], RealClock())
    server = await asyncio.start_server(stub.connection, "127.0.0.1", arguments.port)
    async with server:
        await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
