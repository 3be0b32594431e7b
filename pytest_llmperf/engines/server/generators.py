"""Load generators of other projects behind `Serve`: what they are given, how they are run, what of their files is read.

They run as a process of their own interpreter. What they keep of a request (when it was due and sent, its first and its last
token, its counts) becomes a trace like that of our own client, and every quantity is reduced from that by our own definitions.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

from pytest_llmperf.core.trace import RequestTrace, TokenEvent
from pytest_llmperf.engines.server.stream import spread
from pytest_llmperf.errors import InvalidRun, UsageError
from pytest_llmperf.workloads import Serve

_TAIL = 20
_INSTALL = (
    "It pins much of its own: give it an environment (python -m venv X; X/bin/pip install {})."
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A load for a generator.

    `bodies` are the requests as our own client would send them, `due_s` when (open loop).
    `tokenizer` is a folder, or None. `program` is the generator's command; `folder` is empty, and
    its own.
    """

    work: Serve
    base: str
    path: str
    model: str
    api_key: str
    bodies: tuple[bytes, ...]
    due_s: tuple[float, ...]
    tokenizer: Path | None
    program: Path
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Generator:
    """One of them. `prepare` writes its input and gives its arguments, `read` reads what it left.

    `ids`: prompts may be token ids. `gaps`: it keeps the time of every message, and not the first
    and the last alone. `unset` are environment variables that it must not see.
    """

    name: str
    prepare: Callable[[Job], list[str]]
    read: Callable[[Path], tuple[RequestTrace, ...]]
    ids: bool
    gaps: bool
    unset: tuple[str, ...] = ()


async def generate(generator: Generator, job: Job) -> tuple[RequestTrace, ...]:
    """Run it to its end. Its log and files stay in the folder.

    Cancelled, it ends with all that it started.

    Raises:
        InvalidRun: it failed (with the tail of its log), or what it left cannot be read or lacks
            requests.
    """
    log = job.folder / "log.txt"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            str(job.program),
            *generator.prepare(job),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=job.folder,
            env=environment(generator, os.environ),
            start_new_session=True,
        )
        try:
            code = await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
    if code:
        raise InvalidRun(f"{generator.name} ended with exit code {code}. {_said(log)}")
    try:
        traces = generator.read(job.folder)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InvalidRun(
            f"what {generator.name} left cannot be read ({type(error).__name__}: {error}). {_said(log)}"
        ) from error
    if len(traces) < len(job.bodies):
        raise InvalidRun(
            f"{generator.name} kept {len(traces)} of {len(job.bodies)} requests. {_said(log)}"
        )
    return traces


def environment(generator: Generator, ours: Mapping[str, str]) -> dict[str, str]:
    """Ours, without what the generator cannot stand, and with telemetry off."""
    kept = {name: value for name, value in ours.items() if name not in generator.unset}
    return kept | {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}


def find_generator(name: str, python: str | None) -> Path:
    """Its command: beside the interpreter that is named, else beside this one or on the PATH.

    Raises UsageError.
    """
    if python is not None:
        beside = Path(python).parent / name
        if os.access(beside, os.X_OK):
            return beside
        raise UsageError(
            f"--llmperf-python {name}={python}: there is no {name} beside that interpreter. {_INSTALL.format(name)}"
        )
    found = shutil.which(
        name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    )
    if found is None:
        raise UsageError(
            f"Serve(generator={name!r}): {name} is not installed, neither beside {sys.executable} nor on the PATH. "
            f"{_INSTALL.format(name)} Then: --llmperf-python {name}=/path/to/its/python.",
        )
    return Path(found)


def version_of(name: str, program: Path) -> str:
    """As its installation says, or an empty text."""
    found = program.parent.parent.glob(f"lib/python3*/site-packages/{name}-*.dist-info")
    return next((folder.name.removesuffix(".dist-info").partition("-")[2] for folder in found), "")


def _said(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:]
    return f"Last lines of {log}:\n" + "\n".join(lines)


def _lines(rows: Sequence[Any]) -> bytes:
    return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)


# aiperf: requests sent as they are, when they are due (https://github.com/ai-dynamo/aiperf; its
# trace format "payload")


