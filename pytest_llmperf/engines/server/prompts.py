"""Prompts of a load, one for each request: drawn or from texts, of an exact length, and none twice unless that is asked for."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tokenizers import Tokenizer

from pytest_llmperf.errors import UsageError
from pytest_llmperf.workloads import PromptSet

_TRIES = 8


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What is sent: a text, and the ids that our tokenizer makes of it, where there is one."""

    text: str
    ids: tuple[int, ...] = ()


@dataclass
class Prompts:
    """Makes prompts with the model's tokenizer; `chat`: the server puts them into its own template."""

    tokenizer: Tokenizer | None
    chat: bool = False
    _plain: list[int] = field(default_factory=list)
    _encoded: dict[str, list[list[int]]] = field(default_factory=dict)

    def prompt(
        self,
        prompts: PromptSet,
        length: int | None,
        repetition: int,
        index: int,
        *,
        repeat: bool = False,
    ) -> Prompt:
        """The prompt of request `index` of a repetition. With `repeat`, texts come round unchanged.

        Raises UsageError where there is no tokenizer to make or to cut it with.
        """
        if not prompts.texts:
            return self._drawn(f"{prompts.seed}|{repetition}|{index}", length or 1)
        fresh = not repetition and index < len(prompts.texts)
        before = "" if repeat or fresh else f"[{repetition}.{index}] "
        if length is None:
            text = before + prompts.texts[index % len(prompts.texts)]
            return Prompt(text=text, ids=tuple(self.encode(text)))
        return self._cut(prompts, index, length, before)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of a text; none without a tokenizer."""
        return (
            []
            if self.tokenizer is None
            else list(self.tokenizer.encode(text, add_special_tokens=special).ids)
        )

    def count(self, text: str) -> int | None:
        """Tokens of an output as our tokenizer counts them; None without one."""
        return None if self.tokenizer is None else len(self.encode(text, special=False))

    def _drawn(self, key: str, length: int) -> Prompt:
        """Random ids, as text that our tokenizer reads as exactly so many: cut and filled up until it does."""
        tokenizer = self._need("synthetic prompts are made with")
        draw = random.Random(key)  # noqa: S311 - prompts, not secrets
        plain = self._plain_ids()
        ids: list[int] = []
        for _ in range(_TRIES):
            ids = (ids + draw.choices(plain, k=length))[:length]
            text = tokenizer.decode(ids)
            again = self.encode(text, special=False)
            if len(again) == length:
                return Prompt(text=text, ids=tuple(again))
            ids = again[:length]
        return Prompt(text=tokenizer.decode(ids), ids=tuple(ids))

    def _cut(self, prompts: PromptSet, index: int, length: int, before: str) -> Prompt:
        """Text `index`, continued with those that follow it, cut to `length` ids."""
        tokenizer = self._need("an exact length is cut with")
        if prompts.content_hash not in self._encoded:
            self._encoded[prompts.content_hash] = [self.encode(text) for text in prompts.texts]
        encoded = self._encoded[prompts.content_hash]
        ids = self.encode(before) if before else []
        at = index
        while len(ids) < length:
            ids = ids + encoded[at % len(encoded)]
            at += 1
        return Prompt(text=tokenizer.decode(ids[:length]), ids=tuple(ids[:length]))

    def _plain_ids(self) -> list[int]:
        """Every id that is not special."""
        if not self._plain:
            tokenizer = self._need("synthetic prompts are made with")
            special = {
                i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special
            }
            self._plain = [i for i in range(tokenizer.get_vocab_size()) if i not in special]
        return self._plain

    def _need(self, what: str) -> Tokenizer:
        if self.tokenizer is None:
            raise UsageError(
                f"{what} the model's tokenizer, and there is none here. Give option 'tokenizer' (a folder with a "
                "tokenizer.json), or texts at their own length: prompt_tokens=None.",
            )
        return self.tokenizer
