"""Token ids for a workload: synthetic or tokenised, exact length or the texts' own, padded on the left."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_llmperf.errors import UsageError
from pytest_llmperf.workloads import Lockstep, PromptSet


@dataclass(frozen=True)
class TokenBatch:
    """Prompts of one batch on the device.

    `ids` is [batch, width]; `mask` is [batch, width] (1 for a token, 0 for padding) or None when
    nothing is padded.
    """

    ids: Tensor
    mask: Tensor | None
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.mask is not None:
            require_left_padding(self.mask)


@dataclass(frozen=True)
class Vocabulary:
    """The ids a prompt may hold: all of the model's vocabulary but the special tokens."""

    size: int
    special: frozenset[int]
    pad: int

    @classmethod
    def of(cls, model: Any, tokenizer: Any | None) -> Vocabulary:
        """From the model's config, and the tokenizer's special tokens where there is one."""
        config = model.config.get_text_config()
        named = (config.bos_token_id, config.eos_token_id, config.pad_token_id)
        special = {
            i
            for value in named
            for i in (value if isinstance(value, list | tuple) else [value])
            if i is not None
        }
        size = int(config.vocab_size)
        if tokenizer is not None:
            special |= set(tokenizer.all_special_ids)
            size = min(size, len(tokenizer))
        pad = (
            config.pad_token_id
            if isinstance(config.pad_token_id, int) and config.pad_token_id >= 0
            else min(special, default=0)
        )
        return cls(size=size, special=frozenset(special), pad=int(pad))

    def special_below(self, rows: int) -> tuple[int, ...]:
        """Ids below `rows`, those of the embedding, that no prompt may hold, ascending."""
        return tuple(
            sorted({i for i in self.special if 0 <= i < rows} | set(range(self.size, rows)))
        )

    def plain_ids(self) -> Tensor:
        """Every id that is not special, ascending: [n]."""
        plain = torch.ones(self.size, dtype=torch.bool)
        plain[[i for i in self.special if 0 <= i < self.size]] = False
        return plain.nonzero().flatten()


def require_left_padding(mask: Tensor) -> None:
    """Refuse a [batch, width] mask that has padding after a token: a decoder would go on from the padding."""
    rows = (mask[:, 1:] < mask[:, :-1]).any(dim=1) | (mask[:, -1] == 0)
    if bool(rows.any()):
        wrong = rows.nonzero().flatten().tolist()
        raise UsageError(
            f"rows {wrong} of the batch are padded on the right or hold no token. A decoder's batch must be padded on the "
            "left, else it continues from padding and its outputs change. Pad with padding_side='left'.",
        )


def ids_hash(ids: Tensor) -> str:
    """A hash of token ids and their shape: equal for equal ids, on any device."""
    return hashlib.sha256(
        f"{tuple(ids.shape)}".encode() + ids.cpu().contiguous().numpy().tobytes()
    ).hexdigest()[:16]


def token_batch(
    work: Lockstep,
    repetition: int,
    vocabulary: Vocabulary,
    tokenizer: Any | None,
    device: torch.device,
) -> TokenBatch:
    """The prompts of this repetition on `device`; fresh rows for each.

    Raises UsageError for texts without a tokenizer.
    """
    if not work.prompts.texts:
        rows = synthetic_rows(
            work.prompts.seed, repetition, work.batch, work.prompt_tokens or 1, vocabulary
        )
        return TokenBatch(rows.to(device), None, (rows.shape[1],) * work.batch)
    encoded = tokenise(work.prompts, tokenizer, whole=work.prompt_tokens is None)
    first = repetition * work.batch
    if work.prompt_tokens is None:
        own = [encoded[(first + i) % len(encoded)] for i in range(work.batch)]
    else:
        own = [exact_length(encoded, first + i, work.prompt_tokens) for i in range(work.batch)]
    return left_padded(own, vocabulary.pad, device)


def synthetic_rows(
    seed: int, repetition: int, batch: int, length: int, vocabulary: Vocabulary
) -> Tensor:
    """[batch, length] ids drawn uniformly from the plain ids.

    A function of (seed, repetition) alone.
    """
    digest = hashlib.sha256(f"{seed}:{repetition}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    plain = vocabulary.plain_ids()
    return plain[torch.randint(len(plain), (batch, length), generator=generator)]


def tokenise(prompts: PromptSet, tokenizer: Any | None, *, whole: bool = True) -> list[list[int]]:
    """Ids of each text with the tokenizer's own special tokens in front.

    Raises UsageError when there is no tokenizer.

    A chat prompt that is kept `whole` is in the model's chat template, which begins alike for all:
    cut to a length it would not be a prompt of its own.
    """
    if tokenizer is None:
        raise UsageError(
            f"prompts {prompts.name!r} are texts, and this model has no tokenizer (random weights have none). "
            "Use PromptSet.synthetic(seed).",
        )
    if whole and prompts.chat and getattr(tokenizer, "chat_template", None):
        encoded = [
            list(ids)
            for ids in tokenizer(
                [_as_chat(text, tokenizer) for text in prompts.texts], add_special_tokens=False
            )["input_ids"]
        ]
    else:
        encoded = [list(ids) for ids in tokenizer(list(prompts.texts))["input_ids"]]
    empty = [i for i, ids in enumerate(encoded) if not ids]
    if empty:
        raise UsageError(
            f"prompts {empty} of {prompts.name!r} give no tokens with this model's tokenizer. Remove them."
        )
    return encoded


def _as_chat(text: str, tokenizer: Any) -> str:
    return str(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
    )


def exact_length(encoded: list[list[int]], index: int, length: int) -> list[int]:
    """Text `index` cut to `length` ids, or continued with the texts that follow it (around the end of the set)."""
    ids: list[int] = []
    while len(ids) < length:
        ids += encoded[index % len(encoded)]
        index += 1
    return ids[:length]


def left_padded(
    rows: list[list[int]], pad: int, device: torch.device, width: int | None = None
) -> TokenBatch:
    """Rows of unequal length as one batch, padded on the left to `width` (default: the longest row)."""
    lengths = tuple(len(row) for row in rows)
    width = max(lengths) if width is None else width
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], dtype=torch.long)
    if min(lengths) == width:
        return TokenBatch(ids.to(device), None, lengths)
    mask = torch.tensor([[0] * (width - n) + [1] * n for n in lengths], dtype=torch.long)
    return TokenBatch(ids.to(device), mask.to(device), lengths)
