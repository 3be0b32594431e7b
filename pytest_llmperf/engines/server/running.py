"""A server that is up, and the event loop on which its client works and sees it die."""

from __future__ import annotations

import asyncio
import dataclasses
import ssl
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import aiohttp

from pytest_llmperf.core.trace import Mark
from pytest_llmperf.engines.server.child import Child
from pytest_llmperf.engines.server.introspection import Introspection
from pytest_llmperf.engines.server.options import ServerOptions
from pytest_llmperf.engines.server.presets import Preset
from pytest_llmperf.engines.server.starting.connecting import takes_connections
from pytest_llmperf.errors import WorkerError
from pytest_llmperf.instruments.telemetry import judge_cpu, own_cores, read_cpu

WATCH_S = 0.1
DYING_S = 5.0
"""How long a server that takes no connections any more is watched.

Its sockets are closed before its process is gone.
"""

T = TypeVar("T")


@dataclass(kw_only=True)
class Server:
    """A server that is healthy.

    `child` is None for one that ran already; `facts` is what it says of itself.
    """

    preset: Preset
    options: ServerOptions
    base: str
    name: str
    headers: dict[str, str]
    http: aiohttp.ClientSession
    saying: Introspection
    child: Child | None
    trusted: ssl.SSLContext | None = None
    facts: dict[str, str] = field(default_factory=dict)

    def death(self) -> str:
        """Return how the process that we started ended; empty while it lives, or without one."""
        return self.child.died() if self.child is not None else ""

    def tail(self) -> str:
        """Return the last lines of the log of the process that we started; empty without one."""
        return self.child.tail() if self.child is not None else ""

    def busy_s(self) -> float:
        """Return the CPU time of the processes that we started, in seconds."""
        return self.child.busy_s() if self.child is not None else 0.0


class Watched(NamedTuple, Generic[T]):
    """What came of the work, the marks it earned, and the server's CPU time (None: not seen).

    `gauges` are what others did beside it (`instruments.telemetry`).
    """

    result: T
    marks: list[Mark]
    cpu_s: float | None
    gauges: dict[str, float]


class ServerLoop:
    """Runs the client's work on an event loop while the server is watched."""

    def __init__(self, server: Server, runner: asyncio.Runner) -> None:
        self._server = server
        self._runner = runner

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work. Raises WorkerError when the server dies meanwhile."""
        return self._runner.run(self._while_it_lives(work))

    def watched(self, work: Coroutine[Any, Any, T]) -> Watched[T]:
        """Do the work while watching for foreign load; the server's own CPU time is not foreign.

        Nothing is marked for a server that we did not start, and its CPU time is not seen.
        """
        before, busy_before_s = read_cpu(), self._server.busy_s()
        result = self.run(work)
        cpu_s = self._server.busy_s() - busy_before_s
        after = read_cpu()
        if self._server.child is None:
            return Watched(result, [], None, {})
        after = dataclasses.replace(after, own_s=after.own_s + cpu_s)
        judged = judge_cpu(before, after, cores=len(own_cores()))
        return Watched(result, list(judged.marks), max(0.0, cpu_s), judged.gauges)

    async def sampled(self, work: Coroutine[Any, Any, T]) -> tuple[T, list[dict[str, float]]]:
        """Do the work, and read the server's metrics before it, once a second, and after it."""
        saying = self._server.saying
        before = await saying.metrics()
        if not before:
            return await work, []
        samples = [before]
        sampler = asyncio.create_task(saying.sample(samples))
        try:
            result = await work
        finally:
            sampler.cancel()
            samples.append(await saying.metrics())
        return result, samples

    async def between_metrics(
        self, work: Coroutine[Any, Any, T]
    ) -> tuple[T, list[dict[str, float]]]:
        """Do the work, and read the server's metrics before it and after it, where it has any."""
        before = await self._server.saying.metrics()
        result = await work
        after = await self._server.saying.metrics() if before else {}
        return result, [before, after] if before else []

    def close(self) -> None:
        """Close the connections, and the event loop."""
        self._runner.run(self._server.http.close())
        self._runner.close()

    async def _while_it_lives(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(work)
        while not task.done():
            await asyncio.wait({task}, timeout=WATCH_S)
            death = self._server.death() or (await self._dying() if task.done() else "")
            if death:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                raise WorkerError(f"the server died in the run: {death}")
        return task.result()

    async def _dying(self) -> str:
        """Return how our server ended if it takes no connections.

        Empty where it does, and where its process goes on without them.
        """
        if self._server.child is None or await takes_connections(self._server.base):
            return ""
        for _ in range(round(DYING_S / WATCH_S)):
            if death := self._server.death():
                return death
            await asyncio.sleep(WATCH_S)
        return ""
