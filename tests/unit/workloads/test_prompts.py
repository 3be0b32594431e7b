"""JSON lines end with a line feed, and with nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_llmperf import PromptSet
from pytest_llmperf.errors import UsageError


def test_a_prompt_may_hold_every_other_line_separator(tmp_path: Path) -> None:
    """JSON allows U+2028, U+2029 and U+0085 unescaped inside a text.

    A Windows line end is blank space.
    """
    text = "one\u2028two\u2029three\x85four"
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(f'{{"prompt": "{text}"}}\r\n{{"prompt": "five"}}\r\n'.encode())
    assert PromptSet.from_jsonl(file).texts == (text, "five")


def test_a_bad_line_is_named_by_its_number(tmp_path: Path) -> None:
    """Counted in line feeds, as editors do."""
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a\u2028b"}\n\n{"prompt": 3}\n', encoding="utf-8")
    with pytest.raises(UsageError, match=r"prompts\.jsonl:3"):
        PromptSet.from_jsonl(file)
