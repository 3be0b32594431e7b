"""Replaces linear layers that are not nn.Linear itself but compute the same by nn.Linear.

transformers' Falcon, for one, has a FalconLinear that multiplies by the transposed weight.
bitsandbytes' converter looks for nn.Linear alone and passes over it without an error; torchao fails
at the transposition (`aten.numpy_T`). Nothing outside of the given model changes.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

_OUT, _IN, _ROWS = 24, 32, 5
_SEED = 0
_BFLOAT16_ULPS = 4
"""Two sums of 32 products of bfloat16 values, rounded once each or at each addition."""


def load_as_linear(model: nn.Module) -> Counter[str]:
    """Replace each linear layer of another class that computes what nn.Linear does.

    The parameters stay the same objects. Returns how many layers were replaced, by class.
    """
    replaced: Counter[str] = Counter()
    for path, module in list(model.named_modules()):
        linear = as_linear(module)
        if linear is not None:
            model.set_submodule(path, linear)
            replaced[type(module).__name__] += 1
    return replaced


def as_linear(module: nn.Module) -> nn.Linear | None:
    """Return an nn.Linear with the module's parameters.

    None where the module is one already, or does not compute the same.
    """
    if type(module) is nn.Linear or not isinstance(module, (nn.Linear, Conv1D)):
        return None
    if not _computes_the_same(module):
        return None
    weight = _outputs_by_inputs(module)
    outputs, inputs = weight.shape
    linear = nn.Linear(inputs, outputs, bias=module.bias is not None, device="meta")
    linear.weight, linear.bias = weight, module.bias
    return linear.train(module.training)


def _outputs_by_inputs(module: nn.Linear | Conv1D) -> Any:
    """Return the weight as nn.Linear stores it, [outputs, inputs]: Conv1D has it transposed."""
    if isinstance(module, Conv1D):
        return nn.Parameter(module.weight.T.contiguous(), requires_grad=False)
    return module.weight


def _computes_the_same(module: nn.Linear | Conv1D) -> bool:
    """Compare the module's own forward, on a small copy with random parameters, with F.linear.

    A module with anything but a weight and a bias, or with hooks, is not taken for a linear layer.
    """
    if not _has_only_weight_and_bias(module) or _has_hooks(module):
        return False
    generator = torch.Generator().manual_seed(_SEED)
    try:
        return _equal_in_float32(module, generator) and _close_in_bfloat16(module, generator)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return False  # its forward needs more than an input


def _equal_in_float32(module: nn.Linear | Conv1D, generator: torch.Generator) -> bool:
    """Compare on small whole numbers, whose sums are exact in any order: all bits must be equal."""

    def whole_numbers(*shape: int) -> Tensor:
        return torch.randint(-8, 9, shape, generator=generator).float()

    output, reference = _outputs(
        module, whole_numbers(_OUT, _IN), whole_numbers(_OUT), whole_numbers(2, _ROWS, _IN)
    )
    return torch.equal(output, reference)


def _close_in_bfloat16(module: nn.Linear | Conv1D, generator: torch.Generator) -> bool:
    """Compare on normal numbers: outputs must be equal to rounding, and of the same dtype."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).bfloat16()

    output, reference = _outputs(module, normal(_OUT, _IN), normal(_OUT), normal(2, _ROWS, _IN))
    if output.dtype != reference.dtype:
        return False
    return _equal_to_rounding(output.float(), reference.float())


def _equal_to_rounding(output: Tensor, reference: Tensor) -> bool:
    unit = torch.finfo(torch.bfloat16).eps * reference.abs().clamp(min=1.0)
    return bool(((output - reference).abs() <= _BFLOAT16_ULPS * unit).all())


def _outputs(
    module: nn.Linear | Conv1D, weight: Tensor, bias: Tensor, inputs: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the outputs of a copy of `module` with these parameters, and of F.linear."""
    used_bias = None if module.bias is None else bias
    small = _small_copy(module, weight, used_bias)
    with torch.no_grad():
        return small(inputs), nn.functional.linear(inputs, weight, used_bias)


def _small_copy(module: nn.Linear | Conv1D, weight: Tensor, bias: Tensor | None) -> nn.Module:
    small = copy.copy(module)
    if isinstance(small, Conv1D):
        weight = weight.T.contiguous()
        small.nf, small.nx = _OUT, _IN
    else:
        small.in_features, small.out_features = _IN, _OUT
    small._parameters = {  # noqa: SLF001  # a shallow copy shares the dictionary
        "weight": nn.Parameter(weight, requires_grad=False),
        "bias": None if bias is None else nn.Parameter(bias, requires_grad=False),
    }
    return small


def _has_only_weight_and_bias(module: nn.Module) -> bool:
    if module._buffers or module._modules:  # noqa: SLF001
        return False
    return module._parameters.keys() <= {"weight", "bias"}  # noqa: SLF001


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks  # noqa: SLF001
        or module._forward_pre_hooks  # noqa: SLF001
        or hasattr(module, "_hf_hook")
        or hasattr(module, "parametrizations"),
    )
