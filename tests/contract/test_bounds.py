"""Prompts, outputs and ids that a model has no room for are refused before anything runs."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", exc_type=ModuleNotFoundError)

from support.generating import loaded, tiny_llama

from pytest_llmperf.engines.models.padding import padding_id, with_usable_padding
from pytest_llmperf.engines.outputs.bounds import Bounds, context_length, embedding_rows
from pytest_llmperf.engines.outputs.inputs import Vocabulary
from pytest_llmperf.engines.transformers.loaded import TransformersModel
from pytest_llmperf.errors import UsageError
from pytest_llmperf.workloads import Batch, Decode, Prefill, PromptSet, Task, TaskSet


def tiny_gpt2() -> transformers.GPT2LMHeadModel:
    """64 learned positions."""
    config = transformers.GPT2Config(
        vocab_size=320,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.GPT2LMHeadModel(config).eval()


class Letters:
    """A tokenizer of one id a letter."""

    all_special_ids = ()
    pad_token_id = 0
    eos_token_id = 2
    padding_side = "left"

    def __len__(self) -> int:
        return 2000

    def __call__(self, texts, **_):
        one = isinstance(texts, str)
        rows = [[ord(letter) for letter in text] for text in ([texts] if one else texts)]
        return {"input_ids": rows[0] if one else rows}

    def decode(self, ids) -> str:
        return "".join(map(chr, ids))


def opened(model, tokenizer=None) -> TransformersModel:
    return TransformersModel(replace(loaded(model), tokenizer=tokenizer))


@pytest.mark.parametrize(("make", "positions"), [(tiny_gpt2, 64), (tiny_llama, 256)])
def test_a_prompt_and_output_past_the_context_are_refused_with_both_numbers(make, positions):
    """Learned positions and rotary ones; the last output token needs no position."""
    session = opened(make())
    last = session.run(Decode(prompt_tokens=positions - 3, new_tokens=4), 0)
    assert len(last.trace.requests) == 1
    with pytest.raises(
        UsageError,
        match=rf"prompt of {positions - 2} tokens with 4 new ones needs {positions + 1} positions, "
        rf"and \w+ has {positions} ",
    ):
        session.run(Decode(prompt_tokens=positions - 2, new_tokens=4), 0)


def test_every_way_to_run_a_model_is_held_to_its_context(tmp_path):
    """Prefill, requests of a batch, memory, references, comparisons, tasks of both kinds."""
    session = opened(tiny_gpt2(), Letters())
    texts = PromptSet(name="t", texts=("a" * 60,))
    choices = TaskSet(
        name="c", items=(Task(prompt="a" * 63, choices=("bbb", "ccc"), answer="bbb"),)
    )
    lines = TaskSet(name="l", items=(Task(prompt="a" * 60, answer="b"),), max_new_tokens=8)
    path = str(tmp_path / "reference.safetensors")
    opened(tiny_llama(), Letters()).make_reference(texts, 8, 1, path)
    for attempt in (
        lambda: session.run(Prefill(prompt_tokens=65), 0),
        lambda: session.run(Batch(requests=2, prompt_tokens=60, max_new_tokens=8), 0),
        lambda: session.read_memory(Decode(prompt_tokens=60, new_tokens=8), 0),
        lambda: session.make_reference(texts, 8, 1, str(tmp_path / "other")),
        lambda: session.compare_reference(path, 1),
        lambda: session.answer_tasks(choices, 1),
        lambda: session.answer_tasks(lines, 1),
    ):
        with pytest.raises(UsageError, match="has 64"):
            attempt()
    assert not (tmp_path / "other").exists()


def test_an_id_past_the_embedding_is_refused_with_both_numbers(tmp_path):
    """As a tokenizer gives it whose added tokens the model was never resized for."""
    session = opened(tiny_llama(), Letters())
    texts = PromptSet(name="t", texts=("abc", "abЖ"))
    message = r"token id 1046, and the embedding of LlamaForCausalLM has 320 rows: ids are 0 to 319"
    with pytest.raises(UsageError, match=message):
        session.run(Decode(batch=2, prompts=texts, prompt_tokens=None, new_tokens=2), 0)
    with pytest.raises(UsageError, match=message):
        session.make_reference(texts, 2, 2, str(tmp_path / "reference"))
    within = PromptSet(name="t", texts=("abc", "ab"))
    session.run(Decode(batch=2, prompts=within, prompt_tokens=None, new_tokens=2), 0)


def test_an_assistant_with_a_shorter_context_bounds_the_run():
    """It reads the same tokens."""
    bounds = Bounds.of(tiny_llama(), tiny_gpt2())
    bounds.require_lengths([60], [4])
    with pytest.raises(UsageError, match="its assistant GPT2LMHeadModel has 64"):
        bounds.require_lengths([62], [4])


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (transformers.OPTConfig(max_position_embeddings=128), 128),
        (transformers.BloomConfig(), None),
        (transformers.FalconConfig(alibi=True), None),
        (transformers.FalconConfig(alibi=False), 2048),
        (transformers.MambaConfig(), None),
        (
            transformers.Qwen2Config(
                max_position_embeddings=1000,
                rope_scaling={
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 1000,
                },
            ),
            4000,
        ),
        (
            transformers.LlamaConfig(
                max_position_embeddings=1000, rope_scaling={"rope_type": "linear", "factor": 2.0}
            ),
            2000,
        ),
    ],
)
def test_the_context_is_what_the_config_and_its_scaling_say(config, positions):
    """None for models without positions."""
    assert context_length(config) == positions


def test_an_embedding_in_an_adapter_is_counted():
    """peft puts a layer of its own around it."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"])
    adapted = peft.inject_adapter_in_model(config, tiny_llama())
    assert type(adapted.get_input_embeddings()) is not torch.nn.Embedding
    assert embedding_rows(adapted) == 320


@pytest.mark.parametrize(
    ("pad", "eos", "expected"),
    [
        (7, 2, 7), (-1, 2, 2), (320, 2, 2), (None, 2, 2), ([7, 8], 2, 7), ([-1, 8], 2, 8),
        (None, [320, 5], 5), (-1, -1, 0), (None, None, 0), ([], None, 0), (True, 2, 2),
        ("7", 2, 2), (0, 2, 0),
    ],
)  # fmt: skip
def test_padding_is_an_id_of_the_vocabulary_whatever_the_config_names(pad, eos, expected):
    """Its own, else the end token, else 0; special ids below 0 play no part."""
    model = tiny_llama()
    model.config.__dict__.update(pad_token_id=pad, eos_token_id=eos)
    assert Vocabulary.of(model, None).pad == expected


def test_the_tokenizers_padding_comes_before_the_end_token():
    """Where the config names none of use."""
    model = tiny_llama()
    model.config.__dict__.update(pad_token_id=-1)
    tokenizer = Letters()
    tokenizer.pad_token_id = 9
    assert padding_id(model.config, tokenizer) == 9
    tokenizer.pad_token_id = 2000
    assert padding_id(model.config, tokenizer) == 2


def test_a_config_file_is_mended_and_not_changed():
    """The nested text config of a multimodal model, too."""
    config = {"pad_token_id": [3], "text_config": {"pad_token_id": -1, "vocab_size": 9}}
    assert with_usable_padding(config) == {
        "pad_token_id": 3,
        "text_config": {"pad_token_id": None, "vocab_size": 9},
    }
    assert config["pad_token_id"] == [3]
    assert with_usable_padding({"vocab_size": 9}) == {"vocab_size": 9}
