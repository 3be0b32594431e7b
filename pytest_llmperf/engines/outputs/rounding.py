"""A model in float32 made to round as one in 16 bit does, in float32's own speed.

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
    """Rounds what products take, and what they and sums give, to the values of a dtype."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self._dtype = dtype

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
            inputs = [self._rounded(value) for value in args]
            options = {key: self._rounded(value) for key, value in named.items()}
            return self._rounded(func(*inputs, **options))
        out = func(*args, **named)
        return self._rounded(out) if func in _SUMS and _is_wide(out) else out

    def _rounded(self, value: Any) -> Any:
        return rounded(value, self._dtype)


def rounded(value: Any, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Return a float32 tensor with the values of `dtype`, and anything else as it is.

    What is larger than `dtype` has numbers for is its largest number. A mask of float32's least
    number would be minus infinity otherwise, and a row of it, which padding has, NaN.
    """
    if isinstance(value, Tensor) and value.dtype == torch.float32:
        limit = torch.finfo(dtype).max
        return value.clamp(-limit, limit).to(dtype).to(torch.float32)
    return value


def _is_wide(out: Any) -> bool:
    """Whether a sum is one of features; a norm's variance, one number a token, stays exact."""
    return isinstance(out, Tensor) and out.ndim > 1 and out.shape[-1] > 1
