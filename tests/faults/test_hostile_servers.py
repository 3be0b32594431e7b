"""Servers whose answers have no end, or no sense: failed requests, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("aiohttp")

LARGEST_MIB = 300
SERVER = """
import asyncio, sys
EVENT = b'data: {"choices":[{"text":"w1 "}]}\\n\\n'
HEAD = b"HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\nConnection: close\\r\\n\\r\\n"

async def answer(reader, writer):
    kind = (await reader.readline()).split()[1].decode().strip("/")
    try:
        writer.write(HEAD)
        if kind == "bytes-one-by-one":
            writer.get_extra_info("socket").setsockopt(6, 1, 1)
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0)
        body = {
            "line-without-end": b"x" * 2**16,
            "messages-without-end": EVENT * 500,
            "nested": b"data: " + b"[" * 200_000 + b"\\n\\n",
            "no-utf-8": b'data: {"choices":[{"text":"\\xff"}]}\\n\\n',
            "json-without-end": b"[" + b"0," * 2**15,
        }[kind]
        while True:
            writer.write(body)
            await writer.drain()
            if kind in {"nested", "no-utf-8"}:
                break
        writer.close()
    except OSError:
        pass

async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""
CLIENT = """
import asyncio, json, sys, time
from pathlib import Path
from pytest_llmperf.engines.server.client import Call, Client, Endpoint, connections
from pytest_llmperf.engines.server.introspection import Introspection
from pytest_llmperf.engines.server.messages import bounds
from pytest_llmperf.engines.server.stream import parse_openai

base, spare, *kinds = sys.argv[1:]
bounds.SPARE_BYTES = int(spare)

def high_water_mib():
    # Of this program alone: getrusage keeps what the process held before it became this program.
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) // 1024

async def ask(kind):
    async with connections(30.0) as http:
        if kind == "json-without-end":
            return str(await Introspection(base, http, {}).json("/json-without-end"))
        timeout_s = 3.0 if kind == "bytes-one-by-one" else 30.0
        client = Client(Endpoint(f"{base}/{kind}", {}, parse_openai), http, timeout_s=timeout_s)
        calls = [Call(body=b"{}", n_prompt_tokens=1, n_output_tokens=128)] * 32
        return " | ".join({str(o.failure) for o in await client.together(calls)})

for kind in kinds:
    text = asyncio.run(ask(kind))
    mib = high_water_mib()
    print(json.dumps([kind, mib, text]), flush=True)
"""
EXPECTED = {
    "line-without-end": "the answer has no end",
    "messages-without-end": "the answer has no end",
    "bytes-one-by-one": "no message came for 3 s",
    "nested": "is not what the protocol says",
    "no-utf-8": "before the server said why it stopped",
    "json-without-end": "None",
}


@pytest.fixture
def base():
    """The address of the server; the path says how it behaves."""
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
    server.kill()
    server.communicate()


def asked(base: str, *kinds: str, spare: int) -> dict[str, tuple[int, str]]:
    """The client's largest resident memory (MiB) so far, and why its requests failed."""
    command = [sys.executable, "-c", CLIENT, base, str(spare), *kinds]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    return {kind: (mib, text) for kind, mib, text in map(json.loads, output.stdout.splitlines())}


def test_no_server_fills_the_memory_of_the_client(base):
    """32 requests of 128 tokens at once, of each kind."""
    seen = asked(base, *EXPECTED, spare=2**20)
    for kind, reason in EXPECTED.items():
        mib, text = seen[kind]
        assert reason in text, kind
        assert mib <= LARGEST_MIB, kind


def test_without_bounds_memory_is_filled(base):
    """The check above can fail."""
    assert asked(base, "line-without-end", spare=2**24)["line-without-end"][0] > LARGEST_MIB
