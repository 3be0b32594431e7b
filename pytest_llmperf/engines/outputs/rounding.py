"""A model in float32 made to round as one in bfloat16 does, in float32's own speed.

On a CPU without instructions for bfloat16 its products are several times as slow as those of
float32, and a copy of a model in another dtype needs memory that may not be there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_PRODUCTS = frozenset(
    {
        functional.linear,
        functional.scaled_dot_product_attention,
        functional.conv1d,
        torch.matmul,
        torch.bmm,
        torch.baddbmm,
        torch.addmm,
    }
)
"""Their inputs are rounded too, weights among them.

Neither the operator `@` nor products by element are among them: transformers multiplies positions
by frequencies with them, in float32 whatever a model computes in. What they give goes into one of
these, or into a sum.
"""
_SUMS = frozenset(
    {
        functional.embedding,
        functional.silu,
        functional.gelu,
        Tensor.add,
        Tensor.__add__,
        torch.add,
    }
)


class Rounded(TorchFunctionMode):
    """Rounds what products take, and what they and sums give, to the values of bfloat16."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call `func`, with rounding around it where it computes."""
        named = dict(kwargs or {})
        if func in _PRODUCTS:
            inputs = [rounded(value) for value in args]
            return rounded(func(*inputs, **{key: rounded(value) for key, value in named.items()}))
        out = func(*args, **named)
        return rounded(out) if func in _SUMS and _is_wide(out) else out


def rounded(value: Any) -> Any:
    """Return a float32 tensor with the values of bfloat16, and anything else as it is."""
    if isinstance(value, Tensor) and value.dtype == torch.float32:
        return value.to(torch.bfloat16).to(torch.float32)
    return value


def _is_wide(out: Any) -> bool:
    """Whether a sum is one of features; a norm's variance, one number a token, stays exact."""
    return isinstance(out, Tensor) and out.ndim > 1 and out.shape[-1] > 1
