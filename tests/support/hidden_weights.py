"""Layers of small llamas whose float32 weights lie where only their code refers to them.

Each factory is named as `support.hidden_weights:NAME`; the MLPs of its model are such layers.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from support.odd_models import plain
from torch import Tensor, nn

REGISTRY: dict[int, Tensor] = {}


def product(x, weight):
    return nn.functional.linear(x.float(), weight).to(x.dtype)


@dataclass(slots=True)
class Packet:
    weight: Tensor


class InSlots(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.packet = Packet(layer.weight.data.clone())

    def forward(self, x):
        return product(x, self.packet.weight)


class InDeque(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.queue = deque([frozenset([layer.weight.data.clone()])])

    def forward(self, x):
        (weight,) = self.queue[0]
        return product(x, weight)


class InDefaults(nn.Module):
    def __init__(self, layer):
        super().__init__()

        copy = layer.weight.data.clone()

        def compute(x, weight=copy):
            return product(x, weight)

        self.compute = compute

    def forward(self, x):
        return self.compute(x)


class InGlobals(nn.Module):
    def __init__(self, layer):
        super().__init__()
        REGISTRY[id(self)] = layer.weight.data.clone()

    def forward(self, x):
        return product(x, REGISTRY[id(self)])


class InHook(nn.Module):
    def __init__(self, layer):
        super().__init__()
        weight = layer.weight.data.clone()
        self.register_forward_hook(lambda _module, inputs, _output: product(inputs[0], weight))

    def forward(self, x):
        return x


class ByOperator(nn.Linear):
    """A linear layer that multiplies in bfloat16 by torch's operator, and gives float32."""

    def forward(self, x):
        rows = x.reshape(-1, x.shape[-1]).bfloat16()
        result = torch.ops.aten.mm.default(rows, self.weight.t().bfloat16())
        return result.to(x.dtype).reshape(*x.shape[:-1], -1)


def _with_mlps(replaced):
    model = plain()
    for layer in model.model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(layer.mlp, name, replaced(getattr(layer.mlp, name)))
    return model


def in_slots():
    return _with_mlps(InSlots)


def in_deques():
    return _with_mlps(InDeque)


def in_defaults():
    return _with_mlps(InDefaults)


def in_globals():
    REGISTRY.clear()
    return _with_mlps(InGlobals)


def in_hooks():
    return _with_mlps(InHook)


def by_operators():
    model = plain()
    for layer in model.model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            linear = getattr(layer.mlp, name)
            replaced = ByOperator(linear.in_features, linear.out_features, bias=False)
            replaced.weight = linear.weight
            setattr(layer.mlp, name, replaced)
    return model
