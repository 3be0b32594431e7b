"""What nobody asked for is said: modes, precision, defaults, code, idle adapters."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", exc_type=ModuleNotFoundError)

from msgspec import structs
from support.generating import loaded, tiny_llama
from torch import nn

from pytest_llmperf.core.effective import AdapterGroup
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.engines.transformers.effective import describe
from pytest_llmperf.engines.transformers.load import load
from pytest_llmperf.engines.transformers.observed.idle_adapters import is_idle
from pytest_llmperf.engines.transformers.observed.unasked import on_code, on_tokenizer


def notes(model):
    return describe(loaded(model)).notes


def test_a_model_as_it_should_be_has_nothing_said_of_it():
    """The control of what follows."""
    assert notes(tiny_llama().eval()) == ()


def test_modules_in_training_mode_are_said():
    """With what they do: a dropout drops values."""
    model = tiny_llama().eval()
    model.model.layers[1].mlp.act_fn = nn.Sequential(nn.SiLU(), nn.Dropout(0.1))
    assert notes(model)[0].endswith("1 of them drop values at random")
    model.model.layers[1].mlp.act_fn[1].p = 0.0
    assert "3 modules are in training mode" in notes(model)[0]
    assert notes(model)[0].endswith("none drops values")


def test_lowered_precision_of_products_is_said():
    """By the setting's own name."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        (note, *_) = notes(tiny_llama().eval())
    finally:
        torch.set_float32_matmul_precision(before)
    assert note.startswith("float32 products are rounded: float32 matmul precision is medium")


def test_logits_of_the_probe_that_are_no_numbers_are_said():
    """Before anything is run."""
    model = tiny_llama().eval()
    model.lm_head.weight.data[0, 0] = float("nan")
    assert notes(model) == ("the logits of one token are not finite",)


def folder_with(tmp_path, config=(), **generation):
    tiny_llama().half().save_pretrained(tmp_path)
    for name, values in (("config.json", dict(config)), ("generation_config.json", generation)):
        file = tmp_path / name
        stored = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps(stored | values))
    return load(LoadPlan(model=model_ref(str(tmp_path)), weights_dtype="auto"))


def test_a_checkpoint_that_says_what_it_is_has_nothing_said_of_it(tmp_path):
    """Its config names the dtype of its files, and it has no defaults of generation."""
    assert folder_with(tmp_path).unasked == ()


@pytest.mark.parametrize(("config", "says"), [("bfloat16", "says bfloat16"), (None, "names none")])
def test_a_dtype_that_the_files_decide_is_said(tmp_path, config, says):
    """'auto' takes that of most weights."""
    model = folder_with(tmp_path, config={"dtype": config, "torch_dtype": config})
    assert model.model.dtype == torch.float16
    assert model.unasked == (
        f"'auto' is float16, the dtype of most weights in the files; config.json {says}",
    )


def test_defaults_of_generation_that_are_not_used_are_said(tmp_path):
    """Each with its value."""
    said = folder_with(tmp_path, do_sample=True, temperature=0.7, repetition_penalty=1.3).unasked
    values = "do_sample=True, repetition_penalty=1.3, temperature=0.7"
    assert said == (f"the checkpoint's defaults of generation are not used: {values}",)


def test_code_and_tokens_that_came_with_a_checkpoint_are_said():
    """A class of transformers, and a tokenizer that fits, are nothing to say."""
    model = tiny_llama()
    assert (on_code(model), on_tokenizer(model, range(320)), on_tokenizer(model, None)) == ((),) * 3
    (note,) = on_tokenizer(model, range(322))
    assert "322 tokens and the embedding 320 rows: a text with an id from 320 on is refused" in note
    model.__class__ = type("Own", (type(model),), {"__module__": "transformers_modules.own"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inspect.getfile", lambda _cls: "/somewhere/modeling_own.py")
        assert on_code(model) == (
            "Own is code that came with the checkpoint (modeling_own.py), not transformers'",
        )


def layer(a, b, bias=None, scale=1.0):
    """A layer as peft has it, with one adapter of these values."""
    linear = nn.Linear(1, 1, bias=bias is not None)
    linear.weight.data.fill_(b)
    if bias is not None:
        linear.bias.data.fill_(bias)
    return SimpleNamespace(
        lora_A={"x": nn.Parameter(torch.full((1, 1), a))},
        lora_B={"x": linear},
        lora_embedding_A={},
        lora_embedding_B={},
        scaling={"x": scale},
    )


@pytest.mark.parametrize(
    ("values", "idle"),
    [
        ((1.0, 0.0), True),
        ((0.0, 1.0), True),
        ((1.0, 1.0), False),
        ((1.0, 0.0, 0.5), False),
        ((1.0, 1.0, None, 0.0), True),
    ],
)
def test_an_adapter_is_idle_where_its_product_is_zero(values, idle):
    """As peft starts it; a bias of its own is none."""
    assert is_idle(layer(*values), "x") is idle


@pytest.mark.parametrize(
    ("idle_layers", "config", "said"),
    [(4, {}, True), (3, {}, False), (4, {"modules_to_save": ["lm_head"]}, False)],
)
def test_an_adapter_that_changes_nothing_is_said(idle_layers, config, said):
    """If all its layers are idle and it has trained nothing beside them."""
    group = AdapterGroup(
        name="x",
        rank=4,
        layers=4,
        elements=8,
        tensors=8,
        tensors_equal=8,
        content_hash="",
        active=True,
        idle_layers=idle_layers,
    )
    adapters = SimpleNamespace(
        files=(SimpleNamespace(name="x", config=config),),
        groups=lambda: (group, structs.replace(group, name="x", idle_layers=0)),
        in_force=lambda: ("x",),
    )
    found = describe(replace(loaded(tiny_llama().eval()), adapters=adapters)).notes
    assert any("adapter 'x' changes nothing" in note for note in found) is said
