"""Shared by the tests of quantization: loading by a strategy, and small quantized checkpoints."""

from __future__ import annotations

import json

import torch
from msgspec import structs
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.engines.transformers.effective import describe
from pytest_llmperf.engines.transformers.load import load
from pytest_llmperf.strategies import parse, require_in_effect

GROUP = 32


def plan_of(strategy, name="arch:tiny-falcon", **options):
    plan = parse(strategy).apply(LoadPlan(model=model_ref(name)))
    return structs.replace(plan, options=tuple(sorted(options.items())))


def quantized(strategy, name="arch:tiny-falcon", **options):
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
    shape = {
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(vocab_size=512, num_key_value_heads=2, initializer_range=0.1, **shape)
    ).save_pretrained(folder)
    return folder


LLAMA_SHAPES = [(64, 64), (32, 64), (32, 64), (64, 64), (192, 64), (192, 64), (64, 192)] * 2


def save_quantized(
    folder,
    name="arch:tiny-llama",
    *,
    bits=4,
    group=GROUP,
    symmetric=True,
    inputs=False,
    ignore=(),
    text="",
):
    """Write a checkpoint in the compressed-tensors format, and return its folder.

    compressed-tensors itself rounds to nearest. All linear layers are quantized but the output head
    and those of `ignore`, as the config says. With `text` the inputs are smoothed first, by the
    values that the text gives them.
    """
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )

    loaded = load(plan_of("fp32", name))
    model = loaded.model
    if text:
        _smooth(model, loaded.tokenizer(text, return_tensors="pt").input_ids)
    strategy = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    weights = QuantizationArgs(num_bits=bits, symmetric=symmetric, **strategy)
    activations = (
        QuantizationArgs(num_bits=8, symmetric=True, strategy="token", dynamic=True)
        if inputs
        else None
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=activations)
    config = QuantizationConfig(
        config_groups={"group_0": scheme}, ignore=["lm_head", *ignore], quantization_status="frozen"
    )
    apply_quantization_config(model, config)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            _round_to_nearest(module, weights, group)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    _save_tokenizer(loaded, folder)
    return folder


def _round_to_nearest(module, arguments, group):
    """Write the scales and zero points of a layer's groups, or of its rows."""
    from compressed_tensors.quantization.utils import calculate_qparams

    rows = module.weight.reshape(module.weight.shape[0], -1, group or module.weight.shape[1])
    scale, zero = calculate_qparams(rows.amin(-1), rows.amax(-1), arguments)
    module.weight_scale.data.copy_(scale)
    if getattr(module, "weight_zero_point", None) is not None:
        module.weight_zero_point.data.copy_(zero)


def _smooth(model, ids):
    """SmoothQuant at strength 0.5 (https://arxiv.org/abs/2211.10438).

    A norm's output scales move into the layers after it.
    """
    largest_outputs = {}
    pairs = [pair for block in model.model.layers for pair in _norms(block)]
    hooks = [
        norm.register_forward_hook(
            lambda norm, _, out: largest_outputs.update({norm: out.abs().amax((0, 1))})
        )
        for norm, _ in pairs
    ]
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    for norm, layers in pairs:
        weights = torch.stack([layer.weight.abs().amax(0) for layer in layers]).amax(0)
        scale = (largest_outputs[norm] / weights).sqrt().clamp(min=1e-5)
        norm.weight.data /= scale
        for layer in layers:
            layer.weight.data *= scale


def _norms(block):
    attention, mlp = block.self_attn, block.mlp
    yield block.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)
    yield block.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)


AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
"""Which of eight neighbouring columns lies at each place of an int32, the lowest bits first.

AutoAWQ's GEMM kernels have this order.
"""


def save_awq(folder, name="arch:tiny-llama", *, group=GROUP):
    """A checkpoint as AutoAWQ publishes them (GEMM: qweight, qzeros, scales), rounded to nearest.

    Returns the folder.
    """
    loaded = load(plan_of("fp32", name))
    tensors = {}
    for key, value in loaded.model.state_dict().items():
        if value.dim() == 2 and not key.startswith(("lm_head", "model.embed_tokens")):
            tensors |= {
                key.replace(".weight", f".{part}"): tensor
                for part, tensor in awq_tensors(value, group).items()
            }
        elif key != "lm_head.weight" or not loaded.model.config.tie_word_embeddings:
            tensors[key] = value.contiguous()
    loaded.model.config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    awq = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group,
        "zero_point": True,
        "version": "gemm",
    }
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": awq}))
    _save_tokenizer(loaded, folder)
    return folder


def awq_tensors(weight, group):
    """[outputs, inputs] -> qweight [inputs, outputs / 8].

    With qzeros [groups, outputs / 8] and scales [groups, outputs].
    """
    q, zero, scale = rounded(weight, group)
    return {
        "qweight": _packed(q.T),
        "qzeros": _packed(zero.T),
        "scales": scale.T.half().contiguous(),
    }


def rounded(weight, group):
    """The nearest 4-bit integers [outputs, inputs].

    With the zero point and scale of each group [outputs, groups].
    """
    rows = weight.reshape(weight.shape[0], -1, group)
    low, high = rows.amin(-1).clamp(max=0), rows.amax(-1).clamp(min=0)
    scale = ((high - low) / 15).half().float()
    zero = (-low / scale).round().clamp(0, 15)
    q = ((rows / scale[..., None]).round() + zero[..., None]).clamp(0, 15)
    return q.reshape(weight.shape), zero, scale


def _packed(values):
    """[rows, columns] of 0 to 15 -> [rows, columns / 8] int32."""
    ordered = values.reshape(values.shape[0], -1, 8)[..., AWQ_ORDER].long()
    words = (ordered << (4 * torch.arange(8))).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def from_awq(source, folder):
    """Convert a checkpoint that AutoAWQ wrote by compressed-tensors; returns the new folder."""
    from compressed_tensors.entrypoints.convert import convert_checkpoint
    from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter

    convert_checkpoint(
        source, folder, AutoAWQConverter.from_pretrained(str(source)), max_workers=1, device="cpu"
    )
    return folder


def _save_tokenizer(loaded, folder):
    if loaded.tokenizer is not None:
        loaded.tokenizer.save_pretrained(folder)


def plain_from_pretrained(folder, **quantization):
    """The folder as transformers itself quantizes it."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, device_map={"": "cpu"}, **quantization
    )
