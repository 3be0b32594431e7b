"""Where the parts of a decoder are: its embedding, its list of layers, its final norm, its head.

They are found by structure, not by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor, nn

from pytest_llmperf.errors import LoadError


@dataclass(frozen=True)
class Anatomy:
    """Paths in the model.

    `norms` are the modules with weights beside embedding and layers: one, in a plain decoder.
    """

    embedding: str
    layers: str
    norms: tuple[str, ...]
    head: str
    n_layers: int

    def layer(self, path: str) -> int | None:
        """Return the number of the layer that a module is in; None where it is in none."""
        prefix = f"{self.layers}."
        if not path.startswith(prefix):
            return None
        return int(path.removeprefix(prefix).split(".")[0])


def anatomy(model: Any) -> Anatomy:
    """Find the parts of `model`.

    Raises LoadError for a model without one list of layers as long as its config says.
    """
    paths = {module: path for path, module in model.named_modules()}
    layers = _layer_list(model)
    embedding = model.get_input_embeddings()
    others = [child for child in model.base_model.children() if child not in (layers, embedding)]
    return Anatomy(
        embedding=paths[embedding],
        layers=paths[layers],
        norms=tuple(paths[child] for child in others if _has_weights(child)),
        head=paths[model.get_output_embeddings()],
        n_layers=len(layers),
    )


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _layer_list(model: Any) -> nn.ModuleList:
    n_layers = int(model.config.get_text_config().num_hidden_layers)
    lists = [child for child in model.base_model.children() if isinstance(child, nn.ModuleList)]
    stacks = [modules for modules in lists if len(modules) == n_layers]
    if len(stacks) != 1:
        raise LoadError(
            f"{type(model).__name__} has {len(stacks)} lists of {n_layers} layers; "
            "one is needed to cut it over devices.",
        )
    return stacks[0]


def is_tied(model: Any) -> bool:
    """Whether the output head is the input embedding."""
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


def own_bytes(module: nn.Module) -> int:
    """Return the bytes of all parameters and buffers in a module, tied ones once.

    Tensors on the meta device count by the bytes that they would take.
    """
    return bytes_of(chain(module.parameters(), module.buffers()))


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of all tensors, each object once."""
    distinct = {id(tensor): tensor for tensor in tensors}
    return sum(tensor.nbytes for tensor in distinct.values())
