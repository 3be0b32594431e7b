"""Public traces and conversations: their own columns, what is shared, and lines that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_llmperf import Conversations, Serve, Traffic, Turn
from pytest_llmperf.errors import UsageError
from pytest_llmperf.workloads import describe_serve, recorded_serve

MOONCAKE = {"timestamp": 27482, "input_length": 600, "output_length": 52, "hash_ids": [46, 47]}
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n{}\n"
BURST = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,{},1087,Conversation log\n"
)
SHAREGPT = [
    {"id": "1", "conversations": [
        {"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"},
        {"from": "human", "value": "More"}]},
    {"id": "2", "conversations": [{"from": "gpt", "value": "Only me"}]},
]  # fmt: skip


@pytest.fixture
def file(tmp_path):
    """`file(text)` writes one."""

    def write(text: str) -> Path:
        path = tmp_path / "trace"
        path.write_text(text)
        return path

    return write


def test_mooncake_has_milliseconds_lengths_and_blocks(file):
    """Times are seconds from the first request."""
    rows = [MOONCAKE, MOONCAKE | {"timestamp": 30482, "hash_ids": [46, 48]}]
    trace = Traffic.from_mooncake(file("\n".join(map(json.dumps, rows))))
    assert trace.timestamps_s == (0, 3)
    assert (trace.prompt_tokens, trace.output_tokens) == ((600, 600), (52, 52))
    assert trace.blocks == ((46, 47), (46, 48))
    assert Serve(traffic=trace).due_s() == (0, 3)


def test_azure_and_burstgpt_by_their_columns(file):
    """Seven digits of a second; requests that failed at BurstGPT's are left out."""
    azure = Traffic.from_azure(file(AZURE.format("2023-11-16 18:15:50.9951690,396,109")))
    assert azure.timestamps_s == pytest.approx((0, 4.314579))
    assert (azure.prompt_tokens, azure.output_tokens) == ((374, 396), (44, 109))
    burst = Traffic.from_burstgpt(file(BURST.format(230)))
    assert (burst.timestamps_s, burst.output_tokens) == ((0, 40), (18, 230))
    assert Traffic.from_burstgpt(file(BURST.format(0))).prompt_tokens == (472,)


@pytest.mark.parametrize(
    ("read", "text", "words"),
    [
        (Traffic.from_mooncake, json.dumps(MOONCAKE | {"hash_ids": [1]}), "'hash_ids' must have"),
        (Traffic.from_mooncake, json.dumps(MOONCAKE | {"input_length": 0}), "'input_length' is 0"),
        (Traffic.from_mooncake, json.dumps(MOONCAKE | {"timestamp": "x"}), "'timestamp' is 'x'"),
        (Traffic.from_mooncake, "", "holds no request"),
        (Traffic.from_azure, "a,b\n1,2\n", "column 'TIMESTAMP' is missing"),
        (Traffic.from_azure, AZURE.format("noon,1,2"), "TIMESTAMP 'noon' is not a time"),
        (Traffic.from_azure, AZURE.format("2023-11-16 18:15:40.0,1,2"), "out of order"),
        (Traffic.from_azure, AZURE.format("2023-11-16 18:15:50.0,many,2"), "is 'many'"),
        (Traffic.from_burstgpt, "Timestamp,Model\n", "column 'Request tokens' is missing"),
        (Conversations.from_sharegpt, "{}", "a list of objects"),
        (Conversations.from_sharegpt, "[{}]", "no object has a list"),
        (Conversations.from_jsonl, '{"turns": [3]}', "no list 'turns'"),
        (Conversations.from_jsonl, '{"turns": [{}]}', "needs 'text' or 'prompt_tokens'"),
        (
            Conversations.from_jsonl,
            '{"turns": [{"text": "a", "after": -1}]}',
            "not a number of seconds",
        ),
        (Conversations.from_jsonl, '{"turns": [{"text": "a", "role": "cat"}]}', "'cat' is not kn"),
        (Conversations.from_jsonl, '{"turns": []}', "one without a turn"),
    ],
)
def test_a_line_that_is_none_is_named(file, read, text, words):
    """With what was expected there."""
    with pytest.raises(UsageError, match=words):
        read(file(text))


def test_sharegpt_keeps_what_users_said(file):
    """The server's own answers take the model's place; who said nothing has no conversation."""
    talks = Conversations.from_sharegpt(file(json.dumps(SHAREGPT)), think_s=2)
    assert talks.turns == ((Turn(text="Hello"), Turn(text="More", after_s=2)),)


def test_agents_have_tools_times_to_think_and_starts(file):
    """A conversation a line, which starts when its trace says."""
    line = {"timestamp": 1.5, "turns": [{"text": "Find it", "output_tokens": 8},
            {"prompt_tokens": 200, "role": "tool", "after": 0.5}]}  # fmt: skip
    talks = Conversations.from_jsonl(file(json.dumps(line)), system="You have tools.")
    assert talks.starts_s == (1.5,)
    assert talks.turns[0][1] == Turn(prompt_tokens=200, role="tool", after_s=0.5)
    work = Serve(conversations=talks)
    assert work.starts_s() == (0.0,)
    assert describe_serve(work) == "serve trace 1 conversations"


def test_conversations_go_on_record_by_their_hash():
    """Not what is said. A load without any looks as it did before there were some."""
    talks = Conversations.synthetic(3, turns=2, prompt_tokens=5, system_tokens=20)
    recorded = recorded_serve(Serve(conversations=talks, concurrency=2))["conversations"]
    assert (recorded["turns"], recorded["content"]) == (6, talks.content_hash)
    assert "turns" in recorded
    other = Conversations.synthetic(3, turns=2, prompt_tokens=5, system_tokens=21)
    assert other.content_hash != talks.content_hash
    plain = recorded_serve(Serve(rate=1, duration=1, traffic=Traffic(name="t", timestamps_s=(0,))))
    assert "conversations" not in plain
    assert "blocks" not in plain["traffic"]


@pytest.mark.parametrize(
    "arguments",
    [{"traffic": Traffic(name="t", timestamps_s=(0.0,))}, {"generator": "aiperf", "requests": 3}],
)
def test_conversations_are_a_load_of_their_own(arguments):
    """Neither a trace nor another generator sends them; nor do they start by themselves."""
    talks = Conversations.synthetic(1, turns=1)
    with pytest.raises(UsageError, match="Keep one"):
        Serve(conversations=talks, **arguments, **({} if "traffic" in arguments else {"rate": 1}))
    with pytest.raises(UsageError, match="how is it loaded"):
        Serve(conversations=talks)
