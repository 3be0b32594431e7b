"""Recorded traffic: when requests came, and how long they were. Values only."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from msgspec import Struct

from pytest_llmperf.core.misspelt import SuggestingMeta
from pytest_llmperf.errors import UsageError
from pytest_llmperf.workloads import public_traces
from pytest_llmperf.workloads.checks import (
    content_hash,
    is_count,
    is_number,
    json_object,
    read_lines,
)

_EXPECTED = (
    "Expected one object a line, such as "
    '{"timestamp": 0.25, "input_length": 120, "output_length": 64}.'
)


class Traffic(Struct, metaclass=SuggestingMeta, frozen=True, kw_only=True):
    """A recorded load: when each request came (seconds, ascending), and its lengths in tokens.

    Lengths that are not known are empty. `blocks` are the hashes of each prompt's blocks of
    `block_tokens` tokens: prompts share the blocks of equal hashes from their start.
    """

    name: str
    timestamps_s: tuple[float, ...]
    prompt_tokens: tuple[int, ...] = ()
    output_tokens: tuple[int, ...] = ()
    blocks: tuple[tuple[int, ...], ...] = ()
    block_tokens: int = public_traces.MOONCAKE_BLOCK

    @classmethod
    def from_mooncake(cls, path: str | Path) -> Traffic:
        """Read a trace of Mooncake's, with the blocks that its prompts share.

        Such a load wants `Serve(prefix_cache=True)`. Raises UsageError, with the line.
        """
        return cls._of(Path(path), public_traces.mooncake)

    @classmethod
    def from_azure(cls, path: str | Path) -> Traffic:
        """Read a CSV of Azure's LLM inference traces. Raises UsageError, with the row."""
        return cls._of(Path(path), public_traces.azure)

    @classmethod
    def from_burstgpt(cls, path: str | Path) -> Traffic:
        """Read a CSV of BurstGPT, without the requests that failed there. Raises UsageError."""
        return cls._of(Path(path), public_traces.burstgpt)

    @classmethod
    def _of(cls, path: Path, read: Callable[[Path], public_traces.Rows]) -> Traffic:
        rows = read(path)
        return cls(
            name=path.name,
            timestamps_s=rows.times_s,
            prompt_tokens=rows.prompt_tokens,
            output_tokens=rows.output_tokens,
            blocks=rows.blocks,
        )

    @classmethod
    def from_jsonl(cls, path: str | Path, *, unit_s: float = 1.0) -> Traffic:
        """Read one JSON object a line, with "timestamp" and the lengths where they are known.

        "input_length" and "output_length" are in tokens, on every line or on none. `unit_s` are the
        seconds of a timestamp's unit: 0.001 for milliseconds, as in Mooncake's traces.

        Raises:
            UsageError: no such file, no requests, or a line that is not such an object (named by
                its number), or out of order.
        """
        path = Path(path)
        lines = filter(str.strip, read_lines(path, "trace file"))
        rows = [_row(line, f"{path}:{i}") for i, line in enumerate(lines, start=1)]
        if not rows:
            raise UsageError(f"trace file {str(path)!r} holds no request. {_EXPECTED}")
        return cls(
            name=path.name,
            timestamps_s=_ascending([row["timestamp"] * unit_s for row in rows], str(path)),
            prompt_tokens=_lengths(rows, "input_length", str(path)),
            output_tokens=_lengths(rows, "output_length", str(path)),
        )

    @property
    def content_hash(self) -> str:
        """SHA-256 (16 hex digits) of times and lengths; never the file's name."""
        content = (self.timestamps_s, self.prompt_tokens, self.output_tokens)
        return content_hash((*content, self.blocks, self.block_tokens) if self.blocks else content)


def _row(line: str, position: str) -> dict[str, Any]:
    row = json_object(line, position, _EXPECTED)
    if not is_number(row.get("timestamp")):
        raise UsageError(f"{position}: no number 'timestamp' in {line[:80]!r}. {_EXPECTED}")
    return row


def _ascending(timestamps_s: list[float], source: str) -> tuple[float, ...]:
    for i, (before, after) in enumerate(pairwise(timestamps_s), start=2):
        if after < before:
            raise UsageError(
                f"{source}: request {i} comes before the one above it. "
                "Sort the trace by its timestamps."
            )
    return tuple(timestamps_s)


def _lengths(rows: list[dict[str, Any]], key: str, source: str) -> tuple[int, ...]:
    lengths = tuple(row[key] for row in rows if key in row)
    if lengths and (len(lengths) < len(rows) or not all(map(is_count, lengths))):
        raise UsageError(
            f"trace file {source!r}: {key!r} must be a whole number of at least 1 on every line, "
            "or on none."
        )
    return lengths
