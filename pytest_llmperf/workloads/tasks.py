"""Tasks with known answers: choices to pick from, or a short text to produce.

Values only; answering is the worker's.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from pytest_llmperf.errors import UsageError

_EXPECTED = 'Expected one object a line: {"prompt": "…", "answer": "…"}, for a choice with "choices": ["…", "…"] as well.'
MAX_NEW_TOKENS = 16


class Task(Struct, frozen=True, kw_only=True):
    """One item.

    With `choices` the answer is one of them, and the most likely one counts; without, the greedy
    text does.
    """

    prompt: str
    answer: str
    choices: tuple[str, ...] = ()


class TaskAnswer(Struct, frozen=True, kw_only=True):
    """What a model answered to one item, and whether that is the item's answer."""

    given: str
    correct: bool


class TaskSet(Struct, frozen=True, kw_only=True):
    """Items that a model answers, in order.

    `chat`: each prompt is what a user says, and is put into the model's chat template where it has
    one. A text answer is read from at most `max_new_tokens` greedy tokens, up to the end of their
    first line.
    """

    name: str
    items: tuple[Task, ...]
    chat: bool = False
    max_new_tokens: int = MAX_NEW_TOKENS

    def __post_init__(self) -> None:
        if not self.items:
            raise UsageError(f"task set {self.name!r} holds no item. {_EXPECTED}")
        if (
            not isinstance(self.max_new_tokens, int)
            or isinstance(self.max_new_tokens, bool)
            or self.max_new_tokens < 1
        ):
            raise UsageError(
                f"TaskSet(max_new_tokens={self.max_new_tokens!r}): a whole number of at least 1 is needed."
            )

    @classmethod
    def from_jsonl(
        cls, path: str | Path, *, chat: bool = False, max_new_tokens: int = MAX_NEW_TOKENS
    ) -> TaskSet:
        """One JSON object a line with strings "prompt" and "answer", and for a choice a list "choices" that holds the answer.

        Raises:
            UsageError: no such file, no items, or a line that is not such an object (named by its number).

        """
        path = Path(path)
        try:
            # Not splitlines: JSON texts may hold U+2028.
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"task file {str(path)!r} cannot be read: {error}. Give a UTF-8 JSON-lines file."
            ) from error
        items = tuple(
            _item(line, f"{path}:{i}") for i, line in enumerate(lines, start=1) if line.strip()
        )
        return cls(name=path.name, items=items, chat=chat, max_new_tokens=max_new_tokens)

    @property
    def content_hash(self) -> str:
        """SHA-256 (16 hex digits) of what is asked; never the file's name."""
        content = msgspec.json.encode(
            {"items": self.items, "chat": self.chat, "max_new_tokens": self.max_new_tokens}
        )
        return hashlib.sha256(content).hexdigest()[:16]


def _item(line: str, where: str) -> Task:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: not a JSON object ({error}). {_EXPECTED}") from error
    fields: dict[str, Any] = row if isinstance(row, dict) else {}
    for name in ("prompt", "answer"):
        if not isinstance(fields.get(name), str) or not fields[name].strip():
            raise UsageError(f"{where}: no string {name!r} in {line[:80]!r}. {_EXPECTED}")
    choices = fields.get("choices", [])
    if not isinstance(choices, list) or not all(
        isinstance(choice, str) and choice.strip() for choice in choices
    ):
        raise UsageError(
            f"{where}: 'choices' is {choices!r}, a list of strings is needed. {_EXPECTED}"
        )
    if choices and (
        len(set(choices)) != len(choices) or len(choices) < 2 or fields["answer"] not in choices  # noqa: PLR2004
    ):
        raise UsageError(
            f"{where}: the answer {fields['answer']!r} must be one of at least two different choices, which are {choices!r}.",
        )
    return Task(prompt=fields["prompt"], answer=fields["answer"], choices=tuple(choices))
