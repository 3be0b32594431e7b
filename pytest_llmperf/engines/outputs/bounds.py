"""What a model can take: positions of its context and rows of its embedding, known before it runs.

A position past a learned table, or an id past the embedding, is an IndexError in the middle of an
output, and on CUDA an assertion that ends the process; past the context of rotary positions a model
computes what it was not trained for, without a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_llmperf.errors import UsageError

_STRETCHED = ("linear", "dynamic")


def embedding_rows(model: Any) -> int:
    """Return the rows of a model's input embedding; an adapter's wrapper around it is opened."""
    embedding = model.get_input_embeddings()
    while hasattr(embedding, "base_layer"):
        embedding = embedding.base_layer
    rows = getattr(embedding, "num_embeddings", None)
    return int(embedding.weight.shape[0] if rows is None else rows)


def context_length(config: Any) -> int | None:
    """Return the positions that a text config of transformers allows; None without a limit.

    Models without positions (ALiBi, state spaces) have none.
    """
    if getattr(config, "alibi", False):
        return None
    longest = getattr(config, "max_position_embeddings", None)
    if not isinstance(longest, int) or longest < 1:
        return None
    return max(longest, _scaled_context(config, longest))


def _scaled_context(config: Any, longest: int) -> int:
    """Return the context that rotary scaling reaches; 0 where the config names none.

    YaRN and its like name the length before scaling. Older configs of the linear and dynamic kinds
    leave it out, and may mean `longest` by it.
    """
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not isinstance(rope, Mapping):
        return 0
    kind = rope.get("rope_type", rope.get("type"))
    original = rope.get("original_max_position_embeddings")
    if original is None and kind in _STRETCHED:
        original = longest
    return int((original or 0) * (rope.get("factor") or 0))


@dataclass(frozen=True)
class Bounds:
    """The positions and the ids that a model can take.

    `positions` is None without a limit; `subject` is the model that has fewest, for messages. Ids
    are 0 to `rows` - 1.
    """

    positions: int | None
    rows: int
    subject: str

    @classmethod
    def of(cls, model: Any, assistant: Any | None = None) -> Bounds:
        """Read a model's config and embedding.

        An assistant reads the same tokens: it may have the shorter context.
        """
        own = _of_one(model, type(model).__name__)
        if assistant is None:
            return own
        other = _of_one(assistant, f"its assistant {type(assistant).__name__}")
        return min(own, other, key=lambda bounds: bounds.positions or float("inf"))

    def require(self, rows: Sequence[Sequence[int]], new_tokens: Sequence[int]) -> None:
        """Raise UsageError unless prompts of these ids and their outputs are within the bounds.

        `new_tokens` has the output tokens of each row.
        """
        self.require_lengths([len(row) for row in rows], new_tokens)
        highest = max((token for row in rows for token in row), default=0)
        lowest = min((token for row in rows for token in row), default=0)
        self.require_ids(lowest, highest)

    def require_lengths(self, prompts: Sequence[int], new_tokens: Sequence[int]) -> None:
        """Raise UsageError for a prompt and its output that need more positions than there are.

        The last token of an output is not read again, and needs none.
        """
        if self.positions is None:
            return
        lengths = zip(prompts, new_tokens, strict=True)
        prompt, new = max(lengths, key=sum, default=(0, 0))
        needed = prompt + max(new, 1) - 1
        if needed > self.positions:
            raise UsageError(self._too_long(prompt, new, needed))

    def _too_long(self, prompt: int, new: int, needed: int) -> str:
        return (
            f"a prompt of {prompt} tokens with {new} new ones needs {needed} positions, and "
            f"{self.subject} has {self.positions} (max_position_embeddings of its config). "
            "Give shorter prompts, fewer new tokens, or a model with a longer context."
        )

    def require_ids(self, lowest: int, highest: int) -> None:
        """Raise UsageError unless ids from `lowest` to `highest` have rows in the embedding."""
        outside = highest if highest >= self.rows else lowest
        if not 0 <= outside < self.rows:
            raise UsageError(
                f"the prompts hold token id {outside}, and the embedding of {self.subject} has "
                f"{self.rows} rows: ids are 0 to {self.rows - 1}. The tokenizer has tokens that "
                "the model was never resized for: take the model's own tokenizer, or save the "
                "model again after resize_token_embeddings."
            )


def _of_one(model: Any, subject: str) -> Bounds:
    positions = context_length(model.config.get_text_config())
    return Bounds(positions, embedding_rows(model), subject)
