"""The HTTP client: one event loop that sends requests when they are due and notes when bytes come.

Answers are read afterwards.

While a request streams, only (time, bytes) are kept; its messages are read when it is over, so that
no token waits for the JSON of another. Redirects are not followed and no proxy is used: prompts go
to the server that was named and nowhere else.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import aiohttp

from pytest_llmperf.core.trace import RequestTrace
from pytest_llmperf.engines.server.stream import Answer, BadStream, Piece, answer

PROBE_S = 0.02
KEEP_ALIVE_S = 2.0
"""Idle connections are closed before servers close them (llama.cpp's after 5 s): a request must not meet one that is."""

_ERROR_BYTES = 300


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request: its body as sent, and the prompt tokens it has where we know them."""

    body: bytes
    n_prompt_tokens: int | None


@dataclass(frozen=True)
class Endpoint:
    """Where requests go and how their answers are read.

    `headers` hold the API key, which is in no record.
    """

    url: str
    headers: dict[str, str]
    parse: Callable[[bytes], Piece]


@dataclass
class Outcome:
    """One request as it went: times in ns, bytes as they came, or why it failed.

    `answer` is set once it has been read.
    """

    call: Call
    due_ns: int
    sent_ns: int = 0
    end_ns: int = 0
    chunks: list[tuple[int, bytes]] = field(default_factory=list)
    failure: str | None = None
    answer: Answer | None = None

    def read(self, parse: Callable[[bytes], Piece]) -> None:
        """Read the answer, or find why it is none. Frees the bytes."""
        if self.failure is None:
            try:
                self.answer = answer(self.chunks, parse)
            except BadStream as error:
                self.failure = str(error)
        self.chunks = []

    def trace(self) -> RequestTrace:
        """As the metrics take it. An answer without a token is a failure."""
        found = self.answer
        events = found.events if found is not None else ()
        n_prompt = found.n_prompt if found is not None else None
        return RequestTrace(
            n_prompt_tokens=n_prompt if n_prompt is not None else self.call.n_prompt_tokens or 0,
            t_due_ns=self.due_ns,
            events=events if self.failure is None else (),
            failure=self.failure or (None if events else "no token came"),
            t_sent_ns=self.sent_ns,
            t_end_ns=self.end_ns,
            n_cached_tokens=found.n_cached if found is not None else 0,
        )


@dataclass
class ClientRun:
    """What came of a load: its requests in the order they were due, and how the client did."""

    outcomes: list[Outcome]
    loop_lag_s: list[float]
    busy_share: float


Source = Callable[[int], Call]
"""The request of that number; made before it is due."""


class Client:
    """Drives one server.

    `now_ns` is the clock of every time; `timeout_s` is the longest wait for the next bytes.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        session: aiohttp.ClientSession,
        *,
        timeout_s: float = 60.0,
        now_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._endpoint = endpoint
        self._session = session
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=timeout_s, sock_read=timeout_s
        )
        self._timeout_s = timeout_s
        self._now_ns = now_ns

    async def open_loop(self, calls: Sequence[Call], due_s: Sequence[float]) -> ClientRun:
        """Send each call when it is due, whatever became of the others, and wait until all are over."""
        start_ns = self._now_ns() + int(PROBE_S * 1e9)
        outcomes = [
            Outcome(call, start_ns + int(at * 1e9)) for call, at in zip(calls, due_s, strict=True)
        ]
        return await self._watched(outcomes, self._send_when_due(outcomes))

    async def closed_loop(
        self, source: Source, concurrency: int, *, requests: int | None, duration_s: float | None
    ) -> ClientRun:
        """`concurrency` lines, each sending its next request when its last is over, until `requests` were sent or time is up."""
        outcomes: list[Outcome] = []
        end_ns = None if duration_s is None else self._now_ns() + int(duration_s * 1e9)

        async def line() -> None:
            due_ns = self._now_ns()
            while (requests is None or len(outcomes) < requests) and (
                end_ns is None or due_ns < end_ns
            ):
                outcome = Outcome(source(len(outcomes)), due_ns)
                outcomes.append(outcome)
                await self._send(outcome)
                due_ns = outcome.end_ns

        async def lines() -> None:
            await asyncio.gather(*(line() for _ in range(concurrency)))

        return await self._watched(outcomes, lines())

    async def together(self, calls: Sequence[Call]) -> list[Outcome]:
        """All at once: an offline batch."""
        due_ns = self._now_ns()
        outcomes = [Outcome(call, due_ns) for call in calls]
        await self._watched(outcomes, _all(self._send(outcome) for outcome in outcomes))
        return outcomes

    async def _send_when_due(self, outcomes: Sequence[Outcome]) -> None:
        async with asyncio.TaskGroup() as group:
            for outcome in outcomes:
                wait_s = (outcome.due_ns - self._now_ns()) / 1e9
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                group.create_task(self._send(outcome))

    async def _send(self, outcome: Outcome) -> None:
        outcome.sent_ns = self._now_ns()
        try:
            try:
                await self._stream(outcome, self._session)
            except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
                if outcome.chunks or isinstance(error, aiohttp.ClientConnectorError):
                    raise
                # The others that wait may be closed as well.
                async with connections(self._timeout_s) as fresh:
                    # The server had closed an idle one; RFC 9110, 9.2.2: send it again.
                    await self._stream(outcome, fresh)
        except aiohttp.ClientConnectorError as error:
            outcome.failure = (
                f"the connection was refused ({error.os_error.strerror or error.os_error})"
            )
        except (TimeoutError, aiohttp.ServerTimeoutError):
            outcome.failure = f"no message came for {self._timeout_s:g} s, after {len(outcome.chunks)} pieces of the answer"
        except (aiohttp.ClientError, OSError) as error:
            said = f"{type(error).__name__}: {error}".rstrip(": ")
            outcome.failure = (
                f"the stream broke after {len(outcome.chunks)} pieces of the answer ({said})"
            )
        outcome.end_ns = self._now_ns()
        outcome.read(self._endpoint.parse)

    async def _stream(self, outcome: Outcome, session: aiohttp.ClientSession) -> None:
        now_ns, keep = self._now_ns, outcome.chunks.append
        async with session.post(
            self._endpoint.url,
            data=outcome.call.body,
            headers=self._endpoint.headers,
            allow_redirects=False,
            timeout=self._timeout,
        ) as response:
            if response.status != 200:  # noqa: PLR2004 - OK
                said = (await response.content.read(_ERROR_BYTES)).decode("utf-8", "replace")
                outcome.failure = f"HTTP {response.status}{_reason(response.status)}: {said.strip()[:_ERROR_BYTES]}".rstrip(
                    ": "
                )
                return
            async for data in response.content.iter_any():
                keep((now_ns(), data))

    async def _watched(self, outcomes: list[Outcome], work: Awaitable[None]) -> ClientRun:
        """Do the work, and see how late the loop's own timers ring and how busy it is.

        No garbage collection meanwhile.
        """
        lags: list[float] = []
        probe = asyncio.create_task(self._probe(lags))
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        try:
            with _no_collection():
                await work
        finally:
            probe.cancel()
        wall_s = time.perf_counter() - wall_s
        return ClientRun(
            outcomes, lags, (time.thread_time() - cpu_s) / wall_s if wall_s > 0 else 0.0
        )

    async def _probe(self, lags: list[float]) -> None:
        while True:
            before_ns = self._now_ns()
            await asyncio.sleep(PROBE_S)
            lags.append(max(0.0, (self._now_ns() - before_ns) / 1e9 - PROBE_S))


async def _all(work: Iterator[Awaitable[None]]) -> None:
    await asyncio.gather(*work)


@contextmanager
def _no_collection() -> Iterator[None]:
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _reason(status: int) -> str:
    known = {
        401: "the API key is missing or wrong",
        403: "forbidden",
        429: "too many requests",
        503: "unavailable",
    }
    return f" ({known[status]})" if status in known else ""


def connections(timeout_s: float) -> aiohttp.ClientSession:
    """A session without a limit of connections, proxies or cookies.

    Bytes that do not come for `timeout_s` are an error.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s),
        trust_env=False,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def takes_connections(base: str, timeout_s: float = 1.0) -> bool:
    """Whether the server at a URL accepts one, or at least does not refuse it: one that is busy may let it wait."""
    url = urlsplit(base)
    try:
        _, writer = await asyncio.wait_for(
            asyncio.open_connection(url.hostname, url.port), timeout_s
        )
    except TimeoutError:
        return True
    except OSError:
        return False
    writer.close()
    return True
