"""What is in effect: counted from the tensors and observed in a probe forward.

It is never read from the plan.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
from msgspec import structs

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.names import model_ref, predict
from pytest_llmperf.errors import LoadError, NotInEffect
from pytest_llmperf.strategies import parse, require_in_effect

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", exc_type=ModuleNotFoundError)

from torch import nn

from pytest_llmperf.engines.transformers import effective as module
from pytest_llmperf.engines.transformers.effective import (
    RunFacts,
    describe,
    linear_groups,
    tensor_groups,
)
from pytest_llmperf.engines.transformers.load import load
from pytest_llmperf.engines.transformers.observed.calls import Calls

ARCHS = ("arch:tiny-llama", "arch:tiny-falcon")


def loaded_under(strategy, name="arch:tiny-llama", **wrong):
    """The model, loaded as `strategy` says but for the fields in `wrong`.

    And the promises of the strategy.
    """
    parsed = parse(strategy)
    plan = parsed.apply(LoadPlan(model=model_ref(name)))
    fields = {name: getattr(plan, name) for name in plan.__struct_fields__} | wrong
    return load(LoadPlan(**fields)), parsed.promises(plan)


class Wrapped(torch.Tensor):
    """A tensor subclass that says float32 and stores int8 with a scale, as quantized weights do."""

    @staticmethod
    def __new__(cls, data, scale):
        return torch.Tensor._make_wrapper_subclass(
            cls, data.shape, dtype=torch.float32, device=data.device
        )

    def __init__(self, data, scale):
        self.data8, self.scale = data, scale

    def __tensor_flatten__(self):
        return ["data8", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].data8, args[0].scale)
        raise NotImplementedError(func)


@pytest.mark.parametrize("name", ARCHS)
@pytest.mark.parametrize(
    "strategy",
    [
        "auto",
        "fp32",
        "fp16",
        "bf16",
        "fp16-mixed",
        "bf16-mixed",
        "bf16+eager",
        "fp32+sdpa",
        "bf16-mixed+eager",
    ],
)
def test_every_precision_is_in_effect_after_loading(name, strategy):
    """What was promised is what is found."""
    loaded, promises = loaded_under(strategy, name)
    found = describe(loaded)
    require_in_effect(found, promises, "loaded")
    parameters = sum(group.bytes for group in found.tensors if group.kind == "parameter")
    assert parameters == predict(loaded.plan)


@pytest.mark.parametrize("name", ARCHS)
@pytest.mark.parametrize(
    ("strategy", "wrong", "reason"),
    [
        ("bf16", {"weights_dtype": "float32"}, "linear layers hold float32 weights"),
        ("fp32", {"weights_dtype": "float16"}, "linear layers hold float16 weights"),
        ("bf16-mixed", {"autocast_dtype": None}, "compute is float32, asked for bfloat16"),
        ("fp16-mixed", {"autocast_dtype": "bfloat16"}, "compute is bfloat16, asked for float16"),
        ("fp32", {"autocast_dtype": "float16"}, "autocast is float16, asked for none"),
        ("eager", {"attention": "sdpa"}, "attention is sdpa, asked for eager"),
        ("sdpa", {"attention": "eager"}, "attention is eager, asked for sdpa"),
    ],
)
def test_a_load_that_is_not_what_was_asked_is_caught(name, strategy, wrong, reason):
    """The loader is made to do something else than the strategy says."""
    loaded, promises = loaded_under(strategy, name, **wrong)
    with pytest.raises(NotInEffect, match=reason):
        require_in_effect(describe(loaded), promises, "loaded")


def test_the_count_of_wrong_layers_is_in_the_message():
    """15 linear layers of the tiny llama, all left in float32."""
    loaded, promises = loaded_under("bf16", weights_dtype="float32")
    with pytest.raises(
        NotInEffect,
        match="15 of 15 linear layers hold float32 weights \\(LlamaForCausalLM\\), "
        "asked for bfloat16",
    ):
        require_in_effect(describe(loaded), promises, "loaded")


def test_an_autocast_that_does_nothing_is_caught(monkeypatch):
    """The plan says float16; the forward pass does not run under it."""
    loaded, promises = loaded_under("fp16-mixed")
    monkeypatch.setattr(module, "autocast", lambda *_: nullcontext())
    with pytest.raises(
        NotInEffect, match="compute is float32, asked for float16; autocast is none"
    ):
        require_in_effect(describe(loaded), promises, "loaded")


class QuietlyHalf(nn.Linear):
    """float32 weights, another compute dtype."""

    def forward(self, x):
        return super().forward(x).to(torch.float16)


class Toy(nn.Module):
    """An embedding and one linear layer, with the arguments of a causal language model."""

    def __init__(self, linear):
        super().__init__()
        self.embedding, self.linear = nn.Embedding(4, 8), linear

    def forward(self, input_ids, **_):
        return self.linear(self.embedding(input_ids))


@pytest.mark.parametrize(("cls", "dtype"), [(QuietlyHalf, "float16"), (nn.Linear, "float32")])
def test_compute_dtype_is_observed_and_not_the_weights_dtype(cls, dtype):
    """A layer that computes in another dtype than it stores shows.

    The hook that saw it is gone afterwards.
    """
    toy = replace(loaded_under("fp32")[0], model=Toy(cls(8, 4)))
    (group,) = module.probe_forward(toy).computes
    assert (group.dtype, group.output, group.modules) == ("float32", dtype, 1)
    assert not toy.model.linear._forward_hooks
    assert not torch.nn.modules.module._global_forward_hooks


def test_a_model_that_cannot_do_a_forward_pass_is_a_load_error():
    """Half of its layers in another dtype, for example."""
    loaded, _ = loaded_under("bf16")
    loaded.model.lm_head.float()
    with pytest.raises(
        LoadError, match=r"'arch:tiny-llama': a forward pass of one token failed.*dtype"
    ):
        describe(loaded)


def test_a_config_that_says_sdpa_over_another_attention_is_not_believed():
    """No call of scaled_dot_product_attention was seen."""
    loaded, _ = loaded_under("sdpa")
    assert describe(loaded).attention == "sdpa"
    attention = transformers.models.llama.modeling_llama.eager_attention_forward
    transformers.AttentionInterface.register("sdpa-in-name-only", attention)
    loaded.model.config._attn_implementation_internal = "sdpa-in-name-only"
    assert describe(loaded).attention == "eager"
    assert module.attention_in_use(loaded_under("sdpa")[0].model, Calls()) == "eager"


def test_tied_weights_are_counted_once():
    """The tiny falcon ties its head to its embedding; untied it is that much larger."""
    loaded, _ = loaded_under("fp32", "arch:tiny-falcon")
    tied = sum(group.bytes for group in tensor_groups(loaded.model))
    loaded.model.lm_head.weight = nn.Parameter(loaded.model.lm_head.weight.clone())
    assert sum(group.bytes for group in tensor_groups(loaded.model)) == tied + 512 * 64 * 4


def test_a_tensor_subclass_is_counted_by_what_it_holds():
    """int8 data and float16 scales, not the float32 it claims to be."""
    layer = nn.Linear(8, 4, bias=False)
    wrapped = Wrapped(torch.zeros(4, 8, dtype=torch.int8), torch.zeros(4, dtype=torch.float16))
    layer.weight = nn.Parameter(wrapped, requires_grad=False)
    found = {group.dtype: (group.tensors, group.bytes) for group in tensor_groups(layer)}
    assert found == {"int8": (1, 32), "float16": (1, 8)}
    (group,) = linear_groups(layer)
    assert (group.dtype, group.elements, group.bytes) == ("int8", 32, 40)


# torch is about to drop these modules; other packages made their own of the same form.
@pytest.mark.filterwarnings("ignore")
def test_linear_layers_are_found_whatever_their_class():
    """nn.Linear, Conv1D, packed int8 modules that are no nn.Linear; a norm is none."""
    conv = transformers.pytorch_utils.Conv1D(4, 8)
    packed = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 4)), {nn.Linear})
    groups = linear_groups(nn.Sequential(nn.Linear(8, 4), conv, packed, nn.LayerNorm(4)))
    assert sum(group.layers for group in groups) == 3
    assert {(group.dtype, group.elements) for group in groups} == {("float32", 32), ("qint8", 32)}


def test_only_modules_that_the_architecture_declares_are_kept_in_float32():
    """The same float32 norms, declared and not."""
    loaded, promises = loaded_under("bf16")
    before = describe(loaded)
    for layer in loaded.model.model.layers:
        layer.post_attention_layernorm.float()
    with pytest.raises(NotInEffect, match="2 of 21 parameters hold float32 weights"):
        require_in_effect(
            structs.replace(before, tensors=tensor_groups(loaded.model)), promises, "loaded"
        )
    loaded.model._keep_in_fp32_modules = ["post_attention_layernorm"]
    tensors = tensor_groups(loaded.model)
    require_in_effect(structs.replace(before, tensors=tensors), promises, "loaded")
    assert [group.tensors for group in tensors if group.fixed_dtype] == [2]


def test_facts_of_the_last_run_are_passed_on():
    """Cache, loop and graphs come from the session that ran."""
    loaded, _ = loaded_under("fp32")
    assert (describe(loaded).cache, describe(loaded).compiled_graphs) == ("", 0)
    facts = RunFacts(
        cache="StaticCache",
        compile_mode="default",
        compiled_graphs=1,
        decode_loop="static",
        notes=("a",),
    )
    found = describe(loaded, last_run=facts)
    assert (found.cache, found.compile_mode, found.compiled_graphs) == ("StaticCache", "default", 1)
    assert (found.decode_loop, found.notes) == ("static", ("a",))
