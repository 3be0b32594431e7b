"""Peak of this process's resident memory over a region, and how much it grew.

They come from Linux's own high-water mark where that can be reset.
"""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import psutil

_RESET_HIGH_WATER_MARK = "5"
SAMPLING_INTERVAL_S = 0.002


class RssRegion(Protocol):
    """A context manager; `peak_bytes` and `growth_bytes` are valid after leaving it.

    The peak holds all that the process has, the weights included; the growth is the peak minus what
    it had before. `source` names how they were measured.
    """

    peak_bytes: int
    growth_bytes: int
    source: str

    def __enter__(self) -> Self:
        """Start watching."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Stop watching and set both."""


def rss_region() -> RssRegion:
    """Return the most exact region this machine offers.

    That is the kernel's high-water mark, else a sampling thread.
    """
    return HighWaterRegion() if can_reset_high_water_mark() else SampledRegion()


def can_reset_high_water_mark() -> bool:
    """Whether /proc/self/clear_refs may be written here and /proc/self/status shows VmHWM."""
    try:
        _reset_high_water_mark()
        _status_bytes("VmHWM")
    except (OSError, ValueError):
        return False
    return True


def rss_bytes() -> int:
    """Return the resident bytes of this process now."""
    return int(psutil.Process().memory_info().rss)


def return_free_heap() -> bool:
    """Give pages that were freed back to the system (glibc).

    A region that uses them again then shows as growth.
    """
    libc = ctypes.CDLL(None)
    return bool(libc.malloc_trim(0)) if hasattr(libc, "malloc_trim") else False


class HighWaterRegion:
    """VmHWM after the region, and less VmRSS before it. Exact: the kernel follows every page."""

    source = "VmHWM"

    def __init__(self) -> None:
        self.peak_bytes = self.growth_bytes = 0
        self._before = 0

    def __enter__(self) -> Self:
        return_free_heap()
        _reset_high_water_mark()
        self._before = _status_bytes("VmRSS")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.peak_bytes = _status_bytes("VmHWM")
        self.growth_bytes = max(0, self.peak_bytes - self._before)


class SampledRegion:
    """The largest of RSS samples 2 ms apart, and less RSS before.

    Misses peaks shorter than that; its source says so.
    """

    source = f"RSS sampled every {SAMPLING_INTERVAL_S * 1e3:g} ms"

    def __init__(self) -> None:
        self.peak_bytes = self.growth_bytes = 0
        self._before = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="rss-sampler")

    def __enter__(self) -> Self:
        return_free_heap()
        self._before = self.peak_bytes = rss_bytes()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.peak_bytes = max(self.peak_bytes, rss_bytes())
        self.growth_bytes = max(0, self.peak_bytes - self._before)

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLING_INTERVAL_S):
            self.peak_bytes = max(self.peak_bytes, rss_bytes())


def _reset_high_water_mark() -> None:
    Path("/proc/self/clear_refs").write_text(_RESET_HIGH_WATER_MARK, encoding="ascii")


def _status_bytes(field: str) -> int:
    """Return a size of /proc/self/status in bytes. Raises ValueError for a missing field."""
    text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise ValueError(f"{field} is not in /proc/self/status")
