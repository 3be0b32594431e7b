"""Prompt sets: synthetic token ids, a JSON-lines file, or the bundled real prompts.

Values only; tokenising is the worker's.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from msgspec import Struct

from pytest_llmperf.core.misspelt import SuggestingMeta
from pytest_llmperf.errors import UsageError, did_you_mean
from pytest_llmperf.workloads.checks import content_hash, json_object, read_lines

_EXPECTED = """Expected one object a line, such as {"prompt": "…"}."""

BUNDLED = {"short-chat": "short_chat.jsonl", "agreement": "agreement.jsonl"}

CHAT = "chat"
"""The part of a set whose texts are what a user says."""
LONG = "long"
"""The part of a set whose texts are long: few tokens are decoded behind each of them."""


class PromptSet(Struct, metaclass=SuggestingMeta, frozen=True, kw_only=True):
    """A source of prompts.

    `texts` is empty for synthetic token ids, which are drawn from `seed` and the repetition.

    `chat`: each text is what a user says. Where the model has a chat template and prompts keep
    their own length, it is put into that template; a prompt cut to an exact number of tokens is the
    text alone.
    """

    name: str
    seed: int = 0
    texts: tuple[str, ...] = ()
    chat: bool = False
    parts: tuple[str, ...] = ()

    @classmethod
    def synthetic(cls, seed: int = 0) -> PromptSet:
        """Return random token ids of the model's vocabulary.

        They are fresh for each repetition, and equal for equal seeds.
        """
        return cls(name=f"synthetic:{seed}", seed=seed)

    @classmethod
    def from_jsonl(cls, path: str | Path, *, chat: bool = False) -> PromptSet:
        """Read one JSON object a line with a string "prompt" (or "text"), and perhaps a "part".

        Raises:
            UsageError: no such file, no prompts, or a line that is not such an object (named by its
                number).
        """
        path = Path(path)
        lines = read_lines(path, "prompts file")
        texts, parts = _texts(lines, str(path))
        return cls(name=path.name, texts=texts, chat=chat, parts=parts)

    @classmethod
    def bundled(cls, name: str) -> PromptSet:
        """Return real prompts that ship with the package. Raises UsageError for an unknown name."""
        if name not in BUNDLED:
            near = did_you_mean(name, BUNDLED, otherwise=f"Bundled: {', '.join(BUNDLED)}.")
            raise UsageError(
                f"bundled prompt set {name!r} is not known.{near} "
                "PromptSet.from_jsonl(path) reads your own.",
            )
        file = resources.files("pytest_llmperf.workloads").joinpath("data", BUNDLED[name])
        text = file.read_text(encoding="utf-8")
        texts, parts = _texts(text.split("\n"), name)
        return cls(name=name, texts=texts, chat=True, parts=parts)

    def part(self, index: int) -> str:
        """Return what text `index` stands for; empty in a set without parts."""
        return self.parts[index] if self.parts else ""

    @property
    def content_hash(self) -> str:
        """SHA-256 (16 hex digits) of what is asked: the seed, or the texts and their form.

        Never the file's name.
        """
        if not self.texts:
            return content_hash({"seed": self.seed})
        parts = {"parts": self.parts} if self.parts else {}
        return content_hash({"texts": self.texts, "chat": self.chat, **parts})


def _texts(lines: list[str], source: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the texts, and the part of each; no parts where no line names one."""
    rows = [
        (json_object(line, f"{source}:{i}", _EXPECTED), line, f"{source}:{i}")
        for i, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not rows:
        raise UsageError(f"prompts file {source!r} holds no prompt. {_EXPECTED}")
    texts = tuple(_text(*row) for row in rows)
    parts = tuple(str(row.get("part", "")) for row, _line, _position in rows)
    return texts, parts if any(parts) else ()


def _text(row: dict[str, Any], line: str, position: str) -> str:
    text = row.get("prompt", row.get("text"))
    if not isinstance(text, str) or not text.strip():
        raise UsageError(
            f"{position}: no string 'prompt' (or 'text') in {line[:80]!r}. {_EXPECTED}"
        )
    return text
