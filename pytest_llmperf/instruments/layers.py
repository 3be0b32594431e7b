"""Facts about tensors and layers that every engine with torch asks for."""

from __future__ import annotations

from typing import Any

import torch


def attention_flops(config: Any, layers: int) -> float:
    """Return the FLOPs for each token and each position attended.

    They are 2 for the score and 2 for the weighted sum, for each head dimension.
    """
    heads = int(config.num_attention_heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return 4.0 * heads * head_dim * layers


def dtype_name(tensor: torch.Tensor) -> str:
    """Return the dtype's name without torch's prefix."""
    return str(tensor.dtype).removeprefix("torch.")


def identity(tensor: torch.Tensor) -> tuple[object, ...]:
    """Return a value that is equal for two tensors that are the same bytes.

    Meta tensors have no address, so each is itself.
    """
    address = id(tensor) if tensor.is_meta else tensor.data_ptr()
    return (str(tensor.device), address, tensor.numel(), tensor.dtype)
