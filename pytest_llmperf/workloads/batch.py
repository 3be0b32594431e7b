"""Many prompts of different lengths at once: what batching strategies are compared on."""

from __future__ import annotations

import random

from msgspec import Struct

from pytest_llmperf.core.misspelt import SuggestingMeta
from pytest_llmperf.errors import UsageError
from pytest_llmperf.workloads.checks import is_count
from pytest_llmperf.workloads.prompts import PromptSet

REQUESTS = 16
PROMPT_TOKENS = (16, 128)
MIN_TOKENS = 2

Range = tuple[int, int]


class Batch(Struct, metaclass=SuggestingMeta, frozen=True, kw_only=True, tag="batch"):
    """Prompts that are all there from the start, each with its exact number of greedy tokens.

    Static batches take `batch` prompts at a time in their order, pad them on the left, and go on
    until the longest of them is done; what the shorter ones compute meanwhile is no output.
    Continuous batching puts the next prompt in as soon as there is room. `requests` is the number
    of prompts: by default every text of the set, or 16 synthetic ones. `prompt_tokens` is the
    length of synthetic prompts and `max_new_tokens` that of all outputs: a number, or a range (low,
    high) from which each request has its own, drawn once from the prompt set's seed. Texts keep
    their own lengths.
    """

    prompts: PromptSet = PromptSet.synthetic(0)
    max_new_tokens: int | Range = (16, 128)
    requests: int | None = None
    prompt_tokens: int | Range | None = None
    batch: int = 8

    def __post_init__(self) -> None:
        if not isinstance(self.prompts, PromptSet):
            raise UsageError(
                f"Batch(prompts={self.prompts!r}): a PromptSet is needed, "
                "for example PromptSet.synthetic(0)."
            )
        _check_count("batch", self.batch)
        if self.requests is not None:
            _check_count("requests", self.requests)
        _check_range("max_new_tokens", self.max_new_tokens, MIN_TOKENS)
        if self.prompt_tokens is not None:
            self._check_prompt_tokens()

    def _check_prompt_tokens(self) -> None:
        _check_range("prompt_tokens", self.prompt_tokens, 1)
        if self.prompts.texts:
            raise UsageError(
                f"Batch(prompt_tokens={self.prompt_tokens!r}): texts keep their own lengths. "
                "Leave it out, or take PromptSet.synthetic(seed).",
            )

    @property
    def queued(self) -> bool:
        """Requests may wait for one another: times of the first token hold more than a prefill."""
        return True

    @property
    def count(self) -> int:
        """Requests of one repetition."""
        return self.requests or len(self.prompts.texts) or REQUESTS

    @property
    def new_tokens(self) -> int:
        """Output tokens of the longest request."""
        return max(self.output_lengths)

    @property
    def output_lengths(self) -> tuple[int, ...]:
        """Output tokens of each request, equal in every repetition."""
        return _drawn(self.max_new_tokens, self.count, f"{self.prompts.seed}:new")

    @property
    def prompt_lengths(self) -> tuple[int, ...] | None:
        """Prompt tokens of each request; None where the texts have their own."""
        if self.prompts.texts:
            return None
        return _drawn(
            self.prompt_tokens or PROMPT_TOKENS, self.count, f"{self.prompts.seed}:prompt"
        )


def describe_batch(work: Batch) -> str:
    """Return a short text for tables: 'batch r16 p16-128 n16-128 b8'."""
    lengths = f"p{_prompt_text(work)} n{_text(work.max_new_tokens)}"
    return f"batch r{work.count} {lengths} b{work.batch}"


def _prompt_text(work: Batch) -> str:
    return "text" if work.prompts.texts else _text(work.prompt_tokens or PROMPT_TOKENS)


def _drawn(length: int | Range, count: int, seed: str) -> tuple[int, ...]:
    low, high = _ends(length)
    draw = random.Random(seed)  # noqa: S311 - resampling, not secrets
    return tuple(draw.randint(low, high) for _ in range(count))


def _ends(length: int | Range) -> Range:
    return (length, length) if isinstance(length, int) else length


def _check_count(name: str, value: object) -> None:
    if not is_count(value):
        raise UsageError(f"Batch({name}={value!r}): a whole number of at least 1 is needed.")


def _check_range(name: str, value: object, least: int) -> None:
    ends = value if isinstance(value, tuple | list) else (value, value)
    are_counts = all(is_count(end, least) for end in ends)
    if not are_counts or len(ends) != 2 or ends[0] > ends[1]:  # noqa: PLR2004 - low and high
        raise UsageError(
            f"Batch({name}={value!r}): a whole number of at least {least}, "
            "or a range of such (low, high), is needed."
        )


def _text(length: int | Range) -> str:
    return str(length) if isinstance(length, int) else f"{length[0]}-{length[1]}"
