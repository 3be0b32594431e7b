"""A model that is compared: through the loop that is measured, and by itself without a cache.

Token ids go in, never text.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_llmperf.engines.outputs.bounds import Bounds
from pytest_llmperf.engines.outputs.decoding import DecodeLoop, ForcesTokens, autocast, eager
from pytest_llmperf.engines.outputs.inputs import TokenBatch, Vocabulary
from pytest_llmperf.engines.outputs.rounding import Rounded
from pytest_llmperf.errors import UsageError


@dataclass(frozen=True)
class Scorer:
    """A model with the decode loop that is measured.

    `looped_logits` and `free` go through that loop; `forced_logits` is one eager pass over prompt
    and continuation, without a cache.

    `new_cache` makes a quantized KV cache, which teacher-forced passes then read the prompt from,
    as decoding does. `bounds` are None where the engine keeps its own. `one_by_one`: the loop takes
    one sequence at a time. `compiled`: another shape is another graph. `writes`: this process
    writes files, and not another rank.
    """

    model: Any
    tokenizer: Any | None
    loop: DecodeLoop
    vocabulary: Vocabulary
    device: torch.device
    autocast_dtype: str | None
    new_cache: Callable[[], Any] | None = None
    bounds: Bounds | None = None
    one_by_one: bool = False
    compiled: bool = False
    writes: bool = True

    def require_fits(self, rows: list[list[int]], new_tokens: int) -> None:
        """Raise UsageError for prompts and outputs that are more than the model can take."""
        if self.bounds is not None:
            self.bounds.require(rows, [new_tokens] * len(rows))

    @property
    def unforced(self) -> str:
        """Why the loop takes no tokens from outside; empty where it does."""
        if isinstance(self.loop, ForcesTokens):
            return self.loop.unforced
        return f"{self.loop.name} takes no tokens from outside"

    def looped_logits(self, batch: TokenBatch, continuation: Tensor) -> Tensor | None:
        """Return the [batch, n, vocab] float32 logits from which the loop chooses each token.

        The tokens of `continuation` [batch, n] are fed back in place of its choices. None where the
        loop takes none.
        """
        loop = self.loop
        if not isinstance(loop, ForcesTokens) or self.unforced:
            return None
        tokens = continuation.to(self.device)
        if not self.one_by_one:
            return loop.force(batch, tokens)
        pairs = zip(_single_rows(batch), tokens, strict=True)
        return torch.cat([loop.force(row, forced[None]) for row, forced in pairs])

    def rounded_logits(self, batch: TokenBatch, continuation: Tensor) -> Tensor | None:
        """Return the logits of `forced_logits` as a model in bfloat16 has them.

        None for a model that does not compute in float32.
        """
        if self.autocast_dtype is not None or self.new_cache is not None:
            return None
        with Rounded():
            return self.forced_logits(batch, continuation)[0]

    def forced_logits(self, batch: TokenBatch, continuation: Tensor) -> tuple[Tensor, torch.dtype]:
        """Return [batch, n, vocab] float32 logits and the dtype they had.

        They predict each token of `continuation` [batch, n].
        """
        inputs = _forced_inputs(batch, continuation)
        with torch.no_grad(), autocast(self.device, self.autocast_dtype):
            if self.new_cache is None:
                logits = self._forward(
                    continuation.shape[1],
                    input_ids=inputs.ids,
                    attention_mask=inputs.mask,
                    position_ids=inputs.positions,
                    use_cache=False,
                )
            else:
                logits = self._forward_in_two(batch.ids.shape[1], inputs, self.new_cache())
        return logits.float().cpu(), logits.dtype

    def _forward(self, n: int, **inputs: Any) -> Tensor:
        """Return the [batch, n, vocab] logits of the last positions."""
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            inputs["logits_to_keep"] = n
        # not the call: a model compiled for decoding would compile these shapes too
        logits: Tensor = eager(self.model)(**inputs).logits
        return logits[:, -n:]

    def _forward_in_two(self, width: int, inputs: _ForcedInputs, cache: Any) -> Tensor:
        """Run the prompt, `width` tokens, into a cache, then the continuation.

        The continuation attends to what the cache kept of the prompt.
        """
        total = inputs.ids.shape[1]
        logits = [self._forward_piece(slice(0, width), 1, inputs, cache)]
        if total > width:
            logits.append(self._forward_piece(slice(width, total), total - width, inputs, cache))
        return torch.cat(logits, dim=1)

    def _forward_piece(self, piece: slice, n: int, inputs: _ForcedInputs, cache: Any) -> Tensor:
        return self._forward(
            n,
            input_ids=inputs.ids[:, piece],
            attention_mask=inputs.mask[:, : piece.stop],
            position_ids=inputs.positions[:, piece],
            past_key_values=cache,
            use_cache=True,
        )

    def free(self, batch: TokenBatch, new_tokens: int) -> Tensor:
        """Return the [batch, new_tokens] tokens that the loop decodes.

        Row by row, without padding, where it takes one sequence at a time.
        """
        if not self.one_by_one:
            return self.loop.decode(batch, new_tokens).tokens
        rows = [self.loop.decode(row, new_tokens).tokens for row in _single_rows(batch)]
        return torch.cat(rows)

    def text(self, ids: list[int]) -> str:
        """Return the decoded text, or the ids where there is no tokenizer."""
        if self.tokenizer is None:
            return " ".join(map(str, ids))
        return str(self.tokenizer.decode(ids))

    def token_text(self, token: int) -> str:
        """Return the text of one token."""
        return self.text([token])


@dataclass(frozen=True)
class _ForcedInputs:
    """Inputs of a teacher-forced pass, each [batch, width + n - 1]."""

    ids: Tensor
    mask: Tensor
    positions: Tensor


def _forced_inputs(batch: TokenBatch, continuation: Tensor) -> _ForcedInputs:
    """Put all but the last token of `continuation` [batch, n] behind its prompts."""
    width = batch.ids.shape[1]
    ids = torch.cat([batch.ids, continuation[:, :-1].to(batch.ids.device)], dim=1)
    mask = torch.ones_like(ids)
    if batch.mask is not None:
        mask[:, :width] = batch.mask
    return _ForcedInputs(ids, mask, (mask.cumsum(dim=1) - 1).clamp(min=0))


def _single_rows(batch: TokenBatch) -> list[TokenBatch]:
    """Return each row of a left-padded batch as a batch of its own, without padding."""
    rows = [batch.ids[i : i + 1, -length:] for i, length in enumerate(batch.lengths)]
    return [TokenBatch(row, None, (row.shape[1],)) for row in rows]


def require_same_vocabulary(scorer: Scorer, reference_size: int) -> None:
    """Raise UsageError when the candidate's tokens are not the reference's."""
    size = int(scorer.model.config.get_text_config().vocab_size)
    if size != reference_size:
        raise UsageError(
            f"the candidate has a vocabulary of {size} tokens, its reference one of "
            f"{reference_size}: their tokens cannot be compared. "
            "Take a reference of the same model."
        )
