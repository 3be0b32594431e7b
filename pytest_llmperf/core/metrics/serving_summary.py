"""How traffic on a server went, beside its quantities. Plain values."""

from __future__ import annotations

from msgspec import Struct


class ServingSummary(Struct, frozen=True, kw_only=True):
    """Counts of the requests that count, the client's lateness, and the server's own metrics.

    Requests cut from the ramp-up are `n_cut`, and in nothing else.

    `offered_rate` is requests due a second. `failures` are failed requests by reason. `attainment`
    is the share of all requests that met every SLO (None without one). `lateness_p99_s` is sending
    minus due, `loop_lag_p99_s` how late the client's timers rang, `busy_share` its CPU time over
    wall time. `saturated` says why there was no steady state, or is empty. `server` is what its
    metrics said during the run: `preemptions`, `prefix_hit_share`, `kv_use_max`, `running_max`,
    `waiting_max`. `generator` is the program of another project that sent the requests, or empty.
    `ttft_by_turn` are the medians (s) of the TTFT of each turn of conversations, the first first,
    of so many `requests_by_turn`; empty of other traffic.
    """

    offered_rate: float = 0.0
    failures: dict[str, int] = {}
    attainment: float | None = None
    lateness_p99_s: float = 0.0
    loop_lag_p99_s: float = 0.0
    busy_share: float = 0.0
    in_flight_mean: float = 0.0
    in_flight_max: int = 0
    saturated: str = ""
    n_cut: int = 0
    server: dict[str, float] = {}
    generator: str = ""
    ttft_by_turn: tuple[float, ...] = ()
    requests_by_turn: tuple[int, ...] = ()

    def notes(self) -> list[str]:
        """Return what a reader of the numbers must know, one sentence each."""
        notes = [self.saturated, self._generator_note(), self._failures_note()]
        return [note for note in (*notes, self._preemptions_note()) if note]

    def _generator_note(self) -> str:
        return f"its requests were sent by {self.generator}" if self.generator else ""

    def _failures_note(self) -> str:
        if not self.failures:
            return ""
        most_frequent_first = sorted(self.failures.items(), key=lambda failure: -failure[1])
        reasons = "; ".join(f"{reason} ({n} times)" for reason, n in most_frequent_first)
        return f"{sum(self.failures.values())} requests failed: {reasons}"

    def _preemptions_note(self) -> str:
        n_preempted = self.server.get("preemptions", 0)
        if n_preempted <= 0:
            return ""
        return (
            f"the server preempted {n_preempted:.0f} requests: its KV cache was full, "
            "and they were computed again"
        )
