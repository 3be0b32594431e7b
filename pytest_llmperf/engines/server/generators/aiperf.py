"""aiperf: requests sent as they are, when they are due (https://github.com/ai-dynamo/aiperf).

Its trace format for them is "payload".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec

from pytest_llmperf.core.trace import RequestTrace, TokenEvent
from pytest_llmperf.engines.server.generators.job import Job, json_lines
from pytest_llmperf.engines.server.generators.traces import failed_request, from_zero
from pytest_llmperf.engines.server.stream import spread


def prepare(job: Job) -> list[str]:
    """Write the input and return the arguments of the program."""
    (job.folder / "input.jsonl").write_bytes(json_lines(_input_rows(job)))
    return [
        "profile",
        *_endpoint_options(job),
        *_tokenizer_options(job),
        *_file_options(),
        *_output_options(job),
        *_load_options(job),
        *(["--api-key", job.api_key] if job.api_key else []),
    ]


def _input_rows(job: Job) -> list[dict[str, Any]]:
    payloads = [msgspec.json.decode(body) for body in job.bodies]
    if not job.due_s:
        return [{"payload": payload} for payload in payloads]
    return [
        {"payload": payload, "timestamp": 1e3 * due_s}
        for payload, due_s in zip(payloads, job.due_s, strict=True)
    ]


def _endpoint_options(job: Job) -> list[str]:
    kind = "chat" if "chat" in job.path else "completions"
    return ["--model", job.model, "--url", job.base, "--endpoint-type", kind, "--streaming"]


def _tokenizer_options(job: Job) -> list[str]:
    tokenizer = str(job.tokenizer) if job.tokenizer is not None else "builtin"
    return ["--tokenizer", tokenizer, "--use-server-token-count"]


def _file_options() -> list[str]:
    options = {
        "--input-file": "input.jsonl",
        "--custom-dataset-type": "mooncake_trace",
        "--dataset-sampling-strategy": "sequential",
    }
    return _in_a_row(options)


def _in_a_row(options: Mapping[str, str]) -> list[str]:
    """Return options and their values as arguments of a program."""
    return [text for pair in options.items() for text in pair]


def _output_options(job: Job) -> list[str]:
    options = {
        "--request-timeout-seconds": f"{job.work.timeout:g}",
        "--artifact-dir": "out",
        "--export-level": "records",
        "--ui": "none",
    }
    return [*_in_a_row(options), "--no-server-metrics", "--no-gpu-telemetry"]


def _load_options(job: Job) -> list[str]:
    if job.work.concurrency is None:
        return ["--fixed-schedule"]
    return _closed_loop_options(job.work.concurrency, len(job.bodies))


def _closed_loop_options(n_lines: int, n_requests: int) -> list[str]:
    concurrency, count = str(n_lines), str(n_requests)
    return ["--no-fixed-schedule", "--concurrency", concurrency, "--request-count", count]


def read_traces(folder: Path) -> tuple[RequestTrace, ...]:
    """Read `profile_export.jsonl`, one request a line; times in ns of its wall clock."""
    text = (folder / "out" / "profile_export.jsonl").read_text(encoding="utf-8")
    return from_zero([_trace(row) for row in _json_rows(text)])


def _json_rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _trace(row: dict[str, Any]) -> RequestTrace:
    due_ns, sent_ns, end_ns = _request_times(row["metadata"])
    error = row.get("error")
    if error is not None:
        return failed_request(due_ns, sent_ns, end_ns, str(error.get("message") or error))
    metrics = row.get("metrics") or {}
    return RequestTrace(
        n_prompt_tokens=int(metrics["input_sequence_length"]["value"]),
        t_due_ns=due_ns,
        events=_events(metrics, sent_ns),
        t_sent_ns=sent_ns,
        t_end_ns=end_ns,
    )


def _request_times(times: dict[str, Any]) -> tuple[int, int, int]:
    """Return when a request was due, sent and over, in ns."""
    sent_ns, end_ns = int(times["request_start_ns"]), int(times["request_end_ns"])
    due_ns = int(times.get("credit_issued_ns") or sent_ns)
    return min(sent_ns, due_ns), sent_ns, end_ns


def _events(metrics: dict[str, Any], sent_ns: int) -> tuple[TokenEvent, ...]:
    n_output = int(metrics["output_sequence_length"]["value"])
    first_ns = sent_ns + _ns(metrics["time_to_first_token"]["value"])
    gaps_ns = [_ns(gap) for gap in metrics.get("inter_chunk_latency", {}).get("value", ())]
    if not gaps_ns and n_output > 1:
        # It leaves out the gaps of a request where one of them is 0.
        gaps_ns = [sent_ns + _ns(metrics["request_latency"]["value"]) - first_ns]
    return _token_events(first_ns, gaps_ns, n_output)


def _token_events(first_ns: int, gaps_ns: Sequence[int], n_output: int) -> tuple[TokenEvent, ...]:
    """Return one token a message.

    What more the server counted is spread over the messages after the first.
    """
    counts = [1, *spread(n_output - 1, [1] * len(gaps_ns))] if gaps_ns else [n_output]
    times_ns = accumulate([first_ns, *gaps_ns])
    return tuple(TokenEvent(t, n) for t, n in zip(times_ns, counts, strict=True) if n)


def _ns(milliseconds: float) -> int:
    return round(milliseconds * 1e6)
