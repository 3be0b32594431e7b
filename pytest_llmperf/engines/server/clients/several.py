"""A load shared by several client processes: dealt out in turn, begun at once, put together."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence

import msgspec

from pytest_llmperf.engines.server.client import Call, ClientRun, RequestOutcome
from pytest_llmperf.engines.server.clients.job import (
    LENGTH_BYTES,
    READY,
    ClientDone,
    ClientJob,
    Planned,
    with_length,
)
from pytest_llmperf.errors import WorkerError

HEAD_START_S = 0.1
"""From the last process that is ready to the first request: the word to begin is there by then."""

READY_S = 60.0
_PROGRAM = ("-P", "-m", "pytest_llmperf.engines.server.clients.process")


def dealt(
    common: ClientJob, calls: Sequence[Call], due_s: Sequence[float], lines: int, n: int
) -> list[ClientJob]:
    """Return the jobs of at most `n` processes: requests, and lines, are dealt out in turn."""
    planned = [
        Planned(
            index=at,
            body=call.body,
            n_prompt_tokens=call.n_prompt_tokens,
            n_output_tokens=call.n_output_tokens,
            exact_prompt=call.exact_prompt,
            due_s=due_s[at] if due_s else 0.0,
        )
        for at, call in enumerate(calls)
    ]
    n = min(n, len(planned), lines or n)
    lines_of = [len(range(at, lines, n)) for at in range(n)]
    return [
        msgspec.structs.replace(common, planned=tuple(planned[at::n]), lines=lines_of[at])
        for at in range(n)
    ]


async def send(jobs: Sequence[ClientJob], calls: Sequence[Call]) -> ClientRun:
    """Have a process do each job, all from one moment on; return their requests in order.

    Raises WorkerError where a process ended before it was done.
    """
    processes = await asyncio.gather(*map(_start, jobs))
    try:
        ready = asyncio.gather(*(_read(process) for process in processes))
        if any(word != READY for word in await asyncio.wait_for(ready, READY_S)):
            raise WorkerError("a client process was not ready.")
        start_ns = time.perf_counter_ns() + int(HEAD_START_S * 1e9)
        for process in processes:
            await _write(process, start_ns.to_bytes(LENGTH_BYTES, "big"))
        results = await asyncio.gather(*(_read(process) for process in processes))
    finally:
        await asyncio.gather(*map(_end, processes))
    return _together([msgspec.msgpack.decode(data, type=ClientDone) for data in results], calls)


async def _start(job: ClientJob) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, *_PROGRAM, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    await _write(process, with_length(msgspec.msgpack.encode(job)))
    return process


async def _write(process: asyncio.subprocess.Process, data: bytes) -> None:
    assert process.stdin is not None  # noqa: S101 - it is a pipe
    try:
        process.stdin.write(data)
        await process.stdin.drain()
    except (BrokenPipeError, ConnectionResetError) as error:
        raise WorkerError("a client process ended before it was told what to send.") from error


async def _read(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    try:
        length = int.from_bytes(await process.stdout.readexactly(LENGTH_BYTES), "big")
        return await process.stdout.readexactly(length)
    except asyncio.IncompleteReadError as error:
        raise WorkerError("a client process ended before its part of the load was sent.") from error


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        if process.stdin is not None:
            process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 1.0)
        except TimeoutError:
            process.kill()
            await process.wait()


def _together(parts: Sequence[ClientDone], calls: Sequence[Call]) -> ClientRun:
    """Return one run: the busiest process, and the timers of all, say whether a client limits."""
    sent = sorted((sent for part in parts for sent in part.sent), key=lambda sent: sent.index)
    outcomes = [
        RequestOutcome(
            calls[request.index],
            request.due_ns,
            sent_ns=request.sent_ns,
            end_ns=request.end_ns,
            failure=request.failure,
            answer=request.answer,
        )
        for request in sent
    ]
    lags = [lag for part in parts for lag in part.loop_lag_s]
    return ClientRun(outcomes, lags, max(part.busy_share for part in parts))
