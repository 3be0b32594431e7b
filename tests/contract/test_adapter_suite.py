"""The example suite of adapters in small: its data, and its training script.

The model of these tests trains in seconds.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.engines.transformers import TransformersEngine
from pytest_llmperf.workloads import TaskSet

SUITE = Path(__file__).parents[2] / "example_suites" / "adapters"
TRAIN, TEST = (TaskSet.from_jsonl(SUITE / "data" / f"{name}.jsonl") for name in ("train", "test"))
QUIET = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def words(prompt: str) -> frozenset[str]:
    """The message's own words."""
    return frozenset(re.findall(r"[a-z0-9]+", prompt.partition(":")[2].rpartition("\n")[0].lower()))


def shared(one: str, other: str) -> float:
    return len(words(one) & words(other)) / len(words(one) | words(other))


def test_no_message_of_the_test_is_nearly_one_of_the_training():
    """Less than half of the words in common, for every pair."""
    nearest = max(shared(a.prompt, b.prompt) for a in TRAIN.items for b in TEST.items)
    assert 0.1 < nearest < 0.5
    assert shared(TRAIN.items[0].prompt, TRAIN.items[0].prompt) == 1.0, (
        "the control: the measure sees a copy"
    )


def test_the_answers_are_balanced():
    """A model that always says the same has a fifth of them right."""
    for tasks in (TRAIN, TEST):
        counts = {
            choice: sum(item.answer == choice for item in tasks.items)
            for choice in tasks.items[0].choices
        }
        assert set(counts.values()) == {30}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a random llama of two layers, and a tokenizer with the words of the data."""
    folder = tmp_path_factory.mktemp("tiny-library")
    pieces = pre_tokenizers.Split(Regex(r"\s+|\w+|[^\w\s]"), "isolated")
    text = [
        piece
        for item in TRAIN.items
        for piece, _ in pieces.pre_tokenize_str(item.prompt + item.answer)
    ]
    spaced = {f" {piece}" for piece in text} | set(text)
    special = {"pad_token": "<pad>", "eos_token": "<end>", "unk_token": "<what>"}
    vocabulary = {
        piece: i
        for i, piece in enumerate(
            [*special.values(), *sorted(spaced | set(TRAIN.items[0].choices))]
        )
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, special["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+|[^\w\s]|\n"), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    set_seed(0)
    shape = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    lively = {"num_key_value_heads": 2, "initializer_range": 0.2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(vocabulary), **lively, **shape)).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def training():
    """The suite's script as a module."""
    spec = importlib.util.spec_from_file_location("adapter_training", SUITE / "training.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def right(model: Path, tasks: TaskSet, **fields) -> int:
    """Items answered correctly."""
    ref = ModelRef(name=str(model), kind="folder", location=str(model))
    session = TransformersEngine().open(LoadPlan(model=ref, weights_dtype="float32", **fields))
    return sum(answer.correct for answer in session.answer_tasks(tasks, 50))


@QUIET
@pytest.mark.parametrize("kind", ["lora", "qlora", "full", "qat"])
def test_each_kind_of_training_learns_the_task(kind, tiny, training, tmp_path, monkeypatch):
    """Its own items, of which an untrained model has about a fifth right.

    In seconds, on a random model.
    """
    out = tmp_path / f"tiny-{kind}"
    adapter = kind in ("lora", "qlora")
    monkeypatch.setitem(training.LEARNING_RATE, kind, 1e-2)
    arguments = [
        kind,
        str(out),
        "--model",
        str(tiny),
        "--epochs",
        "20" if adapter else "5",
        "--batch",
        "15",
    ]
    monkeypatch.setattr(sys, "argv", ["training.py", *arguments])
    training.main()
    before = right(tiny, TRAIN)
    after = right(tiny, TRAIN, adapters=(str(out),)) if adapter else right(out, TRAIN)
    assert before <= 60
    assert after >= before + 15
    if adapter:
        assert json.loads((out / "adapter_config.json").read_text())[
            "base_model_name_or_path"
        ] == str(tiny)


def test_the_control_sees_an_adapter_that_learned_nothing(tiny, training, tmp_path, monkeypatch):
    """No epochs: peft's second matrix is zero, and every answer stays."""
    out = tmp_path / "untrained"
    monkeypatch.setattr(
        sys, "argv", ["training.py", "lora", str(out), "--model", str(tiny), "--epochs", "0"]
    )
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
        training.main()
    assert right(tiny, TRAIN, adapters=(str(out),)) == right(tiny, TRAIN)
