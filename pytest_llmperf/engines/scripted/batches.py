"""When the tokens of a scripted engine's many requests come, in static and continuous batches."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from pytest_llmperf.workloads import Batch


@dataclass(frozen=True)
class Scheduled:
    """When each request's tokens come, in order, in seconds after the start.

    `computed` are the positions that were computed for all requests.
    """

    times_s: tuple[tuple[float, ...], ...]
    computed: int


def prompt_lengths(work: Batch) -> tuple[int, ...]:
    """Return the prompt tokens of each request; a text has one a character."""
    texts = work.prompts.texts
    return work.prompt_lengths or tuple(len(texts[i % len(texts)]) for i in range(work.count))


def schedule(work: Batch, ttft_s: float, tpot_s: float, *, continuous: bool) -> Scheduled:
    """Return when tokens come if `work.batch` sequences run at a time.

    Every prefill takes `ttft_s` and every step `tpot_s`, whatever else runs.
    """
    if continuous:
        starts_s, computed = _when_there_is_room(work, ttft_s, tpot_s), _needed(work)
    else:
        starts_s, computed = _batch_by_batch(work, ttft_s, tpot_s), _padded(work)
    times_s = tuple(
        tuple(start_s + ttft_s + index * tpot_s for index in range(n_tokens))
        for start_s, n_tokens in zip(starts_s, work.output_lengths, strict=True)
    )
    return Scheduled(times_s, computed)


def _batch_by_batch(work: Batch, ttft_s: float, tpot_s: float) -> list[float]:
    """A batch starts when the longest sequence of the one before is done."""
    starts_s: list[float] = []
    start_s = 0.0
    for first in range(0, work.count, work.batch):
        lengths = work.output_lengths[first : first + work.batch]
        starts_s += [start_s] * len(lengths)
        start_s += ttft_s + (max(lengths) - 1) * tpot_s
    return starts_s


def _when_there_is_room(work: Batch, ttft_s: float, tpot_s: float) -> list[float]:
    """A request starts when the first of the running ones is done."""
    free_s = [0.0] * work.batch
    starts_s = []
    for n_tokens in work.output_lengths:
        start_s = heapq.heappop(free_s)
        heapq.heappush(free_s, start_s + ttft_s + (n_tokens - 1) * tpot_s)
        starts_s.append(start_s)
    return starts_s


def _needed(work: Batch) -> int:
    return sum(prompt_lengths(work)) + sum(work.output_lengths) - work.count


def _padded(work: Batch) -> int:
    """Each row of a batch is as wide as its longest prompt and goes on for its longest output."""
    total = 0
    for first in range(0, work.count, work.batch):
        rows = slice(first, first + work.batch)
        prompts, outputs = prompt_lengths(work)[rows], work.output_lengths[rows]
        total += len(prompts) * (max(prompts) + max(outputs) - 1)
    return total
