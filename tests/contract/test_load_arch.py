"""Loading architectures: random models of a published shape, in the dtype of the plan."""

from __future__ import annotations

import pytest

from pytest_llmperf.engines.models.names import predict
from pytest_llmperf.errors import LoadError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", exc_type=ModuleNotFoundError)

from support.loading import DTYPES, dtypes, plan_for

from pytest_llmperf.engines.loading import arch
from pytest_llmperf.engines.transformers.load import load

ARCHS = ("arch:tiny-llama", "arch:tiny-falcon")


@pytest.mark.parametrize("name", ARCHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_architecture_is_made_in_the_dtype_asked_for(name, dtype):
    """Every parameter, and as many bytes as were predicted."""
    plan = plan_for(name, weights_dtype=dtype)
    loaded = load(plan)
    assert dtypes(loaded.model) == {dtype}
    assert sum(p.numel() * p.element_size() for p in loaded.model.parameters()) == predict(plan)
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())


@pytest.mark.parametrize("name", ARCHS)
def test_one_seed_is_one_model_in_every_dtype(name):
    """16-bit weights are the rounded 32-bit ones; another seed is another model."""
    full, half = (load(plan_for(name, weights_dtype=dtype)) for dtype in ("float32", "bfloat16"))
    other = load(plan_for(name, weights_dtype="float32", seed=1))
    for key, value in full.model.state_dict().items():
        assert torch.equal(value.to(torch.bfloat16), half.model.state_dict()[key])
    weight = "lm_head.weight"
    assert not torch.equal(full.model.state_dict()[weight], other.model.state_dict()[weight])
    assert full.content_hash == half.content_hash != other.content_hash


@pytest.mark.parametrize("name", ARCHS)
def test_an_architecture_is_what_transformers_would_build(name):
    """The same names, shapes, tied weights, rotary tables, ones in norms, and spread of weights."""
    loaded = load(plan_for(name, weights_dtype="bfloat16"))
    model, config = loaded.model, loaded.model.config
    reference = transformers.AutoModelForCausalLM.from_config(config)
    parameters = dict(model.named_parameters())
    expected_shapes = {key: value.shape for key, value in reference.named_parameters()}
    assert {key: value.shape for key, value in parameters.items()} == expected_shapes
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == config.tie_word_embeddings
    for key, buffer in reference.named_buffers():
        assert torch.equal(dict(model.named_buffers())[key], buffer)
        assert buffer.dtype == torch.float32
    norms = [p for key, p in parameters.items() if "norm" in key and key.endswith("weight")]
    assert norms
    assert all(torch.equal(p, torch.ones_like(p)) for p in norms)
    assert model.get_input_embeddings().weight.float().std().item() == pytest.approx(
        config.initializer_range, rel=0.05
    )


def test_loading_an_architecture_leaves_the_random_state_alone():
    """Prompts drawn after loading do not depend on the model."""
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    load(plan_for("arch:tiny-llama"))
    assert torch.equal(torch.rand(3), expected)


def test_weights_that_wait_elsewhere_are_drawn_on_the_device_and_leave_it_module_by_module():
    """Drawn where they wait, they would be other weights: host and GPU have other generators."""
    options = {"dtype": torch.float32, "device": torch.device("cpu"), "seed": 0, "attention": None}
    moved = arch.build("tiny-llama", **options, home=torch.device("meta"))
    assert {tensor.device.type for tensor in (*moved.parameters(), *moved.buffers())} == {"meta"}
    at_home = arch.build("tiny-llama", **options, home=torch.device("cpu")).state_dict()
    plain = arch.build("tiny-llama", **options).state_dict()
    assert all(torch.equal(at_home[name], plain[name]) for name in plain)


def test_a_tensor_that_gets_no_initial_value_is_an_error(monkeypatch):
    """Garbage weights would be measured as if they were a model."""
    monkeypatch.setattr(transformers.PreTrainedModel, "_init_weights", lambda *_: None)
    with pytest.raises(
        LoadError, match=r"'llama': transformers gives model\.embed_tokens\.weight no initial value"
    ):
        arch.build(
            "tiny-llama", dtype=torch.float32, device=torch.device("cpu"), seed=0, attention=None
        )


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_an_attention_implementation_is_passed_on(attention):
    """The model dispatches to it."""
    model = load(plan_for("arch:tiny-llama", attention=attention)).model
    assert model.config._attn_implementation == attention