def _aiperf(job: Job) -> list[str]:
    payloads = [msgspec.json.decode(body) for body in job.bodies]
    times = [{"timestamp": 1e3 * at} for at in job.due_s] or [{} for _ in payloads]
    rows = [{"payload": payload, **at} for payload, at in zip(payloads, times, strict=True)]
    (job.folder / "input.jsonl").write_bytes(_lines(rows))
    if job.work.concurrency is None:
        load = ["--fixed-schedule"]
    else:
        load = [
            "--no-fixed-schedule",
            "--concurrency",
            str(job.work.concurrency),
            "--request-count",
            str(len(rows)),
        ]
    kind = "chat" if "chat" in job.path else "completions"
    key = ["--api-key", job.api_key] if job.api_key else []
    return [
        *(
            "profile",
            "--model",
            job.model,
            "--url",
            job.base,
            "--endpoint-type",
            kind,
            "--streaming",
        ),
        *(
            "--tokenizer",
            str(job.tokenizer) if job.tokenizer is not None else "builtin",
            "--use-server-token-count",
        ),
        *(
            "--input-file",
            "input.jsonl",
            "--custom-dataset-type",
            "mooncake_trace",
            "--dataset-sampling-strategy",
            "sequential",
        ),
        *(
            "--request-timeout-seconds",
            f"{job.work.timeout:g}",
            "--artifact-dir",
            "out",
            "--export-level",
            "records",
        ),
        *("--ui", "none", "--no-server-metrics", "--no-gpu-telemetry", *load, *key),
    ]


def read_aiperf(folder: Path) -> tuple[RequestTrace, ...]:
    """From `profile_export.jsonl`, one request a line; times in ns of its wall clock."""
    text = (folder / "out" / "profile_export.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    traces = [
        _of_aiperf(row["metadata"], row.get("metrics") or {}, row.get("error")) for row in rows
    ]
    return _from_zero(traces)


def _of_aiperf(said: dict[str, Any], metrics: dict[str, Any], error: Any) -> RequestTrace:
    sent_ns, end_ns = int(said["request_start_ns"]), int(said["request_end_ns"])
    due_ns = min(sent_ns, int(said.get("credit_issued_ns") or sent_ns))
    if error is not None:
        return _failed(due_ns, sent_ns, end_ns, str(error.get("message") or error)[:200])
    n_output = int(metrics["output_sequence_length"]["value"])
    first_ns = sent_ns + round(metrics["time_to_first_token"]["value"] * 1e6)
    gaps_ns = [round(gap * 1e6) for gap in metrics.get("inter_chunk_latency", {}).get("value", ())]
    if not gaps_ns and n_output > 1:  # it leaves out the gaps of a request where one of them is 0
        gaps_ns = [sent_ns + round(metrics["request_latency"]["value"] * 1e6) - first_ns]
    return RequestTrace(
        n_prompt_tokens=int(metrics["input_sequence_length"]["value"]),
        t_due_ns=due_ns,
        events=_events(first_ns, gaps_ns, n_output),
        t_sent_ns=sent_ns,
        t_end_ns=end_ns,
    )


def _events(first_ns: int, gaps_ns: Sequence[int], n_output: int) -> tuple[TokenEvent, ...]:
    """A token a message; what more the server counted is spread over the messages after the first."""
    counts = [1, *spread(n_output - 1, [1] * len(gaps_ns))] if gaps_ns else [n_output]
    t_ns, events = first_ns, [TokenEvent(t_ns=first_ns, n_tokens=counts[0])]
    for gap_ns, n in zip(gaps_ns, counts[1:], strict=True):
        t_ns += gap_ns
        events.append(TokenEvent(t_ns=t_ns, n_tokens=n))
    return tuple(event for event in events if event.n_tokens)


# guidellm: texts at a rate of its own, or on so many lines
# (https://github.com/vllm-project/guidellm)


