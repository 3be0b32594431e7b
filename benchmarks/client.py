"""The load generator's own cost, against a scripted server that streams 64 tokens a request.

python benchmarks/client.py

Prints what a test's `llm` fixture and the engine in it add to the server's own start, the CPU time
that a request costs the client, and the same with httpx where that is installed. The highest rate
that it can drive: `client_rates.py`.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.engines.server.child import free_port
from pytest_llmperf.engines.server.engine import ServerEngine
from pytest_llmperf.engines.server.loaded import ServedModel
from pytest_llmperf.workloads import PromptSet, Serve

STUB = Path(__file__).parents[1] / "tests" / "support" / "stub_server.py"
PROMPTS = PromptSet(name="short", texts=("one two three four",))
TOKENS = 64
LINES = 8
TEST = """
import pytest

@pytest.mark.llmperf(
    model={model!r},
    engine="server",
    options={{"command": {command!r}, "name": "tiny"}},
    device="cpu",
)
def test_it(llm):
    assert llm.effective
"""


COMMAND = f"{sys.executable} {STUB} --port {{port}} --model tiny --ttft-ms 20 --token-ms 1"


def fixture_s(folder: Path) -> float:
    """Return the seconds that pytest takes to set up a test whose `llm` is the stub.

    They hold a worker, the start of the server, and what the engine asks it.
    """
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (folder / "test_it.py").write_text(
        TEST.format(model=str(folder), command=COMMAND), encoding="utf-8"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--llmperf-store=none",
        "--durations=0",
        "-vv",
    ]
    session = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    if session.returncode:
        sys.exit(f"the fixture's test failed:\n{session.stdout[-2000:]}")
    (took_s,) = re.findall(r"([\d.]+)s setup", session.stdout)
    return float(took_s)


def opened(folder: Path) -> ServedModel:
    """The stub through the engine."""
    model = ModelRef(name="tiny", kind="folder", location=str(folder))
    options = (("command", COMMAND), ("name", "tiny"), ("stop_timeout", 1))
    return ServerEngine().open(LoadPlan(model=model, engine="server", options=options))


def cpu_ms(run: Callable[[], object], n: int) -> float:
    """CPU time of this process for one of `n` requests; the median of five runs."""
    spent = []
    for _ in range(5):
        start_s = time.process_time()
        run()
        spent.append((time.process_time() - start_s) / n * 1e3)
    return median(spent)


def with_httpx(base: str, n: int) -> Callable[[], object]:
    """The same closed loop, streamed by httpx, each piece of bytes with its time."""
    httpx = __import__("httpx" if find_spec("httpx") else "httpx2")
    body = (
        b'{"model":"tiny","stream":true,"prompt":"one two","max_tokens":%d,'
        b'"stream_options":{"include_usage":true}}' % TOKENS
    )

    async def stream(client: Any) -> None:
        async with client.stream("POST", f"{base}/v1/completions", content=body) as response:
            pieces = [(time.perf_counter_ns(), data) async for data in response.aiter_raw()]
        assert pieces

    async def load() -> None:
        async with httpx.AsyncClient(
            timeout=60, limits=httpx.Limits(max_connections=None)
        ) as client:
            todo = iter(range(n))

            async def line() -> None:
                for _ in todo:
                    await stream(client)

            await asyncio.gather(*(line() for _ in range(LINES)))

    return lambda: asyncio.run(load())


def own_start_s() -> float:
    """From starting the stub until its health answers."""
    port = free_port()
    start_s = time.perf_counter()
    process = subprocess.Popen([sys.executable, str(STUB), "--port", str(port)])
    while True:
        with (
            suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5),
        ):
            break
        time.sleep(0.01)
    took_s = time.perf_counter() - start_s
    process.kill()
    process.wait()
    return took_s


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        print_starts(Path(name))
        print_requests(Path(name))


def print_starts(folder: Path) -> None:
    """Print what the engine and the fixture add to the server's own start."""
    start_s = median(engine_start_s(folder) for _ in range(5))
    alone_s = median(own_start_s() for _ in range(5))
    print(
        f"start through the engine {start_s:.3f} s, alone {alone_s:.3f} s: "
        f"{start_s - alone_s:+.3f} s"
    )
    set_up_s = median(fixture_s(folder) for _ in range(5))
    print(
        f"set-up of a test with the server {set_up_s:.2f} s: {set_up_s - alone_s:+.2f} s (bar 1 s)"
    )


def engine_start_s(folder: Path) -> float:
    """Start the stub through the engine once."""
    session = opened(folder)
    session.close()
    return session.load_s


def print_requests(folder: Path) -> None:
    """Print the CPU time of a request, by this package's client and by httpx."""
    session = opened(folder)
    work = Serve(
        concurrency=LINES,
        requests=200,
        prompts=PROMPTS,
        prompt_tokens=None,
        max_new_tokens=TOKENS,
        prefix_cache=True,
    )
    own_ms = cpu_ms(lambda: session.serve(work, 0), 200)
    print(f"CPU time of a request of {TOKENS} tokens: {own_ms:.2f} ms")
    if find_spec("httpx") or find_spec("httpx2"):
        base = session._server.base  # noqa: SLF001 - its address
        print(f"the same with httpx: {cpu_ms(with_httpx(base, 200), 200):.2f} ms")
    session.close()


if __name__ == "__main__":
    main()
