"""Task sets: what a file may hold, and that a broken line is named by its number."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.errors import UsageError
from pytest_llmperf.workloads import Task, TaskSet

TEXTS = st.text(min_size=1).filter(str.strip)


def write(tmp_path, *lines):
    file = tmp_path / "tasks.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def test_a_file_gives_its_items_in_order(tmp_path):
    file = write(
        tmp_path,
        json.dumps({"prompt": "2 + 2 =", "answer": "4"}),
        "",
        json.dumps({"prompt": "Sky?", "answer": " blue", "choices": [" blue", " red"]}),
    )
    tasks = TaskSet.from_jsonl(file, max_new_tokens=3)
    assert tasks.items == (
        Task(prompt="2 + 2 =", answer="4"),
        Task(prompt="Sky?", answer=" blue", choices=(" blue", " red")),
    )
    assert (tasks.name, tasks.max_new_tokens, tasks.chat) == ("tasks.jsonl", 3, False)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not a JSON object"),
        ("[1]", "no string 'prompt'"),
        ('{"prompt": "a"}', "no string 'answer'"),
        ('{"prompt": "a", "answer": 4}', "no string 'answer'"),
        ('{"prompt": " ", "answer": "b"}', "no string 'prompt'"),
        ('{"prompt": "a", "answer": "b", "choices": "bc"}', "a list of strings"),
        ('{"prompt": "a", "answer": "b", "choices": ["b", 1]}', "a list of strings"),
        ('{"prompt": "a", "answer": "b", "choices": ["c", "d"]}', "must be one of"),
        ('{"prompt": "a", "answer": "b", "choices": ["b"]}', "at least two"),
        ('{"prompt": "a", "answer": "b", "choices": ["b", "b"]}', "different"),
    ],
)
def test_a_broken_line_is_named_by_its_number(tmp_path, line, reason):
    file = write(tmp_path, json.dumps({"prompt": "a", "answer": "b"}), "", line)
    with pytest.raises(UsageError, match=rf"tasks\.jsonl:3: .*{reason}"):
        TaskSet.from_jsonl(file)


def test_a_file_that_is_not_there_or_empty_is_an_error(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.jsonl' cannot be read"):
        TaskSet.from_jsonl(tmp_path / "gone.jsonl")
    with pytest.raises(UsageError, match=r"'tasks\.jsonl' holds no item"):
        TaskSet.from_jsonl(write(tmp_path, ""))
    with pytest.raises(UsageError, match="max_new_tokens=0"):
        TaskSet(name="t", items=(Task(prompt="a", answer="b"),), max_new_tokens=0)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5), st.text())
def test_the_content_hash_is_of_what_is_asked_and_not_of_the_name(rows, name):
    items = tuple(Task(prompt=prompt, answer=answer) for prompt, answer in rows)
    one = TaskSet(name="one", items=items)
    assert one.content_hash == TaskSet(name=name, items=items).content_hash
    assert one.content_hash != TaskSet(name="one", items=items, chat=True).content_hash
    assert one.content_hash != TaskSet(name="one", items=(*items, items[0])).content_hash
