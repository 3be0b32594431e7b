"""The quantities that only servers have: rows of the table in `core.metrics.quantities`."""

from __future__ import annotations

from pytest_llmperf.core.verdicts.estimate import Direction

Row = tuple[str, str, Direction, str, str, float]
"""Name, unit, direction, formula id, summary, and the tolerance of exact comparisons."""

SERVER_ROWS: tuple[Row, ...] = (
    (
        "startup.process",
        "s",
        "lower",
        "startup_process/1",
        "server: start of its command to healthy, without weights and compilation; one observation",
        0.1,
    ),
    (
        "startup.weights",
        "s",
        "lower",
        "startup_weights/1",
        "server: reading the weights, as its log says; the slowest rank; one observation",
        0.1,
    ),
    (
        "startup.compile",
        "s",
        "lower",
        "startup_compile/1",
        "server: compiling and capturing graphs, as its log says; one observation",
        0.1,
    ),
    (
        "startup.warm",
        "s",
        "lower",
        "startup_warm/1",
        "server: healthy to first answer; one observation",
        0.1,
    ),
    (
        "memory.kv_tokens",
        "tok",
        "higher",
        "kv_tokens/1",
        "server: tokens that its KV cache holds, as it says",
        0.0,
    ),
    (
        "preemptions",
        "",
        "lower",
        "preemptions/1",
        "server: requests put back because the KV cache was full, as its metrics count them",
        0.0,
    ),
    (
        "unpreempted",
        "1",
        "higher",
        "unpreempted/1",
        "server: 1 - preemptions / requests sent; it has a ratio where no request was preempted",
        0.0,
    ),
    (
        "speculative_acceptance",
        "1",
        "higher",
        "speculative_acceptance/1",
        "server: accepted tokens / proposed tokens, as its metrics count them",
        0.0,
    ),
    (
        "prefix_hits",
        "1",
        "higher",
        "prefix_hits/1",
        "server: prompt tokens from the prefix cache / prompt tokens, as its metrics count them",
        0.0,
    ),
)
