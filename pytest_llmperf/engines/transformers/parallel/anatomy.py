"""Where the parts of a decoder are: its embedding, its list of layers, its final norm, its head.

By structure, not by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

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
        """The number of the layer that a module is in."""
        if not path.startswith(self.layers + "."):
            return None
        return int(path[len(self.layers) + 1 :].split(".", 1)[0])


def anatomy(model: Any) -> Anatomy:
    """Raises LoadError for a model without one list of layers as long as its config says."""
    paths = {id(module): path for path, module in model.named_modules()}
    base = model.base_model
    n_layers = int(model.config.get_text_config().num_hidden_layers)
    stacks = [
        child
        for child in base.children()
        if isinstance(child, nn.ModuleList) and len(child) == n_layers
    ]
    if len(stacks) != 1:
        raise LoadError(
            f"{type(model).__name__} has {len(stacks)} lists of {n_layers} layers; one is needed to cut it over devices.",
        )
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    others = [
        c
        for c in base.children()
        if c is not stacks[0] and c is not embedding and any(True for _ in c.parameters())
    ]
    return Anatomy(
        embedding=paths[id(embedding)],
        layers=paths[id(stacks[0])],
        norms=tuple(paths[id(each)] for each in others),
        head=paths[id(head)],
        n_layers=n_layers,
    )


def is_tied(model: Any) -> bool:
    """Whether the output head is the input embedding."""
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


def own_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers in a module, tied ones once.

    On the meta device those it would take.
    """
    tensors = {
        id(tensor): tensor
        for source in (module.parameters(), module.buffers())
        for tensor in source
    }
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
