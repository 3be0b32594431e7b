"""Offline workloads on one batch: prefill alone, or followed by decoding a number of tokens."""

from __future__ import annotations

from msgspec import Struct

from pytest_llmperf.core.misspelt import SuggestingMeta
from pytest_llmperf.errors import UsageError
from pytest_llmperf.workloads.batch import Batch, describe_batch
from pytest_llmperf.workloads.checks import is_count
from pytest_llmperf.workloads.prompts import PromptSet

MIN_DECODED = 2
_SYNTHETIC = PromptSet.synthetic(0)


class Prefill(Struct, metaclass=SuggestingMeta, frozen=True, kw_only=True, tag="prefill"):
    """Process a batch of prompts and produce the first token.

    `prompt_tokens` is exact: texts are cut or continued with the following prompts' tokens. None
    keeps the texts' own lengths and pads on the left.
    """

    batch: int = 1
    prompt_tokens: int | None = 512
    prompts: PromptSet = _SYNTHETIC

    @property
    def new_tokens(self) -> int:
        """Prefill ends with the first token."""
        return 1

    def __post_init__(self) -> None:
        _check(self)


class Decode(Struct, metaclass=SuggestingMeta, frozen=True, kw_only=True, tag="decode"):
    """Prefill, then greedy decoding of exactly `new_tokens` tokens for each sequence.

    The end-of-sequence token is ignored.
    """

    batch: int = 1
    prompt_tokens: int | None = 128
    new_tokens: int = 128
    prompts: PromptSet = _SYNTHETIC

    def __post_init__(self) -> None:
        _check(self)
        if self.new_tokens < MIN_DECODED:
            raise UsageError(
                f"Decode(new_tokens={self.new_tokens}): at least {MIN_DECODED} are needed to time "
                "a token after the first. Prefill() measures one.",
            )


Lockstep = Prefill | Decode
"""One batch whose sequences take their steps together, all of one length."""

Workload = Prefill | Decode | Batch


def _check(work: Prefill | Decode) -> None:
    kind = type(work).__name__
    if not isinstance(work.prompts, PromptSet):
        raise UsageError(
            f"{kind}(prompts={work.prompts!r}): a PromptSet is needed, "
            "for example PromptSet.bundled('short-chat')."
        )
    _check_counts(work)
    if work.prompt_tokens is None and not work.prompts.texts:
        raise UsageError(
            f"{kind}(prompt_tokens=None): synthetic prompts have no length of their own; "
            "give prompt_tokens or a text PromptSet.",
        )


def _check_counts(work: Prefill | Decode) -> None:
    for field in ("batch", "prompt_tokens", "new_tokens"):
        value = getattr(work, field)
        is_unset = value is None and field == "prompt_tokens"
        if not is_unset and not is_count(value):
            raise UsageError(
                f"{type(work).__name__}({field}={value!r}): a whole number of at least 1 is needed."
            )


def describe(work: Workload) -> str:
    """Return a short text for tables: 'decode b1 p128 n128'."""
    if isinstance(work, Batch):
        return describe_batch(work)
    length = "text" if work.prompt_tokens is None else str(work.prompt_tokens)
    tail = f" n{work.new_tokens}" if isinstance(work, Decode) else ""
    return f"{type(work).__name__.lower()} b{work.batch} p{length}{tail}"
