"""How many positions went through a model, padding included, counted by a hook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass
class Positions:
    """The number of positions counted while the block of `counted_positions` runs."""

    n: int = 0

    def at_least(self, needed: int) -> int | None:
        """Return the count, or None where it is less than `needed`.

        Then something ran without the model's forward pass, as a recorded graph does.
        """
        return self.n if self.n >= needed else None


@contextmanager
def counted_positions(model: nn.Module) -> Iterator[Positions]:
    """Count the token ids of each call of `model`.

    Not for a compiled model, whose guards would see the hook.
    """
    positions = Positions()

    def count(_module: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        ids = named.get("input_ids", args[0] if args else None)
        if isinstance(ids, Tensor):
            positions.n += ids.numel()

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield positions
    finally:
        handle.remove()
