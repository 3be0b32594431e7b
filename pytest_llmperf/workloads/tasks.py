"""Tasks with known answers: choices to pick from, or a short text to produce.

Values only; answering is the worker's.
"""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from pytest_llmperf.core.misspelt import SuggestingMeta
from pytest_llmperf.errors import UsageError
from pytest_llmperf.workloads.checks import content_hash, is_count, json_object, read_lines

_EXPECTED = (
    'Expected one object a line: {"prompt": "…", "answer": "…"}, '
    'for a choice with "choices": ["…", "…"] as well.'
)
MAX_NEW_TOKENS = 16
MIN_CHOICES = 2


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

    text: str
    correct: bool


class TaskSet(Struct, metaclass=SuggestingMeta, frozen=True, kw_only=True):
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
        if not is_count(self.max_new_tokens):
            raise UsageError(
                f"TaskSet(max_new_tokens={self.max_new_tokens!r}): "
                "a whole number of at least 1 is needed."
            )

    @classmethod
    def from_jsonl(
        cls, path: str | Path, *, chat: bool = False, max_new_tokens: int = MAX_NEW_TOKENS
    ) -> TaskSet:
        """Read one JSON object a line with strings "prompt" and "answer".

        A choice has a list "choices" too, which holds the answer.

        Raises:
            UsageError: no such file, no items, or a line that is not such an object (named by its
                number).
        """
        path = Path(path)
        lines = read_lines(path, "task file")
        items = tuple(
            _item(line, f"{path}:{i}") for i, line in enumerate(lines, start=1) if line.strip()
        )
        return cls(name=path.name, items=items, chat=chat, max_new_tokens=max_new_tokens)

    @property
    def content_hash(self) -> str:
        """SHA-256 (16 hex digits) of what is asked; never the file's name."""
        return content_hash(
            {"items": self.items, "chat": self.chat, "max_new_tokens": self.max_new_tokens}
        )


def _item(line: str, position: str) -> Task:
    row = json_object(line, position, _EXPECTED)
    for name in ("prompt", "answer"):
        if not _is_text(row.get(name)):
            raise UsageError(f"{position}: no string {name!r} in {line[:80]!r}. {_EXPECTED}")
    answer = row["answer"]
    choices = row.get("choices", [])
    if not isinstance(choices, list) or not all(map(_is_text, choices)):
        raise UsageError(
            f"{position}: 'choices' is {choices!r}, a list of strings is needed. {_EXPECTED}"
        )
    if choices and not _is_choice(answer, choices):
        raise UsageError(
            f"{position}: the answer {answer!r} must be one of at least two different choices, "
            f"which are {choices!r}.",
        )
    return Task(prompt=row["prompt"], answer=answer, choices=tuple(choices))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_choice(answer: str, choices: list[str]) -> bool:
    """Whether the answer is among at least two choices, all of them different."""
    return answer in choices and len(choices) == len(set(choices)) >= MIN_CHOICES
