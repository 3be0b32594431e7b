"""`lora:PATH`, `llm.using` and `llm.accuracy` as tests see them, on the scripted engine."""

from __future__ import annotations

import json

import pytest

TWO_ADAPTERS = "lora:adapters/a+lora:adapters/b"

USING = f"""
@pytest.mark.llmperf(strategy="{TWO_ADAPTERS}")
def test_speed(llm):
    one, other = llm.using("b").compare(llm.using("base"), WORK)
    assert one.throughput >= 0.9 * other.throughput
    llm.run(WORK)
"""

TASKS = """
from pytest_llmperf import TaskSet

TASKS = TaskSet.from_jsonl("tasks.jsonl")

@pytest.mark.llmperf(strategy="fp16")
def test_accuracy(llm, baseline):
    ours, ref = llm.accuracy(TASKS), baseline.accuracy(TASKS)
    assert ours.correct.count(True) == 8
    assert ref.accuracy >= 0.5
    assert ours.recovery(ref) >= 0.3
    assert len(ours.wrong()) == 2
    assert ours.wrong()[0][1:] == ("no", "yes")
"""


@pytest.fixture
def adapters(pytester):
    """Two folders that look like adapters."""
    for name in ("a", "b"):
        folder = (
            pytester.mkdir("adapters") / name if name == "a" else pytester.path / "adapters" / name
        )
        folder.mkdir()
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / file).write_text("{}")


def test_adapters_are_switched_compared_and_recorded_by_name(project, run, lines, adapters):
    """The paths of this machine are in no record's strategy; which adapter was used is."""
    project(USING)
    run("--llmperf-json=out.jsonl").assert_outcomes(passed=1)
    found = {record["strategy"]: record["effective"]["adapters"] for record in lines()}
    assert found == {
        f"{TWO_ADAPTERS} (using b)": ["b"],
        f"{TWO_ADAPTERS} (using base)": [],
        TWO_ADAPTERS: ["a"],
    }


@pytest.mark.parametrize(
    ("strategy", "call", "reason"),
    [
        ("fp32", 'llm.using("a")', "*it loads none. Add 'lora:PATH'*"),
        (TWO_ADAPTERS, 'llm.using("c")', "*adapter 'c' is not loaded.*There are: a, b, base*"),
        (
            "lora:adapters/a:merged",
            'llm.using("a")',
            "*it cannot be switched. Leave out ':merged'*",
        ),
        (
            TWO_ADAPTERS,
            'llm.using("a", "b").agreement(llm)',
            "*rows under different adapters are different models*",
        ),
        (
            "fp32",
            'llm.accuracy("tasks.jsonl")',
            "*a task set is needed, for example TaskSet.from_jsonl(path)*",
        ),
    ],
)
def test_what_cannot_be_asked_says_what_could_be(project, run, adapters, strategy, call, reason):
    project(f"""
@pytest.mark.llmperf(strategy="{strategy}")
def test_it(llm):
    {call}
""")
    run().stdout.fnmatch_lines([reason])


def test_an_adapter_that_is_not_there_is_an_error_before_anything_loads(project, run):
    project("""
@pytest.mark.llmperf(strategy="lora:adapters/gone")
def test_it(llm):
    llm.run(WORK)
""")
    result = run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*'lora:adapters/gone': there is no folder *adapters/gone*"])


def test_an_assistant_whose_name_means_nothing_is_an_error_before_anything_loads(project, run):
    project("""
@pytest.mark.llmperf(strategy="assisted:smollm2-153m")
def test_it(llm):
    llm.run(WORK)
""")
    result = run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*model 'smollm2-153m' is not known. Did you mean 'smollm2-135m'?*"]
    )


def test_a_broken_promise_of_an_adapter_is_that_test_s_error(project, run, adapters):
    """Negative control: the engine merges what was to stay apart."""
    project(
        """
@pytest.mark.llmperf(strategy="lora:adapters/a")
def test_it(llm):
    llm.run(WORK)
""",
        script="lie=merge_adapters:1",
    )
    result = run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*strategy 'lora' is not in effect: adapter 'a' is merged, asked for the other*"]
    )


def test_a_task_set_is_answered_compared_and_recorded(project, run, lines, pytester):
    """Ten items, of which a model of quality 0.8 has eight right."""
    items = [
        {"prompt": f"Is {i} even or odd, yes or no?", "answer": "yes", "choices": ["yes", "no"]}
        for i in range(10)
    ]
    (pytester.path / "tasks.jsonl").write_text("\n".join(map(json.dumps, items)))
    project(TASKS, script="fp16/quality=0.8")
    run("--llmperf-json=out.jsonl").assert_outcomes(passed=1)
    values = {record["strategy"]: record["metrics"][0] for record in lines()}
    assert values["fp16"]["name"] == "task.accuracy"
    assert values["fp16"]["value"] == pytest.approx(0.8)
    assert values["fp32"]["value"] == pytest.approx(1.0)
    assert 0 < values["fp16"]["low"] < 0.8 < values["fp16"]["high"] < 1
