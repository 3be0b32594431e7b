"""guidellm: texts at a rate of its own, or on so many lines.

See https://github.com/vllm-project/guidellm.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from pytest_llmperf.core.trace import RequestTrace, TokenEvent
from pytest_llmperf.engines.server.generators.job import Job, json_lines, write_private
from pytest_llmperf.engines.server.generators.traces import failed_request, from_zero

OWN_FIELDS = (
    "model",
    "prompt",
    "messages",
    "max_tokens",
    "stream",
    "stream_options",
    "min_tokens",
)
"""Fields of a request that guidellm sets itself.

A minimum that is the same for all would be wrong where lengths differ.
"""


def prepare(job: Job) -> list[str]:
    """Write the input and return the arguments of the program."""
    bodies = [msgspec.json.decode(body) for body in job.bodies]
    rows = [{"prompt": _text(body), "output_tokens_count": body["max_tokens"]} for body in bodies]
    (job.folder / "input.jsonl").write_bytes(json_lines(rows))
    spec = _spec(job, _backend(job, bodies[0]))
    write_private(job.secret_file, msgspec.json.encode({"spec": spec}))
    return ["run", "--config", job.secret_file.name, "--disable-console"]


def _text(body: dict[str, Any]) -> str:
    return str(body["messages"][0]["content"]) if "messages" in body else str(body["prompt"])


def _backend(job: Job, body: dict[str, Any]) -> dict[str, Any]:
    backend: dict[str, Any] = {
        "kind": "openai_http",
        "target": job.base,
        "model": job.model,
        "request_format": job.path,
        "follow_redirects": False,
        "timeout": job.work.timeout,
        "extras": {"body": {k: v for k, v in body.items() if k not in OWN_FIELDS}},
    }
    if job.api_key:
        backend["api_key"] = job.api_key
    return backend


def _spec(job: Job, backend: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "backend": backend,
        "profile": _profile(job),
        "constraints": [{"kind": "max_requests", "count": len(job.bodies)}],
        "data": [{"kind": "json_file", "path": str(job.folder / "input.jsonl")}],
        "outputs": [{"kind": "json", "path": str(job.folder / "out.json")}],
        "seed": {"kind": "static", "value": job.work.seed},
    }
    if job.tokenizer is not None:
        spec["tokenizer"] = {"kind": "huggingface_auto", "model": str(job.tokenizer)}
    return spec


def _profile(job: Job) -> dict[str, Any]:
    if job.work.concurrency is not None:
        return {"kind": "concurrent", "streams": [job.work.concurrency]}
    return {"kind": job.work.arrivals, "rate": [job.work.rate]}


def read_traces(folder: Path) -> tuple[RequestTrace, ...]:
    """Read its JSON report; times in s of its wall clock."""
    (benchmark,) = json.loads((folder / "out.json").read_text(encoding="utf-8"))["benchmarks"]
    requests = benchmark["requests"]
    answered = [_trace(row) for row in requests["successful"]]
    failed = [_failed_trace(row) for kind in ("errored", "incomplete") for row in requests[kind]]
    return from_zero([*answered, *failed])


def _trace(row: dict[str, Any]) -> RequestTrace:
    due_ns, sent_ns, end_ns = _request_times(row)
    return RequestTrace(
        n_prompt_tokens=int(row["prompt_tokens"] or 0),
        t_due_ns=due_ns,
        events=_events(row),
        n_cached_tokens=int(row.get("cached_tokens") or 0),
        t_sent_ns=sent_ns,
        t_end_ns=end_ns,
    )


def _failed_trace(row: dict[str, Any]) -> RequestTrace:
    reason = str(row["info"].get("error") or row["info"].get("status"))
    return failed_request(*_request_times(row), reason)


def _request_times(row: dict[str, Any]) -> tuple[int, int, int]:
    """Return when a request was due, sent and over, in ns."""
    times = row["info"]["timings"]
    sent_ns = _first_time(times, "request_start", "resolve_start", "targeted_start")
    due_ns = _first_time(times, "targeted_start", "request_start")
    return min(sent_ns, due_ns), sent_ns, _first_time(times, "request_end", "resolve_end")


def _first_time(times: dict[str, Any], *names: str) -> int:
    """Return the first of these times that is known, in ns."""
    name = next((name for name in names if times.get(name)), names[-1])
    return _ns(times[name])


def _events(row: dict[str, Any]) -> tuple[TokenEvent, ...]:
    """Return the first token and, at the time of the last, all others."""
    times, n_output = row["info"]["timings"], int(row["output_tokens"])
    first = TokenEvent(_ns(times["first_token_iteration"]), 1)
    last = TokenEvent(_ns(times["last_token_iteration"]), n_output - 1)
    return (first, last) if n_output > 1 else (first,)


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
