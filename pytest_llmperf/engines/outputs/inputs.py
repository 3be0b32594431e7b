"""Token ids for a workload: synthetic or tokenised, of an exact length or the texts' own.

Rows of different lengths are padded on the left.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from msgspec import structs
from torch import Tensor

from pytest_llmperf.engines.models.padding import padding_id
from pytest_llmperf.errors import UsageError
from pytest_llmperf.workloads import Lockstep, PromptSet
from pytest_llmperf.workloads.prompts import CHAT


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
        """Read the model's config, and the tokenizer's special tokens where there is one."""
        config = model.config.get_text_config()
        special = _special_ids(config)
        size = int(config.vocab_size)
        if tokenizer is not None:
            special |= set(tokenizer.all_special_ids)
            size = min(size, len(tokenizer))
        return cls(size=size, special=frozenset(special), pad=padding_id(config, tokenizer))

    def special_below(self, rows: int) -> tuple[int, ...]:
        """Return the ids below `rows`, those of the embedding, that no prompt may hold.

        They are in ascending order.
        """
        return tuple(sorted({*self._special_within(rows), *range(self.size, rows)}))

    def plain_ids(self) -> Tensor:
        """Return every id that is not special, ascending: [n]."""
        plain = torch.ones(self.size, dtype=torch.bool)
        plain[self._special_within(self.size)] = False
        return plain.nonzero().flatten()

    def _special_within(self, rows: int) -> list[int]:
        return [token for token in self.special if 0 <= token < rows]


def _special_ids(config: Any) -> set[int]:
    """Return the ids that a model's config names for the beginning, the end and padding."""
    ids: set[int] = set()
    for value in (config.bos_token_id, config.eos_token_id, config.pad_token_id):
        ids.update(value if isinstance(value, list | tuple) else [value])
    return ids - {None}


def require_left_padding(mask: Tensor) -> None:
    """Refuse a [batch, width] mask that has padding after a token.

    A decoder would go on from the padding.
    """
    wrong = _rows_without_token_at_the_end(mask)
    if wrong:
        raise UsageError(
            f"rows {wrong} of the batch are padded on the right or hold no token. A decoder's "
            "batch must be padded on the left, else it continues from padding and its outputs "
            "change. Pad with padding_side='left'.",
        )


def _rows_without_token_at_the_end(mask: Tensor) -> list[int]:
    """Return the rows of a [batch, width] mask with padding after a token, or without one."""
    rows = _has_padding_after_token(mask) | (mask[:, -1] == 0)
    return list(map(int, rows.nonzero().flatten()))


def _has_padding_after_token(mask: Tensor) -> Tensor:
    """Return [batch] whether a 0 follows a 1 in a row of the mask."""
    return (mask[:, 1:] < mask[:, :-1]).any(dim=1)


def ids_hash(ids: Tensor) -> str:
    """Return a hash of token ids and their shape: equal for equal ids, on any device."""
    shape = f"{tuple(ids.shape)}".encode()
    return hashlib.sha256(shape + _content_of(ids)).hexdigest()[:16]


def _content_of(tensor: Tensor) -> bytes:
    content: bytes = tensor.cpu().contiguous().numpy().tobytes()
    return content


def token_batch(
    work: Lockstep,
    repetition: int,
    vocabulary: Vocabulary,
    tokenizer: Any | None,
    device: torch.device,
) -> TokenBatch:
    """Return the prompts of this repetition on `device`; fresh rows for each.

    Raises UsageError for texts without a tokenizer.
    """
    if work.prompts.texts:
        rows = _text_rows(work, repetition, tokenizer)
        return left_padded(rows, vocabulary.pad, device)
    length = work.prompt_tokens or 1
    ids = synthetic_rows(work.prompts.seed, repetition, work.batch, length, vocabulary)
    return TokenBatch(ids.to(device), None, (length,) * work.batch)


def _text_rows(work: Lockstep, repetition: int, tokenizer: Any | None) -> list[list[int]]:
    length = work.prompt_tokens
    encoded = tokenise(work.prompts, tokenizer, whole=length is None)
    first = repetition * work.batch
    indices = range(first, first + work.batch)
    if length is None:
        return [encoded[i % len(encoded)] for i in indices]
    return [exact_length(encoded, i, length) for i in indices]


