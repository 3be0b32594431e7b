"""`python -m pytest_llmperf.engines.server.clients.process`: one client process.

It reads its part of a load, says that it is ready, reads when to begin, sends, and writes what
came of it. It ends with the process that started it.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import Sequence

import msgspec

from pytest_llmperf.engines.server.client import Call, Client, ClientRun, Endpoint
from pytest_llmperf.engines.server.clients.job import (
    LENGTH_BYTES,
    READY,
    ClientDone,
    ClientJob,
    Planned,
    Sent,
    with_length,
)
from pytest_llmperf.engines.server.requests import PROTOCOLS
from pytest_llmperf.engines.server.starting.connecting import connections
from pytest_llmperf.processes import die_with_parent


def main() -> int:
    """Do one job from standard input to standard output."""
    die_with_parent()
    source, target = sys.stdin.buffer, sys.stdout.buffer
    length = int.from_bytes(source.read(LENGTH_BYTES), "big")
    job = msgspec.msgpack.decode(source.read(length), type=ClientJob)
    target.write(with_length(READY))
    target.flush()
    start_ns = int.from_bytes(source.read(LENGTH_BYTES), "big")
    done = asyncio.run(_do(job, start_ns))
    target.write(with_length(msgspec.msgpack.encode(done)))
    target.flush()
    return 0


async def _do(job: ClientJob, start_ns: int) -> ClientDone:
    trusted = ssl.create_default_context(cafile=job.ca_file) if job.ca_file else None
    endpoint = Endpoint(job.url, job.headers, PROTOCOLS[job.protocol].parse, trusted)
    calls = [_call(planned) for planned in job.planned]
    async with connections(job.timeout_s, trusted) as session:
        client = Client(endpoint, session, timeout_s=job.timeout_s)
        if job.lines:
            run = await client.closed_loop(
                lambda at: calls[at], job.lines, requests=len(calls), duration_s=None
            )
        else:
            due_s = [planned.due_s for planned in job.planned]
            run = await client.open_loop(calls, due_s, start_ns=start_ns)
    return _done(run, job.planned)


def _call(planned: Planned) -> Call:
    return Call(
        body=planned.body,
        n_prompt_tokens=planned.n_prompt_tokens,
        n_output_tokens=planned.n_output_tokens,
        exact_prompt=planned.exact_prompt,
    )


def _done(run: ClientRun, planned: Sequence[Planned]) -> ClientDone:
    """Return what came of it. Outcomes are in the order of the plan, in both loops."""
    return ClientDone(
        sent=tuple(
            Sent(
                index=plan.index,
                due_ns=outcome.due_ns,
                sent_ns=outcome.sent_ns,
                end_ns=outcome.end_ns,
                failure=outcome.failure,
                answer=outcome.answer,
            )
            for plan, outcome in zip(planned, run.outcomes, strict=True)
        ),
        loop_lag_s=tuple(run.loop_lag_s),
        busy_share=run.busy_share,
    )


if __name__ == "__main__":
    sys.exit(main())
