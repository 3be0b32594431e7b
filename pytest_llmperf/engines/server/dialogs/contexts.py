"""The context of a conversation: what was said and answered so far, as the next request has it.

A chat is its messages, which the server puts into its own template. Other protocols take what came
so far as one prompt, in ids where the server takes them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from pytest_llmperf.engines.server.prompts import Prompt, Prompts
from pytest_llmperf.workloads import Conversations, Turn


@dataclass
class Context:
    """One conversation up to now. `number` and `repetition` decide what its drawn tokens are."""

    prompts: Prompts
    talks: Conversations
    repetition: int
    number: int
    ids: list[int] = field(default_factory=list)
    text: str = ""
    messages: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin with what all conversations share, whatever their number and repetition."""
        if self.talks.system or self.talks.system_tokens:
            said = self._said(self.talks.system, self.talks.system_tokens, "system")
            self._add("system", said)

    def say(self, turn: Turn, at: int) -> Prompt:
        """Add a turn, number `at` of the conversation; return the prompt of its request.

        Raises UsageError where tokens are to be drawn and there is no tokenizer.
        """
        key = f"{self.repetition}|{self.number}|{at}"
        self._add(turn.role, self._said(turn.text, turn.prompt_tokens, key))
        return Prompt(text=self.text, ids=tuple(self.ids), messages=tuple(self.messages))

    def answer(self, text: str) -> None:
        """Add what the server answered."""
        ids = self.prompts.encode(text, special=False)
        self._add("assistant", Prompt(text=text, ids=tuple(ids)))

    def _said(self, text: str, n_tokens: int, key: str) -> Prompt:
        if text:
            return Prompt(text=text, ids=tuple(self.prompts.encode(text, special=not self.text)))
        return self.prompts.drawn(f"{self.talks.seed}|{key}", n_tokens)

    def _add(self, role: str, said: Prompt) -> None:
        self.ids += said.ids
        self.text = f"{self.text} {said.text}" if self.text else said.text
        # A tool's words are a user's to a model that was not told of tools.
        self.messages.append({"role": "user" if role == "tool" else role, "content": said.text})


def block_prompt(
    prompts: Prompts, blocks: tuple[int, ...], block_tokens: int, n_tokens: int
) -> Prompt:
    """Return a prompt of so many tokens whose blocks are those of equal hashes elsewhere.

    Raises UsageError without a tokenizer.
    """
    plain = prompts.plain_ids()
    ids: list[int] = []
    for block in blocks:
        draw = random.Random(f"block|{block}")  # noqa: S311 - prompts, not secrets
        ids += draw.choices(plain, k=block_tokens)
        if len(ids) >= n_tokens:
            break
    return prompts.of_ids(ids[:n_tokens])
