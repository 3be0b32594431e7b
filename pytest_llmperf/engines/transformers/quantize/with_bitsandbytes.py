"""LLM.int8(), NF4 and FP4 by bitsandbytes, one linear layer at a time.

The layers are made as transformers' own quantizers make them.
"""

from __future__ import annotations

from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn

from pytest_llmperf.core.quantization import BITSANDBYTES_BLOCK, Scheme

_NN: Any = bnb.nn  # its classes have no types
has_avx512bf16: Any = bnb.functional.has_avx512bf16

_CPU_ROWS = 32
"""Rows that are packed together (bitsandbytes.functional._convert_weight_packed_for_cpu)."""


def refusal(layer: nn.Linear, scheme: Scheme, device: torch.device) -> str | None:
    """Say why bitsandbytes cannot run the layer; None where it can.

    On a CPU with AVX512-BF16 a 4-bit layer is packed anew at its first forward pass, which fails
    for some shapes.
    """
    if not _is_packed_at_first_pass(scheme, device):
        return None
    if layer.out_features % _CPU_ROWS == 0 and layer.in_features % BITSANDBYTES_BLOCK == 0:
        return None
    return (
        f"{layer.out_features} x {layer.in_features} is not a multiple of "
        f"{_CPU_ROWS} x {BITSANDBYTES_BLOCK}, as bitsandbytes needs on a CPU with AVX512-BF16"
    )


def _is_packed_at_first_pass(scheme: Scheme, device: torch.device) -> bool:
    return bool(scheme.method != "int8" and device.type == "cpu" and has_avx512bf16())


def converted(layer: nn.Linear, scheme: Scheme, device: torch.device) -> nn.Module:
    """Return the layer quantized on `device`.

    It computes in the dtype that its weight had; its bias keeps that dtype.
    """
    quantize = _int8 if scheme.method == "int8" else _four_bit
    quantized = quantize(layer, scheme, device)
    quantized.bias = _bias(layer, device)
    return quantized.requires_grad_(requires_grad=False).train(layer.training)


def _bias(layer: nn.Linear, device: torch.device) -> Any:
    if layer.bias is None:
        return None
    return nn.Parameter(layer.bias.data.to(device), requires_grad=False)


def mark(model: Any, scheme: Scheme) -> None:
    """Set the flag that transformers sets on models it quantized with bitsandbytes.

    peft looks for it.
    """
    setattr(model, "is_loaded_in_8bit" if scheme.method == "int8" else "is_loaded_in_4bit", True)


def _int8(layer: nn.Linear, scheme: Scheme, device: torch.device) -> nn.Module:
    quantized: Any = _NN.Linear8bitLt(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        has_fp16_weights=False,
        threshold=scheme.threshold,
        device="meta",
    )
    rows, scales, _ = bnb.functional.int8_vectorwise_quant(
        layer.weight.data.to(device=device, dtype=torch.float16)
    )
    quantized.weight = _NN.Int8Params(
        rows, requires_grad=False, has_fp16_weights=False, CB=rows, SCB=scales
    )
    return quantized  # type: ignore[no-any-return]


def _four_bit(layer: nn.Linear, scheme: Scheme, device: torch.device) -> nn.Module:
    quantized: Any = _NN.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=layer.weight.dtype,
        compress_statistics=scheme.double,
        quant_type=scheme.method,
        device="meta",
    )
    weight = _NN.Params4bit(
        layer.weight.data.to(device),
        requires_grad=False,
        compress_statistics=scheme.double,
        quant_type=scheme.method,
        module=quantized,
    )
    quantized.weight = weight.to(device)
    return quantized  # type: ignore[no-any-return]
