"""The table of quantities: one row each.

A changed definition takes a new formula id, so that old records stay readable.
"""

from __future__ import annotations

from msgspec import Struct

from pytest_llmperf.core.metrics.servers.rows import SERVER_ROWS
from pytest_llmperf.core.verdicts.estimate import Direction

CPU_GROWTH = "peak/1"
"""Definition of `memory.peak` in 0.1: on a GPU it is today's, on a CPU it was the growth alone."""

STATISTICS = ("p50", "p90", "p95", "p99", "mean", "max")


class Metric(Struct, frozen=True, kw_only=True):
    """A quantity.

    `statistics` are its parts where it is a distribution; `tolerance` is the relative one of exact
    comparisons.
    """

    name: str
    unit: str
    direction: Direction
    formula: str
    summary: str
    statistics: tuple[str, ...] = ()
    tolerance: float = 0.0


def _row(
    name: str,
    unit: str,
    direction: Direction,
    formula: str,
    summary: str,
    *,
    tolerance: float = 0.0,
) -> Metric:
    return Metric(
        name=name,
        unit=unit,
        direction=direction,
        formula=formula,
        summary=summary,
        tolerance=tolerance,
    )


def _times(name: str, summary: str) -> Metric:
    return Metric(
        name=name,
        unit="s",
        direction="lower",
        formula=f"{name}/1",
        summary=summary,
        statistics=STATISTICS,
    )


