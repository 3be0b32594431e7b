"""Times of our client against those that a server kept itself, over shapes of streams.

    python benchmarks/server_shapes.py [--requests 40]

The server is a process of its own; both read the one monotonic clock of the machine. Per shape it
prints the medians by the server's record and how far ours are from them, with the limits of
2 ms and 2 % that they must keep where the machine is quiet.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.shaped_stub import N_TOKENS, SHAPES, Kept, Shape  # noqa: E402

from pytest_llmperf.core.metrics.results import RunResult  # noqa: E402
from pytest_llmperf.core.metrics.serving import ServingTrace, reduce_serving  # noqa: E402
from pytest_llmperf.core.verdicts.estimate import NotMeasurable  # noqa: E402
from pytest_llmperf.engines.server.child import free_port  # noqa: E402
from pytest_llmperf.engines.server.client import (  # noqa: E402
    Call,
    Client,
    ClientRun,
    Endpoint,
)
from pytest_llmperf.engines.server.engine import stream_headers  # noqa: E402
from pytest_llmperf.engines.server.messages.protocols import (  # noqa: E402
    parse_openai,
    parse_tgi,
)
from pytest_llmperf.engines.server.starting.connecting import connections, takes_connections  # noqa: E402
from pytest_llmperf.workloads import Serve  # noqa: E402

LIMIT_S, LIMIT_SHARE = 2e-3, 0.02
ROW = "{:20} {:>10} {:>10} {:>10} {:>12}   {}"


async def loaded(base: str, shape: Shape, n_requests: int) -> tuple[ClientRun, list[Kept]]:
    """What the client saw of so many requests, one after the other, and what the server kept."""
    while not await takes_connections(base):  # noqa: ASYNC110 - nobody else tells
        await asyncio.sleep(0.05)
    parse = parse_tgi if shape.tgi else parse_openai
    async with connections(10) as session:
        client = Client(Endpoint(f"{base}/v1/completions", stream_headers(), parse), session)
        call = Call(body=b"{}", n_prompt_tokens=4, n_output_tokens=N_TOKENS)
        run = await client.closed_loop(lambda _: call, 1, requests=n_requests, duration_s=None)
        async with session.get(f"{base}/record") as response:
            rows = json.loads(await response.read())
    return run, [Kept(came_ns=came_ns, tokens_ns=tokens_ns) for came_ns, tokens_ns in rows]


def reduced(run: ClientRun, n_requests: int) -> RunResult:
    """What the metrics make of it."""
    trace = ServingTrace(requests=tuple(outcome.trace() for outcome in run.outcomes))
    return reduce_serving([trace], Serve(concurrency=1, requests=n_requests))


def cells(run: RunResult, kept: list[Kept]) -> tuple[list[str], bool]:
    """The differences of the medians, and whether all keep the limits or are marked."""
    theirs = {name: statistics.median(getattr(one, f"{name}_s") for one in kept) for name in TIMES}
    texts, keeps = [], True
    for name in TIMES:
        ours = getattr(run, name)
        if isinstance(ours, NotMeasurable):
            texts.append("marked")
            continue
        difference_s = float(ours.p50) - theirs[name]
        keeps &= abs(difference_s) <= max(LIMIT_S, LIMIT_SHARE * theirs[name])
        texts.append(f"{1e3 * difference_s:+.2f} ms")
    duration_s = (kept[-1].tokens_ns[-1] - kept[0].came_ns) / 1e9
    ratio = float(run.throughput) / (len(kept) * N_TOKENS / duration_s) - 1
    return [*texts, f"{100 * ratio:+.2f} %"], keeps and abs(ratio) <= LIMIT_SHARE


TIMES = ("ttft", "tpot", "latency")


def main() -> int:
    """Print a row a shape; 1 where one is past the limits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=40)
    n_requests = parser.parse_args().requests
    program = ROOT / "tests" / "support" / "shaped_stub.py"
    print(ROW.format("shape", "TTFT", "TPOT", "latency", "throughput", ""))
    all_keep = True
    for name, shape in SHAPES.items():
        if shape.gzip == "always":
            continue
        port = free_port()
        stub = subprocess.Popen(
            [sys.executable, str(program), "--port", str(port), "--shape", name]
        )
        try:
            run, kept = asyncio.run(loaded(f"http://127.0.0.1:{port}", shape, n_requests))
        finally:
            stub.kill()
            stub.wait()
        texts, keeps = cells(reduced(run, n_requests), kept)
        all_keep &= keeps
        print(ROW.format(name, *texts, "" if keeps else "past the limit"), flush=True)
    return 0 if all_keep else 1


if __name__ == "__main__":
    sys.exit(main())
