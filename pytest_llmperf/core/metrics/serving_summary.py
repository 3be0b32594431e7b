"""How a load on a server went, beside its quantities: counts, the client's lateness, what the server said. Plain values."""

from __future__ import annotations

from msgspec import Struct


class ServingSummary(Struct, frozen=True, kw_only=True):
    """Of the requests that count (those cut from the ramp-up are `n_cut`).

    `offered_rate` is requests due a second. `failures` are failed requests by reason. `attainment`
    is the share of all requests that met every SLO (None without one). `lateness_p99_s` is sending
    minus due, `loop_lag_p99_s` how late the client's timers rang, `busy_share` its CPU time over
    wall time. `saturated` says why there was no steady state, or is empty. `server` is what its
    metrics said during the run: `preemptions`, `prefix_hit_share`, `kv_use_max`, `running_max`,
    `waiting_max`. `generator` is the program of another project that sent the requests, or empty.
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

    def notes(self) -> list[str]:
        """What a reader of the numbers must know, one sentence each."""
        said = [self.saturated] if self.saturated else []
        if self.generator:
            said.append(f"its requests were sent by {self.generator}")
        if self.failures:
            reasons = "; ".join(
                f"{reason} ({n} times)"
                for reason, n in sorted(self.failures.items(), key=lambda f: -f[1])
            )
            said.append(f"{sum(self.failures.values())} requests failed: {reasons}")
        if self.server.get("preemptions", 0) > 0:
            said.append(
                f"the server preempted {self.server['preemptions']:.0f} requests: its KV cache was full, and they were computed "
                "again",
            )
        return said
