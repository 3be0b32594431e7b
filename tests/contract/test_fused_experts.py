"""Fused experts are no linear layers: a strategy that passes over them is not in effect."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", exc_type=ModuleNotFoundError)
pytest.importorskip("bitsandbytes")
pytest.importorskip("torchao")

from support.quantizing import plan_of, quantized, save_llama

from pytest_llmperf.engines.outputs.decoding import CacheSeen, LayerSeen
from pytest_llmperf.engines.transformers.accounting.cost import step_cost, weight_bytes_read
from pytest_llmperf.engines.transformers.accounting.experts import experts_of
from pytest_llmperf.engines.transformers.effective import describe
from pytest_llmperf.engines.transformers.load import load
from pytest_llmperf.errors import NotInEffect

SIZE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CACHE = CacheSeen(
    kind="DynamicCache",
    bytes=0,
    bytes_per_position=512,
    layers=2,
    attention=tuple(LayerSeen(place, 256, 16, 16) for place in range(2)),
)
CONFIGS = {
    "mixtral": lambda: transformers.MixtralConfig(**SIZE, num_local_experts=8),
    "qwen3-moe": lambda: transformers.Qwen3MoeConfig(
        **SIZE, head_dim=16, moe_intermediate_size=128, num_experts=8, num_experts_per_tok=2
    ),
}


@pytest.fixture(scope="module", params=list(CONFIGS))
def mixture(request, tmp_path_factory):
    """A folder with a small mixture of experts."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[request.param]())
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("strategy", ["bf16+int8", "bf16+nf4", "bf16+int8wo"])
def test_quantization_that_leaves_the_experts_is_not_in_effect(mixture, strategy):
    """The message names them, their share and their bytes, and what may be done."""
    with pytest.raises(
        NotInEffect,
        match=r"linear layers alone are quantized; left as they are: 2 \w+Experts\.gate_up_proj, "
        r"\d\d % of the matrices, 0\.\d+ MB in bfloat16, like model\.layers\.0\.mlp\.experts",
    ):
        quantized(strategy, mixture)


def test_pruning_that_leaves_the_experts_is_not_in_effect(mixture):
    """Half of the linear layers' weights are gone, and nine tenths of the model's matrices stay."""
    with pytest.raises(NotInEffect, match=r"linear layers alone are pruned; left .*Experts\."):
        quantized("fp32+magnitude:0.5", mixture)


def test_all_matrices_of_a_mixture_are_counted_once(mixture):
    """Experts and routers, beside the linear layers; embeddings are none."""
    loaded = load(plan_of("fp32", mixture))
    effective = describe(loaded)
    matrices = [
        parameter
        for name, parameter in loaded.model.named_parameters()
        if parameter.dim() > 1 and "embed_tokens" not in name
    ]
    others = sum(group.elements for group in effective.other_matrices)
    linear = sum(group.elements for group in effective.linears)
    assert others + linear == sum(parameter.numel() for parameter in matrices)
    assert sum(group.share for group in effective.other_matrices) == pytest.approx(
        others / (others + linear)
    )


def test_a_dense_model_has_none(tmp_path):
    """The same promises hold there as ever."""
    _, effective = quantized("bf16+int8wo", str(save_llama(tmp_path)))
    assert effective.other_matrices == ()


def counted_flops(model, ids) -> int:
    """Return what torch's own counter sees of one forward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    # The counter knows the matrix products of these implementations.
    model.set_experts_implementation("eager")
    model.set_attn_implementation("eager")
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(input_ids=ids, logits_to_keep=1, use_cache=False)
    return counter.get_total_flops()


def test_the_flops_of_a_token_are_those_of_its_experts(mixture):
    """Torch's counter says the same of one token: two experts of eight, and one attended place."""
    model = load(plan_of("fp32", mixture)).model.eval()
    cost = step_cost(model, CACHE, 1, "float32")
    expected = cost.flops_per_token + cost.attention_flops_per_token_per_position
    assert counted_flops(model, torch.tensor([[7]])) == pytest.approx(expected, rel=1e-6)


def test_a_prompt_needs_the_output_head_once(mixture):
    """Of 64 tokens one has logits; the counter's attention is not causal, so it is left out."""
    model = load(plan_of("fp32", mixture)).model.eval()
    cost = step_cost(model, CACHE, 1, "float32")
    n = 64
    attention = cost.attention_flops_per_token_per_position * n * n
    expected = n * cost.flops_per_token - (n - 1) * cost.head_flops + attention
    ids = torch.arange(n).reshape(1, n)
    assert counted_flops(model, ids) == pytest.approx(expected, rel=1e-6)
    assert cost.head_flops == 2 * 64 * 512


def test_bytes_are_read_of_the_experts_that_a_batch_is_expected_to_choose(mixture):
    """Two of eight for one token; all of them for many."""
    model = load(plan_of("fp32", mixture)).model
    total = weight_bytes_read(model, 10_000)
    experts = experts_of(model)
    assert [(one.count, one.per_token) for one in experts] == [(8, 2)] * 2
    one_layer = experts[0].bytes
    read_by_one = weight_bytes_read(model, 1)
    lookups = 64 * 4 * (512 - 1)
    assert total - read_by_one == round(2 * one_layer * 0.75) + lookups
    assert experts[0].read_share(2) == pytest.approx(1 - 0.75**2)
