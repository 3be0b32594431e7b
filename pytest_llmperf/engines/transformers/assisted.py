"""Assisted decoding through transformers' `generate`: a smaller model, or the text so far, proposes; the model checks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.outputs.decoding import AssistedBy, Decoded, autocast
from pytest_llmperf.engines.outputs.inputs import TokenBatch
from pytest_llmperf.engines.transformers.cost import weight_bytes_read
from pytest_llmperf.engines.transformers.generate import GenerateLoop, TokenClock, require_length
from pytest_llmperf.engines.transformers.kv_cache import cache_seen
from pytest_llmperf.errors import InvalidRun, UsageError

BY_MODEL = 5
FROM_TEXT = 10
"""Tokens proposed at a time where the plan's option `assist_tokens` says nothing: by a model, and from the text so far."""


@dataclass
class Seen:
    """What one run asked its candidate generator: each call is followed by one forward pass of the measured model."""

    calls: int = 0
    proposed: int = 0
    assistant_forwards: int = 0
    generator: Any = None
    kinds: set[str] = field(default_factory=set)


class AssistedLoop(GenerateLoop):
    """See DecodeLoop. Takes one sequence at a time, as transformers does.

    `assistant` None: proposals come from the text.

    LoadPlan option: "assist_tokens", the tokens proposed at a time, constant over a run and between
    runs.
    """

    def __init__(self, model: Any, plan: LoadPlan, pad: int, assistant: Any | None) -> None:
        super().__init__(model, plan, pad)
        self.name = f"generate, assisted by {plan.assist}"
        self._source = str(plan.assist)
        self._assistant = assistant
        self._tokens = _tokens(plan, FROM_TEXT if assistant is None else BY_MODEL)
        if assistant is not None:
            # without a confidence threshold: transformers adapts it during a run where scikit-learn
            # is installed No stubs.
            assistant.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
                pad_token_id=pad,
                num_assistant_tokens=self._tokens,
                num_assistant_tokens_schedule="constant",
                assistant_confidence_threshold=0.0,
            )

    def decode(self, batch: TokenBatch, new_tokens: int) -> Decoded:
        """See DecodeLoop. Raises UsageError for more than one sequence."""
        if batch.ids.shape[0] > 1:
            raise UsageError(
                f"assisted decoding takes one sequence at a time, the batch has {batch.ids.shape[0]}. "
                "Use batch=1, or leave out the assistance.",
            )
        config, clock = self._config(new_tokens), TokenClock()
        mask = torch.ones_like(batch.ids) if batch.mask is None else batch.mask
        with (
            autocast(batch.ids.device, self._autocast_dtype),
            torch.no_grad(),
            self._watched() as seen,
        ):
            start = time.perf_counter_ns()
            out = self._model.generate(
                batch.ids,
                attention_mask=mask,
                generation_config=config,
                streamer=clock,
                assistant_model=self._assistant,
            )
        tokens = out.sequences[:, batch.ids.shape[1] :].cpu()
        require_length(tokens, clock.arrivals, new_tokens)
        assisted = self._assisted_by(seen, clock, batch.ids.shape[1] + new_tokens / 2)
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
    def _watched(self) -> Iterator[Seen]:
        """Note which candidate generator `generate` makes and what it proposes.

        On the host, a microsecond a call.
        """
        # Generate's only word on who proposes.
        seen, make = Seen(), self._model._get_candidate_generator  # noqa: SLF001

        def made(*args: Any, **kwargs: Any) -> Any:
            seen.generator = make(*args, **kwargs)
            seen.kinds.add(type(seen.generator).__name__)
            seen.generator.get_candidates = _counting(seen.generator.get_candidates, seen)
            return seen.generator

        def forward(*_args: Any) -> None:
            seen.assistant_forwards += 1

        self._model._get_candidate_generator = made  # noqa: SLF001
        hook = (
            self._assistant.register_forward_pre_hook(forward)
            if self._assistant is not None
            else None
        )
        try:
            yield seen
        finally:
            del self._model._get_candidate_generator  # noqa: SLF001
            if hook is not None:
                hook.remove()

    def _assisted_by(self, seen: Seen, clock: TokenClock, positions: float) -> AssistedBy:
        if seen.calls != len(clock.arrivals):
            raise InvalidRun(
                f"proposals were asked for {seen.calls} times, and tokens arrived {len(clock.arrivals)} times."
            )
        wanted = (
            "PromptLookupCandidateGenerator"
            if self._assistant is None
            else "AssistedCandidateGenerator"
        )
        source = self._source if seen.kinds == {wanted} else ", ".join(sorted(seen.kinds))
        return AssistedBy(
            source, seen.calls, seen.proposed, round(self._bytes_read(seen, positions))
        )

    def _bytes_read(self, seen: Seen, positions: float) -> float:
        """Weights and KV cache of the assistant, once for each of its forward passes."""
        if self._assistant is None or seen.assistant_forwards == 0:
            return 0.0
        cache = cache_seen(seen.generator.assistant_kwargs["past_key_values"])
        return seen.assistant_forwards * (
            weight_bytes_read(self._assistant, 1) + cache.bytes_per_position * positions
        )


def _tokens(plan: LoadPlan, default: int) -> int:
    value = plan.option("assist_tokens", default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"option assist_tokens={value!r}: a whole number of at least 1 is needed.")
    return value


def _counting(get_candidates: Any, seen: Seen) -> Any:
    def counted(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        ids, logits = get_candidates(input_ids, **kwargs)
        seen.calls += 1
        seen.proposed += ids.shape[1] - input_ids.shape[1]
        return ids, logits

    return counted
