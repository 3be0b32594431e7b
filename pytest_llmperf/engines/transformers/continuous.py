"""transformers' own continuous batching: `init_continuous_batching`, sized by the work.

Its loop runs in a thread of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from importlib import metadata
from typing import Any

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.trace import TokenEvent
from pytest_llmperf.engines.outputs.decoding import CacheSeen, Decoded
from pytest_llmperf.engines.outputs.inputs import TokenBatch
from pytest_llmperf.engines.outputs.requests import BatchRequests
from pytest_llmperf.engines.transformers.batches import Answered
from pytest_llmperf.engines.transformers.generate import require_tokens
from pytest_llmperf.engines.transformers.observed.in_flight import InFlight
from pytest_llmperf.errors import InvalidRun, UsageError

PAGE_TOKENS = 32
"""Small beside the prompts, so that a sequence holds little more than it uses.

The default of 256 is made for flash attention.
"""
CPU_BATCH_TOKENS = 512
"""Positions of one step on a CPU, whose attention mask is written out.

Prompts and running sequences share them.
"""
PATIENCE_S = 1.0


def require_continuous(plan: LoadPlan) -> None:
    """Raise UsageError where the installed transformers sizes its continuous batches otherwise."""
    known = {field.name for field in fields(ContinuousBatchingConfig)}
    if plan.batching == "continuous" and not {"page_size", "auto_switch_to_flash"} <= known:
        raise UsageError(
            "strategy part 'continuous' needs transformers 5.19 or newer, "
            f"{metadata.version('transformers')} is installed. Install a newer one, "
            "or take engine 'vllm', whose batches are continuous anyway.",
        )


@dataclass(frozen=True)
class Size:
    """What the cache is sized for: pages of all requests together, and the longest request."""

    pages: int
    longest_prompt: int
    longest_output: int
    requests: int


class ForcedRequests:
    """Puts given tokens in place of those that a manager chooses, and notes what it chose from.

    `tokens` [rows, n] follow the prompts `rows`. Equal prompts have equal tokens.
    """

    def __init__(self, rows: Sequence[Sequence[int]], tokens: Tensor) -> None:
        self._indices = {tuple(row): index for index, row in enumerate(rows)}
        self._order = [self._indices[tuple(row)] for row in rows]
        self._tokens = tokens.cpu()
        self._logits: dict[tuple[int, int], Tensor] = {}

    def logits(self) -> Tensor:
        """Return the [rows, n, vocab] float32 logits that were noted."""
        places = range(self._tokens.shape[1])
        return torch.stack(
            [torch.stack([self._logits[row, place] for place in places]) for row in self._order]
        )

    @contextmanager
    def within(self, processor: Any) -> Iterator[None]:
        """Stand behind the choice of tokens of a manager's batch processor, which is not running.

        Its sampling is the one place that sees all logits of a step.
        """
        runner = processor.model_runner
        sample = runner._sample  # noqa: SLF001

        def forced_sample(scores: Tensor, output_ids: Tensor) -> None:
            sample(scores, output_ids)
            states = processor.inputs_and_outputs.requests_in_batch
            chosen = [request.state for request in states if request.has_new_token]
            for column, state in enumerate(chosen):
                row, place = self._indices[tuple(state.initial_tokens)], state.generated_len()
                self._logits[row, place] = scores[0, column].to("cpu", torch.float32, copy=True)
                output_ids[0, column] = self._tokens[row, place]

        runner._sample = forced_sample  # noqa: SLF001
        try:
            yield
        finally:
            del runner._sample  # noqa: SLF001


class ContinuousLoop:
    """The decode loop of continuous batching; see DecodeLoop.

    `answer` takes requests of different lengths. The manager is reused while it fits the work.
    `in_flight` tells how many of the last run's requests ran at once.
    """

    def __init__(self, model: Any, pad: int) -> None:
        self.name = "generate_batch"
        self._model = model
        self._pad = pad
        self._size: Size | None = None
        self.in_flight = InFlight.of(())

    def decode(self, batch: TokenBatch, new_tokens: int) -> Decoded:
        """Decode the rows of a padded batch without their padding.

        Times are those of the first request's tokens.
        """
        rows = _without_padding(batch)
        answered = self.answer(BatchRequests(rows, (new_tokens,) * len(rows)))
        times = tuple(event.t_ns for event in answered.events[0])
        return Decoded(torch.tensor(answered.tokens), answered.start_ns, times, answered.cache)

    @property
    def unforced(self) -> str:
        """See ForcesTokens: a recorded graph chooses its tokens inside."""
        device = self._model.device.type
        return "" if device == "cpu" else f"continuous batching chooses its tokens on {device}"

    def force(self, batch: TokenBatch, tokens: Tensor) -> Tensor:
        """Answer the rows together, with given tokens; see ForcesTokens."""
        rows = _without_padding(batch)
        forced = ForcedRequests(rows, tokens)
        answered = self.answer(BatchRequests(rows, (tokens.shape[1],) * len(rows)), forced)
        require_tokens(torch.tensor(answered.tokens), tokens)
        return forced.logits()

    def answer(self, requests: BatchRequests, forced: ForcedRequests | None = None) -> Answered:
        """Answer all requests; they are handed over before the first result is taken.

        `forced` puts given tokens in place of those that are chosen. Raises InvalidRun where a
        request failed, or got another number of tokens than it asked for.
        """
        with self._running(_size(requests), forced) as manager:
            start_ns = time.perf_counter_ns()
            names = [
                manager.add_request(row, max_new_tokens=n, record_timestamps=True, eos_token_id=-1)
                for row, n in zip(requests.rows, requests.new_tokens, strict=True)
            ]
            outputs = _results(manager, len(names))
            cache = cache_seen(manager.batch_processor.cache)
        ordered = [outputs[name] for name in names]
        require_complete(ordered, requests.new_tokens)
        tokens = [list(output.generated_tokens) for output in ordered]
        events = [_events(output) for output in ordered]
        self.in_flight = InFlight.of(events)
        return Answered(start_ns, tokens, events, cache)

    @contextmanager
    def _running(self, size: Size, forced: ForcedRequests | None) -> Iterator[Any]:
        """Run the manager's thread, outside the timed region.

        The manager is made anew where the work has another size.
        """
        if size != self._size:
            self._model.destroy_cached_continuous_batching_manager()
            self._size = size
        manager = self._model.init_continuous_batching(
            generation_config=_greedy(self._pad),
            continuous_batching_config=_config(size, self._model.device),
        )
        if not manager.warmed_up:
            manager.warmup()
        with nullcontext() if forced is None else forced.within(manager.batch_processor):
            manager.start()
            try:
                yield manager
            finally:
                manager.stop(block=True, keep_for_next_session=True)


def _greedy(pad: int) -> GenerationConfig:
    return GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, eos_token_id=-1, pad_token_id=pad
    )


def cache_seen(cache: Any) -> CacheSeen:
    """Describe the paged cache by its own tensor."""
    return CacheSeen(
        kind=type(cache).__name__,
        bytes=int(cache.cache_tensor.nbytes),
        bytes_per_position=_bytes_per_position(cache),
        layers=len(cache.layer_to_allocator),
    )


def _bytes_per_position(cache: Any) -> int:
    if len(cache.cache_allocators) > 1:
        return int(cache.bytes_per_sector // cache.tokens_per_sector)
    positions = cache.num_blocks * PAGE_TOKENS
    return int(cache.num_sectors * cache.bytes_per_sector // positions)


def _without_padding(batch: TokenBatch) -> list[list[int]]:
    rows = batch.ids.tolist()
    return [row[len(row) - n :] for row, n in zip(rows, batch.lengths, strict=True)]


def _events(output: Any) -> tuple[TokenEvent, ...]:
    return tuple(TokenEvent(round(seconds * 1e9)) for seconds in output.timestamps)


def _size(requests: BatchRequests) -> Size:
    lengths = [len(row) + n for row, n in zip(requests.rows, requests.new_tokens, strict=True)]
    pages = sum(map(_pages, lengths))
    return Size(pages, max(map(len, requests.rows)), max(requests.new_tokens), len(lengths))


def _pages(length: int) -> int:
    return -(-length // PAGE_TOKENS)


def _config(size: Size, device: torch.device) -> ContinuousBatchingConfig:
    """Make room for all requests; prompts share no pages, which would be a prefix cache."""
    batch_tokens = max(CPU_BATCH_TOKENS, size.longest_prompt) if device.type == "cpu" else None
    return ContinuousBatchingConfig(
        page_size=PAGE_TOKENS,
        num_blocks=size.pages + size.requests,
        max_batch_tokens=batch_tokens,
        max_requests_per_batch=size.requests,
        allow_block_sharing=False,
        auto_switch_to_flash=False,  # the attention that the plan says
    )


def _results(manager: Any, count: int) -> dict[str, Any]:
    """Return finished outputs by name.

    Raises InvalidRun if the thread that makes them has ended.
    """
    outputs: dict[str, Any] = {}
    while len(outputs) < count:
        output = manager.get_result(timeout=PATIENCE_S)
        if output is not None and output.is_finished():
            outputs[output.request_id] = output
        elif output is None and not manager.is_running():
            raise InvalidRun(
                f"continuous batching ended after {len(outputs)} of {count} requests. "
                "The worker's log says why."
            )
    return outputs


def require_complete(outputs: Sequence[Any], new_tokens: Sequence[int]) -> None:
    """Raise InvalidRun unless each request got its tokens, and as many as it asked for."""
    for i, (output, n) in enumerate(zip(outputs, new_tokens, strict=True)):
        if output.error is not None:
            raise InvalidRun(f"request {i} of a continuous batch failed: {output.error}")
        tokens, timestamps = len(output.generated_tokens), len(output.timestamps)
        if tokens != n or timestamps != n:
            raise InvalidRun(
                f"request {i} asked for exactly {n} new tokens, got {tokens} tokens and "
                f"{timestamps} timestamps. A stopping rule of the model is active; "
                "its speed would not be comparable.",
            )
