"""The HTTP client: one event loop that sends requests when they are due and notes when bytes come.

Answers are read afterwards. While a request streams, only (time, bytes) are kept; its messages are
read when it is over, so that no token waits for the JSON of another. Redirects are not followed and
no proxy is used: prompts go to the server that was named and nowhere else.
"""

from __future__ import annotations

import asyncio
import gc
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

import aiohttp

from pytest_llmperf.core.trace import RequestTrace
from pytest_llmperf.engines.server.failures import (
    broken,
    encoding_failure,
    is_encoded,
    status_failure,
)
from pytest_llmperf.engines.server.messages.bounds import Bounds
from pytest_llmperf.engines.server.messages.events import DoneSeen
from pytest_llmperf.engines.server.messages.protocols import Parse
from pytest_llmperf.engines.server.starting.connecting import AT_ONCE_S, Reuse, connections
from pytest_llmperf.engines.server.stream import Answer, BadStream, answer

AFTER_DONE_S = 0.1
"""How long is waited for a stream's end, and for a usage, after [DONE]."""
PROBE_S = 0.02

_OK = 200


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request: its body as sent, and the prompt tokens it has where we know them.

    `n_output_tokens` is what it asks for: as many, or at most as many. `exact_prompt`: it is sent
    as token ids, to which a server adds none.
    """

    body: bytes
    n_prompt_tokens: int | None
    n_output_tokens: int = 0
    exact_prompt: bool = False


@dataclass(frozen=True)
class Endpoint:
    """Where requests go and how their answers are read.

    `headers` hold the API key, which is in no record.
    """

    url: str
    headers: dict[str, str]
    parse: Parse
    trusted: ssl.SSLContext | None = None


@dataclass
class RequestOutcome:
    """One request as it went: times in ns, bytes as they came, or why it failed.

    `answer` is set once it has been read. `turn` is that of a conversation, from 1.
    """

    call: Call
    due_ns: int
    sent_ns: int = 0
    end_ns: int = 0
    chunks: list[tuple[int, bytes]] = field(default_factory=list)
    failure: str | None = None
    answer: Answer | None = None
    turn: int = 0

    def read(self, parse: Parse) -> None:
        """Read the answer, or find why it is none. Frees the bytes."""
        if self.failure is None:
            try:
                self.answer = answer(self.chunks, parse)
            except BadStream as error:
                self.failure = str(error)
        self.chunks = []

    def trace(self) -> RequestTrace:
        """Return the request as the metrics take it. An answer without a token is a failure."""
        events = self.answer.events if self.answer is not None else ()
        return RequestTrace(
            n_prompt_tokens=self._n_prompt_tokens(),
            t_due_ns=self.due_ns,
            events=events if self.failure is None else (),
            failure=self.failure or (None if events else "no token came"),
            t_sent_ns=self.sent_ns,
            t_end_ns=self.end_ns,
            n_cached_tokens=(self.answer.n_cached or 0) if self.answer is not None else 0,
            t_last_ns=self.answer.t_last_ns if self.answer is not None else 0,
            untimed=self.answer.untimed if self.answer is not None else "",
            turn=self.turn,
        )

    def _n_prompt_tokens(self) -> int:
        """Return the prompt tokens as the server counted them, else as we know them."""
        counted = self.answer.n_prompt if self.answer is not None else None
        return max(counted, 0) if counted is not None else self.call.n_prompt_tokens or 0


@dataclass
class ClientRun:
    """What came of serving: its requests in the order they were due, and how the client did."""

    outcomes: list[RequestOutcome]
    loop_lag_s: list[float]
    busy_share: float


CallFactory = Callable[[int], Call]
"""Makes the request of a number, before it is due."""


@dataclass
class _ClosedLoop:
    """The requests of a closed loop so far, and when it ends."""

    make_call: CallFactory
    requests: int | None
    end_ns: int | None
    outcomes: list[RequestOutcome] = field(default_factory=list)

    def next_request(self, due_ns: int) -> RequestOutcome | None:
        """Return the next request, due at `due_ns`; None once all were sent or time is up."""
        if self.requests is not None and len(self.outcomes) >= self.requests:
            return None
        if self.end_ns is not None and due_ns >= self.end_ns:
            return None
        outcome = RequestOutcome(self.make_call(len(self.outcomes)), due_ns)
        self.outcomes.append(outcome)
        return outcome


@dataclass
class _Room:
    """The requests of conversations so far, and how many more there may be."""

    requests: int | None
    end_ns: int | None
    outcomes: list[RequestOutcome] = field(default_factory=list)

    def admit(self, turn: NextTurn, due_ns: int) -> RequestOutcome | None:
        """Return the request of a turn that is due at `due_ns`; None where there is no room."""
        if self.requests is not None and len(self.outcomes) >= self.requests:
            return None
        if self.end_ns is not None and due_ns >= self.end_ns:
            return None
        outcome = RequestOutcome(turn.call, due_ns, turn=turn.number)
        self.outcomes.append(outcome)
        return outcome


@dataclass(frozen=True, kw_only=True)
class NextTurn:
    """A turn of a conversation, due `after_s` seconds after the answer before it."""

    call: Call
    after_s: float
    number: int


class Talk(Protocol):
    """A conversation that knows what comes next."""

    def next(self, previous: RequestOutcome | None, /) -> NextTurn | None:
        """Return the next turn after an answer; None at the end."""


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

    async def open_loop(
        self, calls: Sequence[Call], due_s: Sequence[float], *, start_ns: int | None = None
    ) -> ClientRun:
        """Send each call when it is due, whatever became of the others, and wait for all.

        Times count from `start_ns`, which several clients may share.
        """
        start_ns = start_ns or self._now_ns() + int(PROBE_S * 1e9)
        outcomes = [
            RequestOutcome(call, start_ns + int(offset_s * 1e9))
            for call, offset_s in zip(calls, due_s, strict=True)
        ]
        return await self._watched(outcomes, self._send_when_due(outcomes))

    async def closed_loop(
        self,
        make_call: CallFactory,
        concurrency: int,
        *,
        requests: int | None,
        duration_s: float | None,
    ) -> ClientRun:
        """Send on `concurrency` lines until `requests` were sent or time is up.

        Each line sends its next request when its last is over.
        """
        end_ns = None if duration_s is None else self._now_ns() + int(duration_s * 1e9)
        loop = _ClosedLoop(make_call, requests, end_ns)
        return await self._watched(
            loop.outcomes, _gather(self._send_in_turn(loop) for _ in range(concurrency))
        )

    async def dialogs(
        self,
        talks: Sequence[Talk],
        *,
        lines: int | None,
        starts_s: Sequence[float],
        requests: int | None,
        duration_s: float | None,
    ) -> ClientRun:
        """Play conversations: on so many lines one after another, or each when it starts.

        No further turn is sent after so many `requests`, or once time is up.
        """
        start_ns = self._now_ns() + int(PROBE_S * 1e9)
        end_ns = None if duration_s is None else start_ns + int(duration_s * 1e9)
        room = _Room(requests, end_ns)
        if lines is None:
            starts_ns = [start_ns + int(offset_s * 1e9) for offset_s in starts_s]
            pairs = zip(talks, starts_ns, strict=True)
            work = _gather(self._play([talk], room, start_ns=at_ns) for talk, at_ns in pairs)
        else:
            waiting = iter(talks)
            work = _gather(self._play(waiting, room, start_ns=start_ns) for _ in range(lines))
        return await self._watched(room.outcomes, work)

    async def together(self, calls: Sequence[Call]) -> list[RequestOutcome]:
        """Send all at once: an offline batch."""
        due_ns = self._now_ns()
        outcomes = [RequestOutcome(call, due_ns) for call in calls]
        await self._watched(outcomes, _gather(self._send(outcome) for outcome in outcomes))
        return outcomes

    async def _play(self, talks: Iterable[Talk], room: _Room, *, start_ns: int) -> None:
        """Play one conversation after another on one line."""
        for talk in talks:
            previous: RequestOutcome | None = None
            while (turn := talk.next(previous)) is not None:
                # Making a request is our own time, not the server's.
                earliest_ns = max(start_ns, self._now_ns())
                after_ns = start_ns + int(turn.after_s * 1e9)
                outcome = room.admit(turn, max(earliest_ns, after_ns))
                if outcome is None:
                    return
                await self._until(outcome.due_ns)
                await self._send(outcome)
                previous, start_ns = outcome, outcome.end_ns

    async def _until(self, due_ns: int) -> None:
        wait_s = (due_ns - self._now_ns()) / 1e9
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    async def _send_in_turn(self, loop: _ClosedLoop) -> None:
        """Send one request of a closed loop after the other."""
        due_ns = self._now_ns()
        while (outcome := loop.next_request(due_ns)) is not None:
            await self._send(outcome)
            due_ns = outcome.end_ns

    async def _send_when_due(self, outcomes: Sequence[RequestOutcome]) -> None:
        async with asyncio.TaskGroup() as group:
            for outcome in outcomes:
                await self._until(outcome.due_ns)
                group.create_task(self._send(outcome))

    async def _send(self, outcome: RequestOutcome) -> None:
        outcome.sent_ns = self._now_ns()
        try:
            await self._stream_past_idle(outcome)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            outcome.failure = broken(error, len(outcome.chunks), self._timeout_s)
        outcome.end_ns = self._now_ns()
        outcome.read(self._endpoint.parse)

    async def _stream_past_idle(self, outcome: RequestOutcome) -> None:
        """Stream the answer; send again what met a connection that the server had closed as idle.

        RFC 9110, 9.2.2 allows it. What breaks later, or on a fresh connection, is a request that
        the server has seen: to send it again would hide a failure, and load the server twice.
        """
        reuse, start_s = Reuse(), time.monotonic()
        try:
            await self._stream(outcome, self._session, reuse)
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
            if outcome.chunks or not reuse.is_reused or time.monotonic() - start_s > AT_ONCE_S:
                raise
            # Other connections that wait may be closed as well.
            async with connections(self._timeout_s, self._endpoint.trusted) as fresh:
                await self._stream(outcome, fresh, reuse)

    async def _stream(
        self, outcome: RequestOutcome, session: aiohttp.ClientSession, reuse: Reuse
    ) -> None:
        now_ns, append = self._now_ns, outcome.chunks.append
        async with session.post(
            self._endpoint.url,
            data=outcome.call.body,
            headers=self._endpoint.headers,
            allow_redirects=False,
            timeout=self._timeout,
            trace_request_ctx=reuse,
        ) as response:
            if response.status != _OK:
                outcome.failure = await status_failure(response)
                return
            if is_encoded(response):
                outcome.failure = encoding_failure(response)
                return
            is_done = DoneSeen()
            bounds = Bounds(outcome.call.n_output_tokens, outcome.sent_ns, self._timeout_s)
            async for data in response.content.iter_any():
                t_ns = now_ns()
                append((t_ns, data))
                if bounds.exceeded(t_ns, data):
                    outcome.failure = bounds.failure
                    return
                if is_done(data):
                    await self._after_done(response, outcome)
                    return

    async def _after_done(self, response: aiohttp.ClientResponse, outcome: RequestOutcome) -> None:
        """Take what comes with the end of an answer; its server may leave the connection open."""
        with suppress(TimeoutError):
            async with asyncio.timeout(AFTER_DONE_S):
                async for data in response.content.iter_any():
                    outcome.chunks.append((self._now_ns(), data))

    async def _watched(self, outcomes: list[RequestOutcome], work: Awaitable[None]) -> ClientRun:
        """Do the work, and see how late the loop's own timers ring and how busy it is.

        There is no garbage collection meanwhile.
        """
        lags: list[float] = []
        probe = asyncio.create_task(self._probe(lags))
        start_wall_s, start_cpu_s = time.perf_counter(), time.thread_time()
        try:
            with _no_collection():
                await work
        finally:
            probe.cancel()
        wall_s = time.perf_counter() - start_wall_s
        cpu_s = time.thread_time() - start_cpu_s
        return ClientRun(outcomes, lags, cpu_s / wall_s if wall_s > 0 else 0.0)

    async def _probe(self, lags: list[float]) -> None:
        while True:
            before_ns = self._now_ns()
            await asyncio.sleep(PROBE_S)
            lags.append(max(0.0, (self._now_ns() - before_ns) / 1e9 - PROBE_S))


async def _gather(work: Iterator[Awaitable[None]]) -> None:
    await asyncio.gather(*work)


@contextmanager
def _no_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
