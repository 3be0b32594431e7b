"""Greedy decoding of exactly n tokens through transformers' own `generate`.

Each token is noted with the time it reached the host.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.outputs.decoding import Decoded, autocast
from pytest_llmperf.engines.outputs.inputs import TokenBatch
from pytest_llmperf.engines.transformers.kv_cache import cache_maker, cache_seen
from pytest_llmperf.engines.transformers.observed.computed import require_positions
from pytest_llmperf.errors import InvalidRun, UsageError


class TokenClock(BaseStreamer):
    """Notes the host time of every `put`.

    `generate` hands over tokens that are already on the host, the prompt first.
    """

    def __init__(self) -> None:
        self.t_puts_ns: list[int] = []
        self._values: list[Tensor] = []

    def put(self, value: Tensor) -> None:
        """Note the prompt in the first call, and the tokens of a step in each later one.

        `value` is [batch], or [1, n] where n tokens were accepted at once.
        """
        self.t_puts_ns.append(time.perf_counter_ns())
        self._values.append(value)

    def end(self) -> None:
        """Do nothing, since nothing is buffered."""

    @property
    def t_tokens_ns(self) -> tuple[int, ...]:
        """Return the times at which generated tokens arrived."""
        return tuple(self.t_puts_ns[1:])

    @property
    def arrivals(self) -> tuple[int, ...]:
        """Return how many tokens of a sequence arrived at each of `t_tokens_ns`."""
        return tuple(value.shape[1] if value.ndim > 1 else 1 for value in self._values[1:])


class ForcedTokens(LogitsProcessor):
    """Notes the logits of each step, and lets `generate` choose the given tokens.

    `tokens` [batch, n] follow a prompt of `width` positions.
    """

    def __init__(self, tokens: Tensor, width: int) -> None:
        self._tokens = tokens
        self._width = width
        self._rows: dict[int, Tensor] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Note `scores` [batch, vocab], and return some whose largest is the token to come.

        Where tokens are proposed and checked, those behind a wrong proposal are about another text:
        their scores are not noted.
        """
        place = input_ids.shape[1] - self._width
        if place >= self._tokens.shape[1]:
            return scores
        tokens = self._tokens.to(scores.device)
        if torch.equal(input_ids[:, self._width :], tokens[:, :place]):
            self._rows[place] = scores.to("cpu", torch.float32, copy=True)
        forced = torch.full_like(scores, torch.finfo(scores.dtype).min)
        return forced.scatter_(1, tokens[:, place : place + 1], 0.0)

    def logits(self) -> Tensor:
        """Return [batch, n, vocab] float32 logits.

        Raises InvalidRun where a token was chosen without its scores being shown.
        """
        n = self._tokens.shape[1]
        missing = [place for place in range(n) if place not in self._rows]
        if missing:
            raise InvalidRun(
                f"the loop showed no logits for tokens {missing} of {n}: they cannot be compared."
            )
        return torch.stack([self._rows[place] for place in range(n)], dim=1)


class GenerateLoop:
    """`model.generate`, greedy, with a dynamic, a static or an 8-bit cache.

    transformers' automatic compilation is off.
    """

    def __init__(self, model: Any, plan: LoadPlan, pad: int) -> None:
        _require_one_cache_dtype(plan)
        self.name = "generate"
        self._model = model
        self._pad = pad
        self._static = plan.cache == "static"
        self._new_cache = cache_maker(model, plan)
        self._autocast_dtype = plan.autocast_dtype
        # `generate` fills what a call leaves unset from the model's own defaults, and
        # eos_token_id=None is "unset": an EOS left there would end sequences early.
        model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            pad_token_id=pad,
        )

    def decode(self, batch: TokenBatch, new_tokens: int) -> Decoded:
        """Decode as DecodeLoop says. The clock starts when `generate` is called."""
        return self._decode(batch, new_tokens, LogitsProcessorList())

    @property
    def unforced(self) -> str:
        """See ForcesTokens."""
        return ""

    def force(self, batch: TokenBatch, tokens: Tensor) -> Tensor:
        """Decode as ForcesTokens says."""
        forced = ForcedTokens(tokens, batch.ids.shape[1])
        decoded = self._decode(batch, tokens.shape[1], LogitsProcessorList([forced]))
        require_tokens(decoded.tokens, tokens)
        return forced.logits()

    def _decode(
        self, batch: TokenBatch, new_tokens: int, processors: LogitsProcessorList
    ) -> Decoded:
        config = self._config(new_tokens)
        mask = torch.ones_like(batch.ids) if batch.mask is None else batch.mask
        clock = TokenClock()
        with autocast(batch.ids.device, self._autocast_dtype), torch.no_grad():
            start = time.perf_counter_ns()
            cache = {} if self._new_cache is None else {"past_key_values": self._new_cache()}
            out = self._model.generate(
                batch.ids,
                attention_mask=mask,
                generation_config=config,
                streamer=clock,
                logits_processor=processors,
                **cache,
            )
        tokens = out.sequences[:, batch.ids.shape[1] :].cpu()
        require_length(tokens, clock.arrivals, new_tokens)
        require_positions(out.past_key_values, batch.ids.shape[1] + new_tokens - 1)
        return Decoded(tokens, start, clock.t_tokens_ns, cache_seen(out.past_key_values))

    def _config(self, new_tokens: int) -> GenerationConfig:
        return GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            max_new_tokens=new_tokens,
            eos_token_id=None,
            pad_token_id=self._pad,
            use_cache=True,
            cache_implementation="static" if self._static else None,
            disable_compile=True,
            return_dict_in_generate=True,
        )


def require_length(tokens: Tensor, arrivals: tuple[int, ...], new_tokens: int) -> None:
    """Raise InvalidRun unless there are exactly `new_tokens` tokens [batch, n] and arrivals."""
    decoded, timestamps = tokens.shape[1], sum(arrivals)
    if decoded != new_tokens or timestamps != new_tokens:
        raise InvalidRun(
            f"asked for exactly {new_tokens} new tokens, got {decoded} tokens and "
            f"{timestamps} timestamps a sequence. "
            "A stopping rule of the model is active; its speed would not be comparable.",
        )


def require_tokens(decoded: Tensor, forced: Tensor) -> None:
    """Raise InvalidRun unless a loop gave back the tokens [batch, n] that were sent through it."""
    if not torch.equal(decoded, forced.to(decoded.device)):
        raise InvalidRun(
            "tokens were sent through the decode loop, and it gave back others: "
            "what it decodes is not what its logits say."
        )


def _require_one_cache_dtype(plan: LoadPlan) -> None:
    """Raise UsageError for a static cache under autocast."""
    if plan.cache == "static" and plan.autocast_dtype is not None:
        raise UsageError(
            f"static-cache with autocast to {plan.autocast_dtype}: transformers' StaticCache holds "
            "keys and values in one dtype, and under autocast they have two. "
            "Add 'compile' (its loop has its own cache), or drop one of the two.",
        )
