"""What a tensor-parallel plan divides of a model, module by module, and what it leaves whole."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pytest_llmperf.engines.transformers.parallel.anatomy import anatomy, bytes_of
from pytest_llmperf.engines.transformers.quantize.storage import inner_tensors
from pytest_llmperf.errors import LoadError

LEAST_SHARE = 0.5
"""What a plan must divide of the blocks' matrices. Plans of transformers divide 0 %, or 68 % up."""

_MATRIX_DIMENSIONS = 2
_NAMED = 4
_ROUNDING = 0.02


@dataclass(frozen=True)
class Division:
    """A model without weights, and the paths that a plan divides: of modules or of parameters."""

    model: Any
    divided: frozenset[str]

    @property
    def bytes(self) -> int:
        """Bytes of all tensors that the plan divides, tied ones once."""
        return bytes_of(tensor for _, tensor in self._parameters() if tensor is not None)

    def share_of_blocks(self) -> float:
        """Return the share of the bytes of the blocks' matrices that the plan divides, 0 to 1."""
        prefix = f"{anatomy(self.model).layers}."
        whole = [t for path, t in _matrices(self.model) if path.startswith(prefix)]
        parts = [t for path, t in _matrices(self.model) if self._divides(path)]
        in_blocks = {id(tensor) for tensor in whole}
        return bytes_of(t for t in parts if id(t) in in_blocks) / max(1, bytes_of(whole))

    def left_whole(self) -> dict[str, int]:
        """Return the bytes of matrices that every rank holds whole, by their path in the plan."""
        sizes: Counter[str] = Counter()
        for path, tensor in _matrices(self.model):
            if not self._divides(path):
                sizes[_pattern(path)] += tensor.nbytes
        return dict(sizes.most_common())

    def larger_than_planned(self, loaded: nn.Module, ranks: int) -> list[str]:
        """Return a text on each tensor of which a rank holds more than its share of the plan."""
        held = dict(loaded.named_parameters())
        wrong = []
        for path, tensor in _matrices(self.model):
            n_bytes = (
                sum(inner.nbytes for inner in inner_tensors(held[path])) if path in held else 0
            )
            share = tensor.nbytes / ranks if self._divides(path) else tensor.nbytes
            uneven = max(tensor.nbytes // min(tensor.shape), 1) if self._divides(path) else 0
            if n_bytes > share * (1 + _ROUNDING) + uneven / ranks:
                wrong.append(f"{path} holds {n_bytes} B, {share:.0f} B are its share")
        return wrong

    def require_blocks_divided(self, part: str) -> None:
        """Raise LoadError for a plan that leaves most of the blocks whole on every rank."""
        share = self.share_of_blocks()
        if share >= LEAST_SHARE:
            return
        named = ", ".join(sorted(self.divided)[:_NAMED]) or "nothing"
        whole = ", ".join(list(self.left_whole())[:_NAMED])
        raise LoadError(
            f"the tensor-parallel plan of {type(self.model).__name__} divides {share:.0%} of the "
            f"matrices of its blocks (it names {named}): every rank of {part} would hold the rest "
            f"whole, like {whole}. Take 'fsdpN', which divides every layer."
        )

    def _parameters(self) -> Iterator[tuple[str, Tensor]]:
        return ((path, t) for path, t in self.model.named_parameters() if self._divides(path))

    def _divides(self, path: str) -> bool:
        module = path.rpartition(".")[0]
        return not self.divided.isdisjoint({_pattern(module), _pattern(path)})


def described(left_whole: Mapping[str, int]) -> str:
    """Say what every rank holds whole: the largest matrices with their bytes."""
    largest = list(left_whole.items())[:_NAMED]
    texts = [f"{path} ({n_bytes / 1e6:.3g} MB)" for path, n_bytes in largest]
    more = f" and {len(left_whole) - _NAMED} others" if len(left_whole) > _NAMED else ""
    return f"every rank holds whole: {', '.join(texts)}{more}"


def _matrices(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    named = model.named_parameters()
    return ((path, tensor) for path, tensor in named if tensor.dim() >= _MATRIX_DIMENSIONS)


def _pattern(path: str) -> str:
    """Return a path as plans write it: with an asterisk for the number of a layer."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", path)
