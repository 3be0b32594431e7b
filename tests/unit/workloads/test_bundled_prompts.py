"""The prompts that ship with the package."""

from __future__ import annotations

import json
from collections import Counter
from importlib import resources

import pytest
from msgspec import structs

from pytest_llmperf.errors import UsageError
from pytest_llmperf.workloads import PromptSet

SHORT_CHAT = resources.files("pytest_llmperf.workloads").joinpath("data", "short_chat.jsonl")


def rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in SHORT_CHAT.read_text(encoding="utf-8").splitlines()]


def test_the_short_chat_set_has_24_different_prompts():
    """Bundled prompts arrive as texts, none twice."""
    prompts = PromptSet.bundled("short-chat")
    assert len(prompts.texts) == len(set(prompts.texts)) == 24


def test_the_short_chat_set_is_the_one_that_stored_runs_were_made_with():
    """A changed text changes the identity of every stored run: make a new file instead."""
    assert PromptSet.bundled("short-chat").content_hash == "7c0a95484bdb08ed"


def test_every_line_states_its_licence_and_kind():
    """Each line is fit to be copied on its own."""
    assert {row["license"] for row in rows()} == {"CC0-1.0"}
    assert {row["kind"] for row in rows()} == {
        "fact",
        "explain",
        "code",
        "translate",
        "summarise",
        "advice",
        "reason",
    }


def test_prompts_are_short_questions_of_one_paragraph():
    """Between ten and sixty tokens is between forty and 240 characters of English."""
    assert all(40 <= len(row["prompt"]) <= 240 and "\n" not in row["prompt"] for row in rows())


def test_an_unknown_set_is_answered_with_the_known_ones():
    """A misspelt name is suggested."""
    with pytest.raises(
        UsageError, match=r"'short-chta' is not known\. Did you mean 'short-chat'\?"
    ):
        PromptSet.bundled("short-chta")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("not json", ":2: not a JSON object"),
        ('{"question": "why?"}', ":2: no string 'prompt'"),
        ('{"prompt": "  "}', ":2: no string 'prompt'"),
    ],
)
def test_a_broken_line_is_named_by_its_number(tmp_path, line, reason):
    """A line without a prompt is an error, never a skipped prompt."""
    path = tmp_path / "mine.jsonl"
    path.write_text(f'{{"prompt": "Why is the sky blue?"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(UsageError, match=reason):
        PromptSet.from_jsonl(path)


def test_the_same_texts_under_another_name_are_the_same_content(tmp_path):
    """The hash is of what is asked, not of where it lies; one other word changes it."""
    copy, other = tmp_path / "copy.jsonl", tmp_path / "other.jsonl"
    copy.write_text(SHORT_CHAT.read_text(encoding="utf-8"), encoding="utf-8")
    other.write_text(
        SHORT_CHAT.read_text(encoding="utf-8").replace("moon", "Moon"), encoding="utf-8"
    )
    assert (
        PromptSet.from_jsonl(copy, chat=True).content_hash
        == PromptSet.bundled("short-chat").content_hash
    )
    assert (
        PromptSet.from_jsonl(other, chat=True).content_hash
        != PromptSet.bundled("short-chat").content_hash
    )


def test_the_agreement_set_has_parts_and_is_the_one_that_was_published():
    """A changed text is another question: make a new file instead."""
    prompts = PromptSet.bundled("agreement")
    assert Counter(prompts.parts) == {"chat": 16, "scripts": 5, "code": 3, "long": 4}
    assert len(set(prompts.texts)) == 28
    assert prompts.part(27) == "long"
    assert PromptSet.bundled("short-chat").part(0) == ""
    assert prompts.content_hash == "74374eed2df9976d"
    alike = structs.replace(prompts, parts=())
    assert alike.content_hash != prompts.content_hash, "parts change what is asked"


def test_the_parts_of_a_file_are_read(tmp_path):
    """Lines without one have an empty part; a file without any has no parts."""
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a", "part": "code"}\n{"prompt": "b"}\n', encoding="utf-8")
    assert PromptSet.from_jsonl(file).parts == ("code", "")
    file.write_text('{"prompt": "a"}\n', encoding="utf-8")
    assert PromptSet.from_jsonl(file).parts == ()
