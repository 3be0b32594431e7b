"""Memory that is a file's: pages are read when they are used, and given up when memory is short."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_NO_FILE = "0"


def mapped_spans(maps: Path = _MAPS) -> list[tuple[int, int]]:
    """Return start and end of this process's memory that files are mapped to, in order.

    It is empty where the system does not tell.
    """
    try:
        lines = maps.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    fields = (line.split() for line in lines)
    return sorted(_span(field[0]) for field in fields if field[4] != _NO_FILE)


def is_in(spans: list[tuple[int, int]], address: int) -> bool:
    """Whether an address is in one of the spans, which are in order and apart."""
    index = bisect_right(spans, (address, float("inf"))) - 1
    return index >= 0 and spans[index][0] <= address < spans[index][1]


def _span(text: str) -> tuple[int, int]:
    start, _, end = text.partition("-")
    return int(start, 16), int(end, 16)
