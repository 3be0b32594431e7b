"""Layers that compute what nn.Linear does and are loaded as one: Falcon's and its kind."""

from __future__ import annotations

import pytest

from pytest_llmperf.errors import NotInEffect
from pytest_llmperf.strategies import parse, require_in_effect

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", exc_type=ModuleNotFoundError)
bitsandbytes = pytest.importorskip("bitsandbytes")
pytest.importorskip("torchao")

from support.quantizing import plain_from_pretrained, plan_of, quantized, save_plain
from torch import nn

from pytest_llmperf.engines.transformers.effective import describe
from pytest_llmperf.engines.transformers.load import load
from pytest_llmperf.engines.transformers.quantize.plain import as_linear, load_as_linear


def test_a_falcon_that_is_left_as_it_is_stays_in_full_and_is_an_error_that_names_its_class():
    """The negative control: unless FalconLinear is loaded as nn.Linear, no layer is converted."""
    plan = plan_of("bf16+int8", "arch:tiny-falcon", load_as_linear=False)
    effective = describe(load(plan))
    assert {group.dtype for group in effective.linears} == {"bfloat16"}
    with pytest.raises(
        NotInEffect,
        match=r"'int8' is not in effect: 0 of 8 linear layers are 8-bit \(8 FalconLinear",
    ):
        require_in_effect(effective, parse(plan.strategy).promises(plan), "loaded")


def test_transformers_own_converter_passes_over_a_falcon(tmp_path):
    """Why: no error, and all linear layers in bfloat16 still.

    When this fails, transformers has learnt it.
    """
    folder = save_plain(tmp_path, "arch:tiny-falcon")
    model = plain_from_pretrained(
        folder, quantization_config=transformers.BitsAndBytesConfig(load_in_8bit=True)
    )
    kinds = {type(module).__name__ for module in model.modules() if isinstance(module, nn.Linear)}
    assert kinds == {"FalconLinear", "Linear"}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_falcon_is_the_same_model_before_it_is_quantized():
    """Its int8 weights are the full model's, rounded; transformers' own class is as it was."""
    loaded, effective = quantized("int8wo", "arch:tiny-falcon")
    assert effective.quantized.loaded_as_linear == {"FalconLinear": 8}
    again = load(plan_of("fp32", "arch:tiny-falcon")).model
    full, low = (
        again.transformer.h[1].mlp.dense_h_to_4h,
        loaded.model.transformer.h[1].mlp.dense_h_to_4h,
    )
    assert type(full).__name__ == "FalconLinear"
    assert (
        (low.weight.dequantize() - full.weight).abs()
        <= full.weight.abs().amax(dim=1, keepdim=True) / 127
    ).all()
    assert torch.equal(loaded.model.lm_head.weight, again.lm_head.weight)


def test_a_falcon_computes_the_same_with_its_layers_loaded_as_linear():
    """In float32, to the last bit but for the order of sums; with the same parameters."""
    model = load(plan_of("fp32")).model
    ids = torch.arange(8).reshape(1, 8)
    before, weights = model(ids).logits, dict(model.named_parameters())
    assert load_as_linear(model) == {"FalconLinear": 8}
    assert all(p is weights[name] for name, p in model.named_parameters())
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-5, atol=1e-6)


class Transposed(nn.Linear):
    """As FalconLinear: the same product, written out."""

    def forward(self, x):
        out = x @ self.weight.T
        return out if self.bias is None else out + self.bias


class Doubled(nn.Linear):
    """Almost a linear layer."""

    def forward(self, x):
        return super().forward(x) * 2


class Slightly(nn.Linear):
    """Wrong by less than bfloat16 shows."""

    def forward(self, x):
        return super().forward(x) + 1e-4


class InHalf(nn.Linear):
    """Right in float32, another dtype out of bfloat16."""

    def forward(self, x):
        return super().forward(x).float()


class WithState(nn.Linear):
    """A linear layer with something of its own."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("own", torch.zeros(1))


class TwoInputs(nn.Linear):
    """Not callable with one input."""

    def forward(self, x, y):
        return super().forward(x) + y


@pytest.mark.parametrize("bias", [True, False])
def test_a_subclass_that_computes_the_same_becomes_linear_with_the_same_parameters(bias):
    """Also on the meta device, where the model has no values yet."""
    layer = Transposed(48, 40, bias=bias)
    plain = as_linear(layer)
    assert type(plain) is nn.Linear
    assert plain.weight is layer.weight
    assert plain.bias is layer.bias
    x = torch.randn(3, 48)
    torch.testing.assert_close(plain(x), layer(x))
    assert type(as_linear(Transposed(48, 40, bias=bias, device="meta"))) is nn.Linear


@pytest.mark.parametrize("cls", [Doubled, Slightly, InHalf, WithState, TwoInputs])
def test_a_subclass_that_computes_something_else_is_left_alone(cls):
    """Off by a factor, by a little, by a dtype; with state; with another signature."""
    assert as_linear(cls(48, 40)) is None


def test_a_layer_with_hooks_is_left_alone():
    """Its hooks would be lost."""
    layer = Transposed(48, 40)
    layer.register_forward_hook(lambda *_: None)
    assert as_linear(layer) is None


def test_a_gpt2_conv1d_becomes_linear_with_its_weight_transposed():
    """The same product with the weight stored the other way round."""
    conv = transformers.pytorch_utils.Conv1D(40, 48)
    nn.init.normal_(conv.bias)
    plain = as_linear(conv)
    x = torch.randn(3, 48)
    assert plain.weight.shape == (40, 48)
    torch.testing.assert_close(plain(x), conv(x))
