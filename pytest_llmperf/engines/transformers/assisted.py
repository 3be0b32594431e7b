"""Assisted decoding through transformers' `generate`.

A smaller model, or the text so far, proposes tokens; the measured model checks them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.outputs.decoding import AssistedBy, Decoded, autocast
from pytest_llmperf.engines.outputs.inputs import TokenBatch
from pytest_llmperf.engines.transformers.accounting.cost import weight_bytes_read
from pytest_llmperf.engines.transformers.generate import GenerateLoop, TokenClock, require_length
from pytest_llmperf.engines.transformers.kv_cache import cache_seen
from pytest_llmperf.engines.transformers.observed.computed import require_positions
from pytest_llmperf.errors import InvalidRun, UsageError

BY_MODEL = 5
"""Tokens that a model proposes at a time where the plan's option `assist_tokens` says nothing."""

FROM_TEXT = 10
"""Tokens proposed at a time from the text so far, where the plan's option says nothing."""


@dataclass
class Proposals:
    """What the candidate generator of one run did.

    Each of its `calls` is followed by one forward pass of the measured model.
    """

    calls: int = 0
    proposed: int = 0
    assistant_forwards: int = 0
    generator: Any = None
    generator_classes: set[str] = field(default_factory=set)

    def watch(self, generator: Any) -> None:
        """Count the calls of `generator` and the tokens that it proposes."""
        self.generator = generator
        self.generator_classes.add(type(generator).__name__)
        get_candidates = generator.get_candidates

        def counted(input_ids: torch.Tensor, **kwargs: Any) -> Any:
            ids, logits = get_candidates(input_ids, **kwargs)
            self.calls += 1
            self.proposed += ids.shape[1] - input_ids.shape[1]
            return ids, logits

        generator.get_candidates = counted

    def count_assistant_forward(self, *_hook_arguments: Any) -> None:
        """Count one forward pass of the assistant, as a forward hook."""
        self.assistant_forwards += 1


class AssistedLoop(GenerateLoop):
    """The decode loop with assistance; see DecodeLoop.

    It takes one sequence at a time, as transformers does. Without an `assistant`, proposals come
    from the text.

    LoadPlan option: "assist_tokens", the tokens proposed at a time, constant over a run and between
    runs.
    """

    def __init__(self, model: Any, plan: LoadPlan, pad: int, assistant: Any | None) -> None:
        super().__init__(model, plan, pad)
        self.name = f"generate, assisted by {plan.assist}"
        self._source = str(plan.assist)
        self._assistant = assistant
        self._assistant_bytes = 0
        self._tokens = _tokens(plan, FROM_TEXT if assistant is None else BY_MODEL)
        if assistant is not None:
            assistant.generation_config = _constant_proposals(self._tokens, pad)

    def _decode(
        self, batch: TokenBatch, new_tokens: int, processors: LogitsProcessorList
    ) -> Decoded:
        """Decode one sequence. Raises UsageError for more."""
        _require_one_sequence(batch)
        config, clock = self._config(new_tokens), TokenClock()
        mask = torch.ones_like(batch.ids) if batch.mask is None else batch.mask
        with (
            autocast(batch.ids.device, self._autocast_dtype),
            torch.no_grad(),
            self._watched() as proposals,
        ):
            start = time.perf_counter_ns()
            out = self._model.generate(
                batch.ids,
                attention_mask=mask,
                generation_config=config,
                streamer=clock,
                logits_processor=processors,
                assistant_model=self._assistant,
            )
        tokens = out.sequences[:, batch.ids.shape[1] :].cpu()
        require_length(tokens, clock.arrivals, new_tokens)
        require_positions(out.past_key_values, batch.ids.shape[1] + new_tokens - 1)
        mean_positions = batch.ids.shape[1] + new_tokens / 2
        assisted = self._assisted_by(proposals, clock, mean_positions)
        return Decoded(
            tokens,
            start,
            clock.t_tokens_ns,
            cache_seen(out.past_key_values),
            arrivals=clock.arrivals,
            assisted=assisted,
        )

    def _config(self, new_tokens: int) -> GenerationConfig:
        config = super()._config(new_tokens)
        if self._assistant is None:
            config.prompt_lookup_num_tokens = self._tokens
        return config

    @contextmanager
    def _watched(self) -> Iterator[Proposals]:
        """Note which candidate generator `generate` makes and what it proposes.

        This costs the host a microsecond a call.
        """
        proposals = Proposals()
        # This method is the only place where `generate` says who proposes.
        make_generator = self._model._get_candidate_generator  # noqa: SLF001

        def make_watched_generator(*args: Any, **kwargs: Any) -> Any:
            # What forces tokens through the measured model is not for its assistant.
            kwargs["logits_processor"] = LogitsProcessorList()
            generator = make_generator(*args, **kwargs)
            proposals.watch(generator)
            return generator

        self._model._get_candidate_generator = make_watched_generator  # noqa: SLF001
        hook = None
        if self._assistant is not None:
            hook = self._assistant.register_forward_pre_hook(proposals.count_assistant_forward)
        try:
            yield proposals
        finally:
            del self._model._get_candidate_generator  # noqa: SLF001
            if hook is not None:
                hook.remove()

    def _assisted_by(self, proposals: Proposals, clock: TokenClock, positions: float) -> AssistedBy:
        """Say who proposed. `positions` is the mean length of the assistant's KV cache."""
        if proposals.calls != len(clock.arrivals):
            raise InvalidRun(
                f"proposals were asked for {proposals.calls} times, "
                f"and tokens arrived {len(clock.arrivals)} times."
            )
        bytes_read = round(self._bytes_read(proposals, positions))
        return AssistedBy(
            self._source_in_effect(proposals), proposals.calls, proposals.proposed, bytes_read
        )

    def _source_in_effect(self, proposals: Proposals) -> str:
        """Return the plan's source of proposals, or the generators that ran in its place."""
        expected_class = (
            "PromptLookupCandidateGenerator"
            if self._assistant is None
            else "AssistedCandidateGenerator"
        )
        if proposals.generator_classes == {expected_class}:
            return self._source
        return ", ".join(sorted(proposals.generator_classes))

    def _bytes_read(self, proposals: Proposals, positions: float) -> float:
        """Return the assistant's weights and KV cache, once for each of its forward passes."""
        if self._assistant is None or proposals.assistant_forwards == 0:
            return 0.0
        cache = cache_seen(proposals.generator.assistant_kwargs["past_key_values"])
        if not self._assistant_bytes:
            self._assistant_bytes = weight_bytes_read(self._assistant, 1)
        per_forward = self._assistant_bytes + cache.bytes_per_position * positions
        return proposals.assistant_forwards * per_forward


def _constant_proposals(tokens: int, pad: int) -> GenerationConfig:
    """Return the configuration of an assistant that proposes `tokens` at a time.

    It has no confidence threshold, because transformers adapts that during a run where scikit-learn
    is installed.
    """
    return GenerationConfig(  # type: ignore[no-untyped-call]
        pad_token_id=pad,
        num_assistant_tokens=tokens,
        num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=0.0,
    )


def _require_one_sequence(batch: TokenBatch) -> None:
    rows = batch.ids.shape[0]
    if rows > 1:
        raise UsageError(
            f"assisted decoding takes one sequence at a time, the batch has {rows}. "
            "Use batch=1, or leave out the assistance.",
        )


def _tokens(plan: LoadPlan, default: int) -> int:
    value = plan.option("assist_tokens", default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"option assist_tokens={value!r}: a whole number of at least 1 is needed.")
    return value
