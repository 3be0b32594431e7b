"""Result files of other tools, read into records: which tool wrote a file, and what is in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pytest_llmperf.core.record import Fact, Record
from pytest_llmperf.errors import UsageError
from pytest_llmperf.history.foreign import (
    aiperf,
    guidellm,
    inference_perf,
    llama_bench,
    pytest_benchmark,
    sglang_bench,
    vllm_bench,
)
from pytest_llmperf.history.foreign.fields import Fields, moment
from pytest_llmperf.history.foreign.results import Result, record

_MOST_BYTES = 2**30


class Format(NamedTuple):
    """A kind of file: the tool's name, how it is known, and what reads one object of it."""

    tool: str
    recognized: Callable[[Fields], bool]
    read: Callable[[Fields, str], Result | Iterable[Result]]


FORMATS = (
    Format("vllm bench serve", vllm_bench.is_serve, vllm_bench.serve),
    Format("vllm bench latency", vllm_bench.is_latency, vllm_bench.latency),
    Format("vllm bench throughput", vllm_bench.is_throughput, vllm_bench.throughput),
    Format("SGLang bench_serving", sglang_bench.recognized, sglang_bench.read),
    Format("guidellm", guidellm.recognized, guidellm.read),
    Format("aiperf", aiperf.recognized, aiperf.read),
    Format("inference-perf", inference_perf.recognized, inference_perf.read),
    Format("llama-bench", llama_bench.recognized, llama_bench.read),
    Format("pytest-benchmark", pytest_benchmark.recognized, pytest_benchmark.read),
)


def is_ours(path: Path) -> bool:
    """Whether a file has our own lines: records, or accepted changes. An empty one has."""
    try:
        with path.open("rb") as file:
            line = file.readline(_MOST_BYTES)
    except OSError:
        return True  # our own import says what is wrong with it
    try:
        first = json.loads(line)
    except ValueError:
        # A line cut in half is ours; the beginning of a document of several lines is not.
        return not _document(path)
    if not isinstance(first, dict):
        return not isinstance(first, list)
    return ("schema_version" in first and "workload" in first) or "accepted" in first


def _document(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def read_file(
    path: Path, *, label: str = "", facts: Mapping[str, Fact] | None = None
) -> list[Record]:
    """Read every result of a file of another tool.

    `facts` say where it was measured. Raises UsageError for a file that is none, or of a version
    that is not known; the words name the field.
    """
    content = path.read_bytes()
    created = moment(path.stat().st_mtime)
    objects = _objects(content, path)
    results = [result for value in objects for result in _results(value, path, created)]
    if not results:
        raise UsageError(f"{path}: it holds no result.")
    digest = hashlib.sha256(content).hexdigest()
    return [
        record(result, content=digest, at=at, label=label, facts=facts or {})
        for at, result in enumerate(results)
    ]


def _objects(content: bytes, path: Path) -> list[Any]:
    """Return the objects of a file: one, a list, or one a line."""
    try:
        value = json.loads(content)
    except ValueError:
        return [_line(line, at, path) for at, line in _lines(content)]
    return value if isinstance(value, list) else [value]


def _lines(content: bytes) -> list[tuple[int, bytes]]:
    lines = enumerate(content.splitlines(), start=1)
    return [(at, line) for at, line in lines if line.strip()]


def _line(line: bytes, at: int, path: Path) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise UsageError(
            f"{path}:{at}: neither the file nor this line is JSON ({error}). {_known()}"
        ) from error


def _results(value: Any, path: Path, created: str) -> list[Result]:
    row = _format(value, path)
    results = row.read(Fields(value, file=str(path), tool=row.tool), created)
    return [results] if isinstance(results, Result) else list(results)


def _format(value: Any, path: Path) -> Format:
    fields = Fields(value, file=str(path), tool="another tool")
    for row in FORMATS:
        if row.recognized(fields):
            return row
    names = ", ".join(map(repr, fields.names[:6])) or "none"
    raise UsageError(
        f"{path} is not a history, nor a file of a known tool: its fields are {names}. {_known()}"
    )


def _known() -> str:
    return f"Read are files of {', '.join(row.tool for row in FORMATS)}, and our own JSON lines."
