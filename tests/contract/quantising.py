"""What the tests of quantisation share: loading under a strategy, and small quantised checkpoints."""

from __future__ import annotations

import torch
from msgspec import structs
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models import model_ref
from pytest_llmperf.engines.transformers.effective import describe
from pytest_llmperf.engines.transformers.load import load
from pytest_llmperf.strategies import parse, require_in_effect

GROUP = 32


def plan_of(strategy, name="arch:tiny-falcon", **options):
    plan = parse(strategy).apply(LoadPlan(model=model_ref(name)))
    return structs.replace(plan, options=tuple(sorted(options.items())))


def quantised(strategy, name="arch:tiny-falcon", **options):
    """The model loaded under the strategy, and what is in effect; its promises hold."""
    plan = plan_of(strategy, name, **options)
    loaded = load(plan)
    effective = describe(loaded)
    require_in_effect(effective, parse(strategy).promises(plan), "loaded")
    return loaded, effective


def save_plain(folder, name="arch:tiny-falcon"):
    """The architecture with random weights as a folder."""
    load(plan_of("fp32", name)).model.save_pretrained(folder)
    return folder


def save_llama(folder):
    """A llama whose layers every method takes: all dimensions are multiples of 64."""
    shape = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=512, num_key_value_heads=2, initializer_range=0.1, **shape)).save_pretrained(folder)
    return folder


LLAMA_SHAPES = [(64, 64), (32, 64), (32, 64), (64, 64), (192, 64), (192, 64), (64, 192)] * 2


def save_quantised(folder, name="arch:tiny-llama", *, bits=4, group=GROUP, symmetric=True, inputs=False):
    """A checkpoint in the compressed-tensors format, rounded to nearest by compressed-tensors itself; returns the folder.

    Quantised are all linear layers but the output head.
    """
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )
    from compressed_tensors.quantization.utils import calculate_qparams

    model = load(plan_of("fp32", name)).model
    strategy = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    weights = QuantizationArgs(num_bits=bits, symmetric=symmetric, **strategy)
    activations = QuantizationArgs(num_bits=8, symmetric=True, strategy="token", dynamic=True) if inputs else None
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=activations)
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"], quantization_status="frozen")
    apply_quantization_config(model, config)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is None:
            continue
        rows = module.weight.reshape(module.weight.shape[0], -1, group or module.weight.shape[1])
        scale, zero = calculate_qparams(rows.amin(-1), rows.amax(-1), weights)
        module.weight_scale.data.copy_(scale)
        if getattr(module, "weight_zero_point", None) is not None:
            module.weight_zero_point.data.copy_(zero)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    return folder


def plain_from_pretrained(folder, **quantization):
    """The folder as transformers itself quantises it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map={"": "cpu"}, **quantization)