_SPEED = (
    _row(
        "throughput",
        "tok/s",
        "higher",
        "output_throughput/1",
        "output tokens of successful requests / (first send to last completion)",
    ),
    _row(
        "total_throughput",
        "tok/s",
        "higher",
        "total_throughput/1",
        "prompt and output tokens of successful requests / (first send to last completion)",
    ),
    _row(
        "request_throughput",
        "req/s",
        "higher",
        "request_throughput/1",
        "successful requests / (first send to last completion)",
    ),
    _row(
        "padding",
        "1",
        "lower",
        "padding/1",
        "Batch: share of the positions that went through the model which were padding, "
        "or came after a request's last token",
    ),
    _row(
        "decode_throughput",
        "tok/s",
        "higher",
        "decode_throughput/1",
        "output tokens after each first / (first token to last token)",
    ),
    _row(
        "prefill_throughput",
        "tok/s",
        "higher",
        "prefill_throughput/1",
        "prompt tokens / (call to first token)",
    ),
    _times("ttft", "request due (offline: call) to first generated token"),
    _times("tpot", "per request, (end-to-end - TTFT) / (output tokens - 1)"),
    _times(
        "itl",
        "pooled gaps between consecutive tokens; a message of k tokens is k gaps of 1/k; "
        "lock-step requests count once",
    ),
    _times("latency", "request due to last token"),
    _row(
        "acceptance_length",
        "tok",
        "higher",
        "acceptance_length/1",
        "assisted decoding: output tokens of a sequence / forward passes of the measured "
        "model, the prompt's included",
    ),
    _row("goodput", "req/s", "higher", "goodput/2", "requests that meet every SLO / wall time"),
    _row(
        "cpu_time_per_token",
        "s",
        "lower",
        "cpu_time_per_token/1",
        "on a CPU: user and system time of the processes that did the work, of all their threads "
        "and children / output tokens",
    ),
    _row(
        "speed_up",
        "x",
        "higher",
        "speed_up/1",
        "throughput / that of the same model on fewer devices, measured in turn",
    ),
    _row("efficiency", "1", "higher", "efficiency/1", "speed-up / how many times the devices"),
    _row(
        "collectives",
        "1",
        "lower",
        "collectives/1",
        "share of a run's wall time in which a device does nothing but communicate; mean "
        "of the ranks, in a pass of its own",
    ),
)
_USE = (
    _row(
        "mbu",
        "1",
        "higher",
        "mbu/3",
        "(bytes of the weights that a decode step uses, of the KV that it sees and of its states) "
        "/ time of a step / measured bandwidth",
    ),
    _row(
        "mfu",
        "1",
        "higher",
        "mfu/3",
        "model FLOPs of the decode step (of a Prefill: of the prompt) / time / measured "
        "dense matmul rate",
    ),
    _row(
        "prefill_mfu",
        "1",
        "higher",
        "prefill_mfu/3",
        "model FLOPs of the prompt, the output head at its last position / TTFT / measured dense "
        "matmul rate",
    ),
)
# What is asked of the allocator or the driver moves by pages and blocks from run to run; what is
# counted does not.
_MEMORY = (
    _row(
        "memory.weights",
        "B",
        "lower",
        "weights/1",
        "bytes of parameters and buffers as they lie on the device",
    ),
    _row(
        "memory.peak",
        "B",
        "lower",
        "peak/2",
        "peak allocated over the measured region, weights included; on a CPU the high-water mark "
        "of the process that holds the model",
        tolerance=0.01,
    ),
    _row(
        "memory.growth",
        "B",
        "lower",
        "growth/1",
        "what the peak of the measured region is above what was there before it",
        tolerance=0.01,
    ),
    _row(
        "memory.reserved",
        "B",
        "lower",
        "reserved/1",
        "peak reserved by the allocator over the measured region",
        tolerance=0.01,
    ),
    _row(
        "memory.process",
        "B",
        "lower",
        "process/1",
        "the driver's figure for the worker's pid",
        tolerance=0.01,
    ),
    _row(
        "memory.device",
        "B",
        "lower",
        "device/1",
        "the driver's figure for the whole device",
        tolerance=0.01,
    ),
    _row(
        "memory.kv_cache", "B", "lower", "kv_cache/1", "bytes of the KV cache that the engine holds"
    ),
    _row(
        "memory.imbalance",
        "x",
        "lower",
        "imbalance/1",
        "largest rank / mean rank, of the peak where it is known, else of the weights",
    ),
)
_OTHER = (
    _row(
        "energy.per_token",
        "J",
        "lower",
        "energy_per_token/1",
        "energy over at least 3 s / output tokens; one reading",
        tolerance=0.05,
    ),
    _row(
        "load_time",
        "s",
        "lower",
        "load_time/1",
        "from the request to load until the model answers; one observation",
        tolerance=0.1,
    ),
)
_SERVER = tuple(
    _row(name, unit, direction, formula, summary, tolerance=tolerance)
    for name, unit, direction, formula, summary, tolerance in SERVER_ROWS
)
_AGREEMENT = (
    _row(
        "agreement.top1",
        "1",
        "higher",
        "top1/2",
        "positions whose argmax is the reference's, teacher-forced through the measured loop",
    ),
    _row(
        "agreement.top5",
        "1",
        "higher",
        "top5/2",
        "positions where the reference's token is among the candidate's five",
    ),
    _row("agreement.kl", "nats", "lower", "kl/2", "mean KL(reference || candidate)"),
    _row(
        "agreement.perplexity_ratio",
        "x",
        "lower",
        "perplexity_ratio/2",
        "candidate's perplexity of the reference's tokens / the reference's",
    ),
    _row(
        "agreement.logprob_mae",
        "nats",
        "lower",
        "logprob_mae/2",
        "mean |difference| of the reference token's log-probability",
    ),
    _row(
        "agreement.prefix_match",
        "1",
        "higher",
        "prefix_match/2",
        "share of free-running greedy tokens before the first divergence",
    ),
    _row(
        "agreement.sqnr_db",
        "dB",
        "higher",
        "sqnr/2",
        "signal of the reference's logits / squared error of the candidate's",
    ),
    _row(
        "agreement.logit_correlation",
        "",
        "higher",
        "logit_correlation/2",
        "correlation of the two models' logits, means removed position by position",
    ),
    _row(
        "agreement.decode_kl",
        "nats",
        "lower",
        "decode_kl/1",
        "mean KL(candidate without a cache || through its loop)",
    ),
    _row(
        "agreement.end_mae",
        "nats",
        "lower",
        "end_mae/1",
        "mean |difference| of the end of sequence's log-probability",
    ),
    _row(
        "agreement.containment",
        "1",
        "higher",
        "containment/2",
        "prompts whose first divergence is inside both top k, or after the horizon",
    ),
)
_TASK = (
    _row(
        "task.accuracy", "1", "higher", "accuracy/1", "items of a task that are answered correctly"
    ),
    _row(
        "task.recovery", "1", "higher", "recovery/1", "candidate's task accuracy / the reference's"
    ),
)

TABLE: dict[str, Metric] = {
    row.name: row for row in (*_SPEED, *_USE, *_MEMORY, *_OTHER, *_SERVER, *_AGREEMENT, *_TASK)
}
ALIASES = {"output_throughput": "throughput"}


def leaves() -> tuple[tuple[str, Metric], ...]:
    """Return every name of a run that is one number ('ttft.p50', 'memory.peak'), with its row.

    Agreement and tasks are not of a run.
    """
    rows = [row for row in TABLE.values() if not row.name.startswith(("agreement.", "task."))]
    return tuple((name, row) for row in rows for name in _names(row))


def _names(row: Metric) -> list[str]:
    """Return the names of a row's numbers: one a statistic where it is a distribution."""
    if not row.statistics:
        return [row.name]
    return [f"{row.name}.{statistic}" for statistic in row.statistics]
