"""Linear layers that are not nn.Linear itself but compute the same, as nn.Linear.

Nothing outside of the given model changes.

transformers' Falcon, for one, has a FalconLinear that multiplies by the transposed weight.
bitsandbytes' converter looks for nn.Linear alone and passes over it without an error; torchao fails
at the transposition (`aten.numpy_T`).
"""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

_OUT, _IN, _ROWS = 24, 32, 5
_SEED = 0
_BFLOAT16_ULPS = 4
"""Two sums of 32 products of bfloat16 values, rounded once each or at each addition."""


def load_as_linear(model: nn.Module) -> Counter[str]:
    """Replace each linear layer of another class that computes what nn.Linear does.

    The parameters stay the same objects.

    Returns how many were replaced, by class.
    """
    replaced: Counter[str] = Counter()
    for path, module in list(model.named_modules()):
        plain = as_linear(module)
        if plain is not None:
            model.set_submodule(path, plain)
            replaced[type(module).__name__] += 1
    return replaced


def as_linear(module: nn.Module) -> nn.Linear | None:
    """An nn.Linear with the module's parameters, or None where the module is one already or does not compute the same."""
    if (
        type(module) is nn.Linear
        or not isinstance(module, (nn.Linear, Conv1D))
        or not _computes_the_same(module)
    ):
        return None
    turned = isinstance(module, Conv1D)
    weight = (
        nn.Parameter(module.weight.T.contiguous(), requires_grad=False) if turned else module.weight
    )
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias=module.bias is not None, device="meta")
    plain.weight, plain.bias = weight, module.bias
    return plain.train(module.training)


def _computes_the_same(module: nn.Linear | Conv1D) -> bool:
    """The module's own forward, on a small copy with random parameters, against a linear layer's.

    In float32 with small whole numbers, whose sums are exact in any order: every bit must be equal.
    In bfloat16 with normal numbers: equal to rounding. A module with anything but a weight and a
    bias, or with hooks, is not taken for a linear layer.
    """
    if (
        set(module._parameters) - {"weight", "bias"}  # noqa: SLF001
        or module._buffers  # noqa: SLF001
        or module._modules  # noqa: SLF001
        or _has_hooks(module)
    ):
        return False
    generator = torch.Generator().manual_seed(_SEED)

    def whole(*shape: int) -> Tensor:
        return torch.randint(-8, 9, shape, generator=generator).float()

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).bfloat16()

    try:
        exact = torch.equal(*_both(module, whole(_OUT, _IN), whole(_OUT), whole(2, _ROWS, _IN)))
        ours, reference = _both(module, normal(_OUT, _IN), normal(_OUT), normal(2, _ROWS, _IN))
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return False  # it needs more than an input
    return (
        exact
        and ours.dtype == reference.dtype
        and _equal_to_rounding(ours.float(), reference.float())
    )


def _equal_to_rounding(ours: Tensor, reference: Tensor) -> bool:
    unit = torch.finfo(torch.bfloat16).eps * reference.abs().clamp(min=1.0)
    return bool(((ours - reference).abs() <= _BFLOAT16_ULPS * unit).all())


def _both(
    module: nn.Linear | Conv1D, weight: Tensor, bias: Tensor, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Output of a copy of `module` with these parameters, and of F.linear."""
    small = copy.copy(module)
    turned = isinstance(module, Conv1D)
    small._parameters = {  # noqa: SLF001  # a shallow copy shares the dictionary
        "weight": nn.Parameter(weight.T.contiguous() if turned else weight, requires_grad=False),
        "bias": None if module.bias is None else nn.Parameter(bias, requires_grad=False),
    }
    if turned:
        small.nf, small.nx = _OUT, _IN
    else:
        small.in_features, small.out_features = _IN, _OUT
    with torch.no_grad():
        return small(x), nn.functional.linear(x, weight, None if module.bias is None else bias)


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks  # noqa: SLF001
        or module._forward_pre_hooks  # noqa: SLF001
        or hasattr(module, "_hf_hook")
        or hasattr(module, "parametrizations"),
    )
