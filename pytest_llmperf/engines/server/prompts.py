"""Prompts of requests: drawn or from texts, of an exact length.

None comes twice unless that is asked for.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tokenizers import Tokenizer

from pytest_llmperf.errors import UsageError
from pytest_llmperf.workloads import PromptSet

_TRIES = 8


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What is sent: a text, and the ids that our tokenizer makes of it, where there is one.

    `messages` are those of a chat that has several; none stands for the text as a user's.
    """

    text: str
    ids: tuple[int, ...] = ()
    messages: tuple[dict[str, str], ...] = ()


@dataclass
class Prompts:
    """Makes prompts with the model's tokenizer.

    With `chat` the server puts them into its own template.
    """

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
        """Return the prompt of request `index` of a repetition.

        With `repeat`, texts come round unchanged. Raises UsageError where there is no tokenizer to
        make or to cut it with.
        """
        if not prompts.texts:
            return self._draw_prompt(f"{prompts.seed}|{repetition}|{index}", length or 1)
        first_use = not repetition and index < len(prompts.texts)
        prefix = "" if repeat or first_use else f"[{repetition}.{index}] "
        if length is not None:
            return self._cut_prompt(prompts, index, length, prefix)
        text = prefix + prompts.texts[index % len(prompts.texts)]
        return Prompt(text=text, ids=tuple(self.encode(text)))

    def drawn(self, key: str, length: int) -> Prompt:
        """Return so many random tokens, the same for the same key. Raises UsageError."""
        return self._draw_prompt(key, length)

    def of_ids(self, ids: list[int]) -> Prompt:
        """Return ids as a prompt, with their text."""
        tokenizer = self._require_tokenizer("tokens of a trace are drawn with")
        return Prompt(text=tokenizer.decode(ids), ids=tuple(ids))

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the ids of a text; none without a tokenizer."""
        if self.tokenizer is None:
            return []
        return list(self.tokenizer.encode(text, add_special_tokens=special).ids)

    def count(self, text: str) -> int | None:
        """Return the tokens of an output as our tokenizer counts them; None without one."""
        return None if self.tokenizer is None else len(self.encode(text, special=False))

    def _draw_prompt(self, key: str, length: int) -> Prompt:
        """Return random ids, as text that our tokenizer reads as exactly so many.

        The ids are cut and filled up until it does.
        """
        tokenizer = self._require_tokenizer("synthetic prompts are made with")
        draw = random.Random(key)  # noqa: S311 - prompts, not secrets
        plain = self.plain_ids()
        ids: list[int] = []
        for _ in range(_TRIES):
            ids = (ids + draw.choices(plain, k=length))[:length]
            text = tokenizer.decode(ids)
            reread_ids = self.encode(text, special=False)
            if len(reread_ids) == length:
                return Prompt(text=text, ids=tuple(reread_ids))
            ids = reread_ids[:length]
        return Prompt(text=tokenizer.decode(ids), ids=tuple(ids))

    def _cut_prompt(self, prompts: PromptSet, index: int, length: int, prefix: str) -> Prompt:
        """Return text `index`, continued with those that follow it, cut to `length` ids."""
        tokenizer = self._require_tokenizer("an exact length is cut with")
        encoded = self._encoded_texts(prompts)
        ids = self.encode(prefix) if prefix else []
        while len(ids) < length:
            ids = ids + encoded[index % len(encoded)]
            index += 1
        return Prompt(text=tokenizer.decode(ids[:length]), ids=tuple(ids[:length]))

    def _encoded_texts(self, prompts: PromptSet) -> list[list[int]]:
        """Return the ids of each text of a set, encoded once."""
        if prompts.content_hash not in self._encoded:
            self._encoded[prompts.content_hash] = [self.encode(text) for text in prompts.texts]
        return self._encoded[prompts.content_hash]

    def plain_ids(self) -> list[int]:
        """Return every id that is not special."""
        if not self._plain:
            tokenizer = self._require_tokenizer("synthetic prompts are made with")
            added = tokenizer.get_added_tokens_decoder()
            special = {i for i, token in added.items() if token.special}
            self._plain = [i for i in range(tokenizer.get_vocab_size()) if i not in special]
        return self._plain

    def _require_tokenizer(self, purpose: str) -> Tokenizer:
        if self.tokenizer is None:
            raise UsageError(
                f"{purpose} the model's tokenizer, and there is none here. "
                "Give option 'tokenizer' (a folder with a tokenizer.json), "
                "or texts at their own length: prompt_tokens=None.",
            )
        return self.tokenizer
