"""Public traces of requests: Mooncake's, Azure's and BurstGPT's, by their own columns.

Sources: https://github.com/kvcache-ai/Mooncake (FAST25-release/traces: timestamp in ms, lengths,
and a hash for each block of 512 tokens), https://github.com/Azure/AzurePublicDataset (TIMESTAMP,
ContextTokens, GeneratedTokens), https://github.com/HPMLL/BurstGPT (Timestamp in s, tokens).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pytest_llmperf.errors import UsageError
from pytest_llmperf.workloads.checks import is_count, json_object, read_lines

MOONCAKE_BLOCK = 512
_MOONCAKE = (
    'Expected Mooncake\'s lines: {"timestamp": 27482, "input_length": 6955, "output_length": 52, '
    '"hash_ids": [46, 47]}.'
)
_AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_BURST = ("Timestamp", "Request tokens", "Response tokens")


class Rows(NamedTuple):
    """Requests of a trace: seconds from its first, lengths in tokens, and hashes of blocks."""

    times_s: tuple[float, ...]
    prompt_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]
    blocks: tuple[tuple[int, ...], ...] = ()


def mooncake(path: Path) -> Rows:
    """Read Mooncake's trace. Raises UsageError with the line that is none of it."""
    lines = [line for line in read_lines(path, "trace file") if line.strip()]
    rows = [json_object(line, f"{path}:{i}", _MOONCAKE) for i, line in enumerate(lines, 1)]
    for i, row in enumerate(rows, 1):
        _require_mooncake(row, f"{path}:{i}")
    _require_rows(rows, path)
    return Rows(
        _from_first([row["timestamp"] / 1000 for row in rows], path),
        tuple(row["input_length"] for row in rows),
        tuple(row["output_length"] for row in rows),
        tuple(tuple(row["hash_ids"]) for row in rows),
    )


def _require_mooncake(row: dict[str, Any], position: str) -> None:
    for name in ("input_length", "output_length"):
        if not is_count(row.get(name)):
            raise UsageError(f"{position}: field {name!r} is {row.get(name)!r}. {_MOONCAKE}")
    if not is_count(row.get("timestamp"), 0):
        raise UsageError(f"{position}: field 'timestamp' is {row.get('timestamp')!r}. {_MOONCAKE}")
    hashes = row.get("hash_ids")
    needed = -(-row["input_length"] // MOONCAKE_BLOCK)
    if not isinstance(hashes, list) or len(hashes) < needed or not all(map(_is_hash, hashes)):
        raise UsageError(
            f"{position}: field 'hash_ids' must have a whole number for each {MOONCAKE_BLOCK} "
            f"tokens, {needed} here. {_MOONCAKE}"
        )


def _is_hash(value: object) -> bool:
    return is_count(value, 0)


def azure(path: Path) -> Rows:
    """Read a trace of Azure's LLM inference. Raises UsageError with the row that is none of it."""
    rows = list(_csv(path, _AZURE))
    _require_rows(rows, path)
    times_s = [_moment_s(row[0], f"{path}:{i}") for i, row in enumerate(rows, 2)]
    return Rows(_from_first(times_s, path), *_tokens(rows, path, _AZURE))


def burstgpt(path: Path) -> Rows:
    """Read BurstGPT's trace; requests that failed there (no response tokens) are left out.

    Raises UsageError with the row that is none of it.
    """
    answered = [row for row in _csv(path, _BURST) if row[2] not in {"0", "0.0"}]
    _require_rows(answered, path)
    times_s = [_seconds(row[0], f"{path}: row {i}") for i, row in enumerate(answered, 1)]
    return Rows(_from_first(times_s, path), *_tokens(answered, path, _BURST))


def _csv(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Give these columns of each row. Raises UsageError where one is missing."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"trace file {str(path)!r} cannot be read: {error}.") from error
    reader = csv.DictReader(text.splitlines())
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
        raise UsageError(
            f"{path}: column {missing[0]!r} is missing. Its columns are "
            f"{', '.join(reader.fieldnames or ()) or 'none'}."
        )
    for row in reader:
        yield tuple(row[name] or "" for name in columns)


def _tokens(
    rows: Sequence[tuple[str, ...]], path: Path, columns: Sequence[str]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    prompts, outputs = (_column(rows, at, f"{path}: {columns[at]}") for at in (1, 2))
    return prompts, outputs


def _column(rows: Sequence[tuple[str, ...]], at: int, where: str) -> tuple[int, ...]:
    return tuple(_token_count(row[at], f"{where} of request {i}") for i, row in enumerate(rows, 1))


def _token_count(text: str, where: str) -> int:
    if not text.removesuffix(".0").isdecimal():
        raise UsageError(f"{where} is {text!r}, a whole number is needed.")
    return max(1, int(text.removesuffix(".0")))


def _moment_s(text: str, where: str) -> float:
    # Azure writes seven digits of a second, Python reads six.
    head, _, fraction = text.partition(".")
    try:
        moment = datetime.fromisoformat(f"{head}.{(fraction or '0')[:6]:0<6}")
    except ValueError as error:
        raise UsageError(f"{where}: TIMESTAMP {text!r} is no time: {error}.") from error
    return moment.timestamp()


def _seconds(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"{where}: Timestamp {text!r} are no seconds.") from error


def _require_rows(rows: Sequence[object], path: Path) -> None:
    if not rows:
        raise UsageError(f"trace file {str(path)!r} holds no request.")


def _from_first(times_s: Sequence[float], path: Path) -> tuple[float, ...]:
    """Return seconds from the first request. Raises UsageError where they are out of order."""
    if list(times_s) != sorted(times_s):
        raise UsageError(f"{path}: requests are out of order. Sort the trace by its timestamps.")
    return tuple(round(time_s - times_s[0], 6) for time_s in times_s)
