"""A clock that moves only when it is told to."""

from __future__ import annotations


class VirtualClock:
    """Stands in for `time` in tests.

    `perf_counter_ns`, `monotonic` and `sleep` share one time that nothing else moves.
    """

    def __init__(self, start_ns: int = 0) -> None:
        self.now_ns = start_ns

    def perf_counter_ns(self) -> int:
        """Return the virtual time in ns."""
        return self.now_ns

    def monotonic(self) -> float:
        """Return the virtual time in s."""
        return self.now_ns / 1e9

    def advance_ns(self, duration_ns: int) -> int:
        """Let `duration_ns` pass; returns the new time.

        Time never goes back: a negative duration is a ValueError.
        """
        if duration_ns < 0:
            raise ValueError(f"a clock cannot go back by {-duration_ns} ns")
        self.now_ns += duration_ns
        return self.now_ns

    def sleep(self, duration_s: float) -> None:
        """Let `duration_s` pass without waiting."""
        self.advance_ns(round(duration_s * 1e9))
