"""Which layer: the first whose output leaves the noise floor, and the module inside of it."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", exc_type=ModuleNotFoundError)

from support.kinds import tiny
from support.quantizing import plan_of

from pytest_llmperf.core.agreement.layers import Layers, figures
from pytest_llmperf.engines.transformers.load import load
from pytest_llmperf.engines.transformers.loaded import TransformersModel
from pytest_llmperf.workloads import PromptSet

PROMPTS = (0, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small llama of four layers, on disk."""
    folder = tmp_path_factory.mktemp("layers")
    model = tiny("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)  # so that a layer changes what it passes on
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def reference(folder, tmp_path_factory):
    """The model in float32, and the file of its outputs."""
    path = str(tmp_path_factory.mktemp("reference") / "r.ref")
    model = TransformersModel(load(plan_of("fp32", folder)))
    model.make_reference(PromptSet.synthetic(0), 8, 4, path)
    return model, path


@pytest.fixture
def looked_at(folder, reference, tmp_path):
    """Look at the layers of the model under a strategy, after something was done to it."""

    def layers(strategy="fp32", damage=None):
        loaded = load(plan_of(strategy, folder))
        if damage is not None:
            with torch.no_grad():
                damage(loaded.model)
        candidate = TransformersModel(loaded)
        dtype = candidate.opened().effective.compute_dtype
        outer = Layers(layers=compared(candidate, dtype, ""), dtype=dtype)
        first = outer.first
        inside = first is not None and first.name.startswith("model.layers.")
        return Layers(
            layers=outer.layers,
            inside=compared(candidate, dtype, first.name) if inside else (),
            dtype=dtype,
        )

    def compared(candidate, dtype, inside):
        base, path = reference
        file = str(tmp_path / "outputs")
        floor = base.write_layers(path, PROMPTS, inside, dtype, file)
        return figures(candidate.compare_layers(path, PROMPTS, inside, file), floor)

    return layers


@pytest.mark.parametrize("strategy", ["fp32", "bf16", "fp16", "fp32+static-cache", "fp32+eager"])
def test_no_layer_of_an_undamaged_model_leaves_the_floor(looked_at, strategy):
    """Rounding in the candidate's dtype, and sums in another order, are noise."""
    layers = looked_at(strategy)
    assert [figure.name for figure in layers.layers] == [
        "model.embed_tokens",
        "model.rotary_emb",
        *(f"model.layers.{n}" for n in range(4)),
        "model.norm",
        "lm_head",
    ]
    assert layers.first is None, layers.lines()
    assert str(layers).startswith(f"none of 8 layers leaves the noise floor of {layers.dtype}")


def scale(path, factor):
    return lambda model: model.get_submodule(path).weight.mul_(factor)


def stretch_positions(model):
    """Another base of the rotary embedding, as a wrong config has it."""
    model.model.rotary_emb.inv_freq.mul_(0.5)


def swap_heads(model):
    """The first two query heads of the third layer change places."""
    weight = model.model.layers[2].self_attn.q_proj.weight
    weight[:32] = weight[:32].roll(16, dims=0).clone()


DAMAGES = {
    "an embedding": (scale("model.embed_tokens", 1.1), "model.embed_tokens", None),
    "one matrix": (
        scale("model.layers.2.mlp.down_proj", 1.1),
        "model.layers.2",
        "model.layers.2.mlp.down_proj",
    ),
    "two heads": (swap_heads, "model.layers.2", "model.layers.2.self_attn.q_proj"),
    "the positions": (stretch_positions, "model.rotary_emb", None),
    "the final norm": (scale("model.norm", 1.1), "model.norm", None),
    "the head": (scale("lm_head", 1.1), "lm_head", None),
}


@pytest.mark.parametrize("strategy", ["fp32", "bf16"])
@pytest.mark.parametrize("damage", list(DAMAGES))
def test_the_damaged_layer_is_named_and_the_module_inside(looked_at, strategy, damage):
    """All layers before it are noise."""
    break_it, layer, module = DAMAGES[damage]
    layers = looked_at(strategy, break_it)
    assert layers.first.name == layer, layers.lines()
    assert (layers.first_inside and layers.first_inside.name) == module, layers.lines()
    assert f"is {layer}: error" in str(layers)


def test_a_quantized_model_is_told_layer_by_layer(looked_at):
    """Its first quantized matrix is where it begins, and the errors of all layers are told."""
    pytest.importorskip("torchao")
    layers = looked_at("fp32+int8wo")
    assert layers.first.name == "model.layers.0"
    assert layers.first_inside.name == "model.layers.0.self_attn.q_proj"
    assert all(figure.error > 1e-5 for figure in layers.layers[2:])
    assert layers.lines()[3].endswith("<- out")


def test_values_that_are_not_finite_are_out(looked_at):
    layers = looked_at(damage=scale("model.layers.1.mlp.up_proj", float("nan")))
    assert layers.first.name == "model.layers.1"
    assert layers.summary()["layers"][3]["error"] is None