def synthetic_rows(
    seed: int, repetition: int, batch: int, length: int, vocabulary: Vocabulary
) -> Tensor:
    """Return [batch, length] ids drawn uniformly from the plain ids.

    They are a function of (seed, repetition) alone.
    """
    digest = hashlib.sha256(f"{seed}:{repetition}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    plain = vocabulary.plain_ids()
    return plain[torch.randint(len(plain), (batch, length), generator=generator)]


def tokenise(prompts: PromptSet, tokenizer: Any | None, *, whole: bool = True) -> list[list[int]]:
    """Return the ids of each text with the tokenizer's own special tokens in front.

    Raises UsageError when there is no tokenizer.

    A chat prompt that is kept `whole` is in the model's chat template, which begins alike for all:
    cut to a length it would not be a prompt of its own.
    """
    if tokenizer is None:
        raise UsageError(
            f"prompts {prompts.name!r} are texts, and this model has no tokenizer "
            "(random weights have none). Use PromptSet.synthetic(seed).",
        )
    encoded = _encoded(prompts, tokenizer, chat=whole and prompts.chat)
    empty = [i for i, ids in enumerate(encoded) if not ids]
    if empty:
        raise UsageError(
            f"prompts {empty} of {prompts.name!r} give no tokens with this model's tokenizer. "
            "Remove them."
        )
    return encoded


def _encoded(prompts: PromptSet, tokenizer: Any, *, chat: bool) -> list[list[int]]:
    if prompts.parts and chat:
        return _encoded_by_part(prompts, tokenizer)
    if chat and getattr(tokenizer, "chat_template", None):
        texts = [_as_chat(text, tokenizer) for text in prompts.texts]
        rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    else:
        rows = tokenizer(list(prompts.texts))["input_ids"]
    return [list(ids) for ids in rows]


def _encoded_by_part(prompts: PromptSet, tokenizer: Any) -> list[list[int]]:
    """Return the ids of each text; those of the part of chats alone are put into the template."""
    alone = structs.replace(prompts, parts=())
    chats = _encoded(alone, tokenizer, chat=True)
    plain = _encoded(alone, tokenizer, chat=False)
    pairs = zip(prompts.parts, chats, plain, strict=True)
    return [as_chat if part == CHAT else as_text for part, as_chat, as_text in pairs]


def _as_chat(text: str, tokenizer: Any) -> str:
    messages = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def exact_length(encoded: list[list[int]], index: int, length: int) -> list[int]:
    """Return text `index` cut to `length` ids.

    A shorter one is continued with the texts that follow it (around the end of the set).
    """
    ids: list[int] = []
    while len(ids) < length:
        ids += encoded[index % len(encoded)]
        index += 1
    return ids[:length]


def left_padded(
    rows: list[list[int]], pad: int, device: torch.device, width: int | None = None
) -> TokenBatch:
    """Return rows of unequal length as one batch, padded on the left to `width`.

    Without a width it is that of the longest row.
    """
    lengths = tuple(len(row) for row in rows)
    width = max(lengths) if width is None else width
    ids = torch.tensor([_filled_up(row, pad, width) for row in rows], dtype=torch.long)
    mask = None if min(lengths) == width else _left_mask(lengths, width).to(device)
    return TokenBatch(ids.to(device), mask, lengths)


def first_rows(batch: TokenBatch, count: int) -> TokenBatch:
    """Return the first `count` rows of a batch, as wide as it was; the batch where it has no more.

    Their mask stays, also where none of them is padded.
    """
    if count >= len(batch.lengths):
        return batch
    mask = None if batch.mask is None else batch.mask[:count]
    return TokenBatch(batch.ids[:count], mask, batch.lengths[:count])


def _filled_up(row: list[int], pad: int, width: int) -> list[int]:
    return [pad] * (width - len(row)) + row


def _left_mask(lengths: tuple[int, ...], width: int) -> Tensor:
    """Return [rows, width]: 0 for padding in front, 1 for a token."""
    return torch.tensor([_filled_up([1] * n, 0, width) for n in lengths], dtype=torch.long)