def _guidellm(job: Job) -> list[str]:
    bodies = [msgspec.json.decode(body) for body in job.bodies]
    rows = [{"prompt": _text(body), "output_tokens_count": body["max_tokens"]} for body in bodies]
    (job.folder / "input.jsonl").write_bytes(_lines(rows))
    extras = {k: v for k, v in bodies[0].items() if k not in _ITS_OWN}
    backend: dict[str, Any] = {
        "kind": "openai_http",
        "target": job.base,
        "model": job.model,
        "request_format": job.path,
    }
    backend |= {"follow_redirects": False, "timeout": job.work.timeout, "extras": {"body": extras}}
    backend |= {"api_key": job.api_key} if job.api_key else {}
    profile: dict[str, Any] = {"kind": job.work.arrivals, "rate": [job.work.rate]}
    if job.work.concurrency is not None:
        profile = {"kind": "concurrent", "streams": [job.work.concurrency]}
    config: dict[str, Any] = {
        "backend": backend,
        "profile": profile,
        "constraints": [{"kind": "max_requests", "count": len(rows)}],
        "data": [{"kind": "json_file", "path": str(job.folder / "input.jsonl")}],
        "outputs": [{"kind": "json", "path": str(job.folder / "out.json")}],
        "seed": {"kind": "static", "value": job.work.seed},
    }
    if job.tokenizer is not None:
        config["tokenizer"] = {"kind": "huggingface_auto", "model": str(job.tokenizer)}
    (job.folder / "config.json").write_bytes(msgspec.json.encode({"spec": config}))
    return ["run", "--config", "config.json", "--disable-console"]


_ITS_OWN = ("model", "prompt", "messages", "max_tokens", "stream", "stream_options", "min_tokens")
"""Fields that guidellm sets itself.

A minimum that is the same for all would be wrong where lengths differ.
"""


def _text(body: dict[str, Any]) -> str:
    return str(body["messages"][0]["content"]) if "messages" in body else str(body["prompt"])


def read_guidellm(folder: Path) -> tuple[RequestTrace, ...]:
    """From its JSON report; times in s of its wall clock."""
    (benchmark,) = json.loads((folder / "out.json").read_text(encoding="utf-8"))["benchmarks"]
    kept, kinds = benchmark["requests"], ("successful", "errored", "incomplete")
    traces = [_of_guidellm(row, failed=kind != kinds[0]) for kind in kinds for row in kept[kind]]
    return _from_zero(traces)


def _of_guidellm(row: dict[str, Any], *, failed: bool) -> RequestTrace:
    times = row["info"]["timings"]
    sent_ns = _ns(
        times.get("request_start") or times.get("resolve_start") or times["targeted_start"]
    )
    due_ns = min(sent_ns, _ns(times.get("targeted_start") or times.get("request_start")))
    end_ns = _ns(times.get("request_end") or times["resolve_end"])
    if failed:
        return _failed(
            due_ns,
            sent_ns,
            end_ns,
            str(row["info"].get("error") or row["info"].get("status"))[:200],
        )
    n_output = int(row["output_tokens"])
    first, last = (
        TokenEvent(_ns(times["first_token_iteration"]), 1),
        TokenEvent(_ns(times["last_token_iteration"]), n_output - 1),
    )
    return RequestTrace(
        n_prompt_tokens=int(row["prompt_tokens"] or 0),
        t_due_ns=due_ns,
        events=(first, last) if n_output > 1 else (first,),
        n_cached_tokens=int(row.get("cached_tokens") or 0),
        t_sent_ns=sent_ns,
        t_end_ns=end_ns,
    )


def _from_zero(traces: Sequence[RequestTrace]) -> tuple[RequestTrace, ...]:
    """In the order in which they were due, the first at 1 s: times of a wall clock in ns are too large for a float."""
    first_ns = min((trace.t_due_ns for trace in traces), default=0) - 10**9
    moved = [
        structs.replace(
            trace,
            t_due_ns=trace.t_due_ns - first_ns,
            t_sent_ns=trace.t_sent_ns - first_ns,
            t_end_ns=trace.t_end_ns - first_ns,
            events=tuple(
                TokenEvent(event.t_ns - first_ns, event.n_tokens) for event in trace.events
            ),
        )
        for trace in traces
    ]
    return tuple(sorted(moved, key=lambda trace: trace.t_due_ns))


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _failed(due_ns: int, sent_ns: int, end_ns: int, reason: str) -> RequestTrace:
    return RequestTrace(
        n_prompt_tokens=0,
        t_due_ns=due_ns,
        events=(),
        failure=reason,
        t_sent_ns=sent_ns,
        t_end_ns=end_ns,
    )


OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""With one of them aiperf 0.13 takes a tokenizer's folder for the name of a repository."""

GENERATORS = {
    row.name: row
    for row in (
        Generator(
            name="aiperf", prepare=_aiperf, read=read_aiperf, ids=True, gaps=True, unset=OFFLINE
        ),
        Generator(name="guidellm", prepare=_guidellm, read=read_guidellm, ids=False, gaps=False),
    )
}
