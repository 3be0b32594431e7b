"""A scripted server: OpenAI's and TGI's streams on plain asyncio, with every fault of a server.

python stub_server.py --port 8000 --model tiny --token-ms 1 --fault stall
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

COUNTED = {"requests": 0, "running": 0, "preemptions": 0, "prompt": 0, "hits": 0}
SEEN: set[str] = set()
ARRIVALS: list[int] = []
SERVERS: list[asyncio.Server] = []
PATHS = {"/v1/completions", "/v1/chat/completions", "/generate_stream", "/v3/complete"}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--protocol", default="openai")
    parser.add_argument("--ttft-ms", type=float, default=0.0)
    parser.add_argument("--token-ms", type=float, default=0.0)
    parser.add_argument("--bundle", type=int, default=1, help="tokens of a message")
    parser.add_argument(
        "--slots", type=int, default=0, help="requests served at once; the others wait"
    )
    parser.add_argument("--dtype", default="")
    parser.add_argument("--fault", default="")
    parser.add_argument("--first", type=int, default=3, help="the fault begins with this request")
    parser.add_argument("--root", default="", help="the path that all others are below")
    parser.add_argument("--tls", nargs=2, help="a certificate and its key")
    parser.add_argument("--pid-file", default="")
    parser.add_argument("--pages", default="", help="a JSON file: path -> what a GET answers")
    parser.add_argument("--logs", default="", help="a file whose lines it writes as it starts")
    parser.add_argument("--context", type=int, default=0, help="tokens past which it refuses")
    parser.add_argument("--no-metrics", action="store_true")
    parser.add_argument("--cold-ms", type=float, default=0.0, help="longer TTFT of a new prompt")
    parser.add_argument("--api-key", default="", help="taken as real servers take it, and ignored")
    return parser.parse_args()


ARGS = parsed() if __name__ == "__main__" else argparse.Namespace()


async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            method, path, _ = head.split(" ", 2)
            headers = dict(
                line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line
            )
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            path = path.removeprefix(ARGS.root) if path.startswith(ARGS.root) else "/nowhere"
            if method == "POST" and path in PATHS:
                ARRIVALS.append(time.perf_counter_ns())
                await generate(writer, headers, json.loads(body))
            else:
                answer(writer, *page(path))
            await writer.drain()
    writer.close()


def page(path: str) -> tuple[int, str]:
    """A GET."""
    if path in {"/health", "/arrivals"}:
        return health() if path == "/health" else arrivals()
    pages = {"/v1/models": {"data": [{"id": ARGS.model}]}}
    pages |= json.loads(Path(ARGS.pages).read_text()) if ARGS.pages else {}
    if (bare := path.partition("?")[0]) in pages:
        return 200, json.dumps(pages[bare])
    if path == "/info" and ARGS.protocol == "tgi":
        return 200, json.dumps(
            {"model_id": ARGS.model, "model_dtype": f"torch.{ARGS.dtype}", "version": "3.0"}
        )
    if path.startswith("/server_info") and ARGS.dtype:
        return 200, json.dumps({"vllm_config": {"model_config": {"dtype": f"torch.{ARGS.dtype}"}}})
    if path == "/metrics" and not ARGS.no_metrics:
        return 200, (
            f'vllm:num_preemptions_total{{engine="0"}} {COUNTED["preemptions"]}\n'
            f"vllm:num_requests_running {COUNTED['running']}\n"
            "# TYPE x gauge\nvllm:kv_cache_usage_perc 0.25\n"
            f"vllm:prefix_cache_queries_total {COUNTED['prompt']}\n"
            f"vllm:prefix_cache_hits_total {COUNTED['hits']}\n"
        )
    return 404, "{}"


def health() -> tuple[int, str]:
    answers = {"never-healthy": (503, "loading"), "no-health": (404, "{}")}
    return answers.get(ARGS.fault, (200, "ok"))


def arrivals() -> tuple[int, str]:
    """Return when requests came (ns) since the last call."""
    came = json.dumps(ARRIVALS)
    ARRIVALS.clear()
    return 200, came


def answer(writer: asyncio.StreamWriter, status: int, text: str) -> None:
    data = text.encode()
    writer.write(
        f"HTTP/1.1 {status} x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n".encode()
        + data
    )


def fault() -> str:
    """The fault of this request, from the `first` on."""
    return ARGS.fault if COUNTED["requests"] >= ARGS.first else ""


def refusal(request: dict, wrong: str) -> tuple[int, str] | None:
    """An answer that is no stream."""
    if wrong == "json-200":
        return 200, '{"error": {"message": "the model is \x1b[31mloading"}}'
    if wrong == "strict" and (refused := {"stream_options", "max_tokens"} & set(request)):
        return 400, f"extra fields not permitted: {', '.join(sorted(refused))}"
    if ARGS.context and n_of_prompt(request) + n_asked(request) > ARGS.context:
        return 400, f"this model's maximum context length is {ARGS.context} tokens"
    if wrong in {"http-429", "http-503"}:
        return int(wrong[5:]), "come back later"
    return None


async def generate(writer: asyncio.StreamWriter, headers: dict[str, str], request: dict) -> None:
    COUNTED["requests"] += 1
    wrong = fault()
    if ARGS.fault == "needs-key" and headers.get("authorization") != "bearer secret":
        return answer(writer, 401, '{"error": "no key"}')
    if refused := refusal(request, wrong):
        return answer(writer, *refused)
    if wrong == "redirect":
        writer.write(b"HTTP/1.1 307 x\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n")
        return None
    if wrong == "die":
        print("\x1b[31mout of luck", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(7)
    if wrong == "die-slowly":
        SERVERS[0].close()
        writer.transport.abort()
        asyncio.get_running_loop().call_later(0.7, os._exit, 7)
        return None
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    COUNTED["running"] += 1
    COUNTED["preemptions"] += wrong == "preempt"
    async with SLOTS:
        await stream(writer, request, wrong)
    COUNTED["running"] -= 1
    return None


def prompt_of(request: dict) -> str | list:
    return request.get("prompt", request.get("inputs", request.get("messages")))


def n_of_prompt(request: dict) -> int:
    text = prompt_of(request)
    is_ids = isinstance(text, list) and "messages" not in request
    return len(text) if is_ids else len(str(text).split())


def count_prompt(request: dict) -> int:
    text, n = str(prompt_of(request)), n_of_prompt(request)
    COUNTED["prompt"] += n
    COUNTED["hits"] += n if text in SEEN else 0
    SEEN.add(text)
    return n


async def stream(writer: asyncio.StreamWriter, request: dict, wrong: str) -> None:
    is_new = str(prompt_of(request)) not in SEEN
    n_prompt = count_prompt(request)
    n = n_asked(request)
    if wrong in {"fewer", "capped"}:
        n = max(1, n // 4)
    send(writer, role(request))
    if wrong in {"pings", "endless"}:
        return await go_on(writer, request, wrong)
    cold_ms = ARGS.cold_ms if is_new or ARGS.fault == "no-cache" else 0.0
    due = time.perf_counter() + (ARGS.ttft_ms + cold_ms * min(1, n_prompt / 64)) / 1e3
    for i in range(0, n, ARGS.bundle):
        due += ARGS.token_ms / 1e3 * (ARGS.bundle if i else 0)
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        if wrong in {"break", "stall", "bad-json", "error"} and i >= 2:
            return await go_wrong(writer, wrong)
        words = [f"w{at % 50}" for at in range(i, min(i + ARGS.bundle, n))]
        send(writer, message(request, words, n, last=i + ARGS.bundle >= n))
        if i % 16 == 0:
            await writer.drain()
    n_counted = {"counts-more": 3 * n, "counts-less": n // 2}.get(wrong, n)
    n_prompt *= 10 if wrong == "prompt-tenfold" else 1
    send(writer, usage(request, n_prompt, n_counted))
    send(writer, "[DONE]" if ARGS.protocol == "openai" else None)
    writer.write(b"0\r\n\r\n")
    return None


def n_asked(request: dict) -> int:
    names = ("max_tokens", "max_completion_tokens")
    asked = next((request[name] for name in names if name in request), None)
    return asked or request["parameters"]["max_new_tokens"]


async def go_on(writer: asyncio.StreamWriter, request: dict, wrong: str) -> None:
    """No end: comments that keep the connection alive, or message after message."""
    while True:
        if wrong == "pings":
            writer.write(b"8\r\n: ping\n\n\r\n")
            await asyncio.sleep(0.02)
        else:
            send(writer, message(request, ["w1"], 10**9, last=False))
        await writer.drain()


async def go_wrong(writer: asyncio.StreamWriter, wrong: str) -> None:
    if wrong == "stall":
        await asyncio.sleep(3600)
    if wrong == "bad-json":
        send(writer, '{"choices": [')
        writer.write(b"0\r\n\r\n")
        return
    if wrong == "error":
        send(writer, '{"error": {"message": "out of blocks"}}')
        writer.write(b"0\r\n\r\n")
        return
    writer.transport.abort()


def role(request: dict) -> str | None:
    return (
        as_json({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        if "messages" in request
        else None
    )


def message(request: dict, words: list[str], n: int, *, last: bool) -> str:
    text = " ".join(words) + " "
    if ARGS.protocol == "tgi":
        details = (
            {"finish_reason": "length", "generated_tokens": n, "input_length": 4} if last else None
        )
        return as_json(
            {
                "index": 1,
                "token": {"id": 5, "text": text, "logprob": -1.0, "special": False},
                "details": details,
            }
        )
    content = {"delta": {"content": text}} if "messages" in request else {"text": text}
    kind = "chat.completion.chunk" if "messages" in request else "text_completion"
    reason = "stop" if fault() == "fewer" else "length"
    choice = {"index": 0, **content, "finish_reason": reason if last else None}
    return as_json({"object": kind, "model": served(), "choices": [choice]})


def usage(request: dict, n_prompt: int, n: int) -> str | None:
    counts_unasked = fault() == "strict"
    if ARGS.protocol == "tgi" or not ("stream_options" in request or counts_unasked):
        return None
    kind = "chat.completion.chunk" if "messages" in request else "text_completion"
    counts = {"prompt_tokens": n_prompt, "completion_tokens": n, "total_tokens": n_prompt + n}
    if fault() == "says-cached":
        counts["prompt_tokens_details"] = {"cached_tokens": n_prompt}
    return as_json({"object": kind, "model": served(), "choices": [], "usage": counts})


def served() -> str:
    return "somebody-else" if fault() == "other-model" else ARGS.model


def as_json(value: dict) -> str:
    return json.dumps(value, separators=(",", ":"))


def send(writer: asyncio.StreamWriter, data: str | None) -> None:
    if data is not None:
        raw = f"data: {data}\n\n".encode()
        writer.write(f"{len(raw):x}\r\n".encode() + raw + b"\r\n")


SLOTS: asyncio.Semaphore


async def main() -> None:
    global SLOTS  # noqa: PLW0603 - one server a process
    SLOTS = asyncio.Semaphore(ARGS.slots or 10**9)
    if ARGS.fault == "dies-at-start":
        print("cannot find libcuda.so", file=sys.stderr)  # noqa: T201
        sys.exit(3)
    if ARGS.fault == "ignores-sigterm":
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: None)
    if ARGS.logs:
        print(Path(ARGS.logs).read_text(), flush=True)  # noqa: ASYNC240, T201 - before it serves
    pids = [os.getpid()]
    if ARGS.fault == "grandchild":
        # Before it serves.
        sleeper = subprocess.Popen(["sleep", "600"], start_new_session=True)  # noqa: ASYNC220
        pids.append(sleeper.pid)
    if ARGS.pid_file:
        Path(ARGS.pid_file).write_text(json.dumps(pids))  # noqa: ASYNC240 - before it serves
    trusted = None
    if ARGS.tls:
        trusted = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trusted.load_cert_chain(*ARGS.tls)
    server = await asyncio.start_server(
        connection, "127.0.0.1", ARGS.port, backlog=4096, ssl=trusted
    )
    SERVERS.append(server)
    async with server:
        await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
