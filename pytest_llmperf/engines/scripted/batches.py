"""A scripted engine's many requests: when each one's tokens come, in static batches and in continuous ones. Pure."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from pytest_llmperf.workloads import Batch


@dataclass(frozen=True)
class Scheduled:
    """Seconds after the start at which each request's tokens come, in order, and the positions that were computed for all."""

    times_s: tuple[tuple[float, ...], ...]
    computed: int


def prompt_lengths(work: Batch) -> tuple[int, ...]:
    """Prompt tokens of each request; a text has one a character."""
    texts = work.prompts.texts
    return work.prompt_lengths or tuple(len(texts[i % len(texts)]) for i in range(work.count))


def schedule(work: Batch, ttft_s: float, tpot_s: float, *, continuous: bool) -> Scheduled:
    """Every prefill takes `ttft_s` and every step `tpot_s`, whatever else runs.

    `work.batch` sequences run at a time.
    """
    starts_s = (
        _when_there_is_room(work, ttft_s, tpot_s)
        if continuous
        else _batch_by_batch(work, ttft_s, tpot_s)
    )
    times = tuple(
        tuple(start + ttft_s + i * tpot_s for i in range(n))
        for start, n in zip(starts_s, work.output_lengths, strict=True)
    )
    return Scheduled(times, _needed(work) if continuous else _padded(work))


def _batch_by_batch(work: Batch, ttft_s: float, tpot_s: float) -> list[float]:
    """A batch starts when the longest sequence of the one before is done."""
    starts, now = [], 0.0
    for first in range(0, work.count, work.batch):
        lengths = work.output_lengths[first : first + work.batch]
        starts += [now] * len(lengths)
        now += ttft_s + (max(lengths) - 1) * tpot_s
    return starts


def _when_there_is_room(work: Batch, ttft_s: float, tpot_s: float) -> list[float]:
    """A request starts when the first of the running ones is done."""
    free = [0.0] * work.batch
    starts = []
    for n in work.output_lengths:
        starts.append(heapq.heappop(free))
        heapq.heappush(free, starts[-1] + ttft_s + (n - 1) * tpot_s)
    return starts


def _needed(work: Batch) -> int:
    return sum(prompt_lengths(work)) + sum(work.output_lengths) - work.count


def _padded(work: Batch) -> int:
    """Each row of a batch is as wide as its longest prompt and goes on for its longest output."""
    total = 0
    for first in range(0, work.count, work.batch):
        prompts, outputs = (
            prompt_lengths(work)[first : first + work.batch],
            work.output_lengths[first : first + work.batch],
        )
        total += len(prompts) * (max(prompts) + max(outputs) - 1)
    return total
