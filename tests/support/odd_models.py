"""Small llamas that keep weights, compute or attend elsewhere than their configurations say.

Each is a factory, to be named as `support.odd_models:NAME`.
"""

from __future__ import annotations

import functools

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.engines.transformers.effective import describe
from pytest_llmperf.engines.transformers.load import load
from pytest_llmperf.strategies import parse, require_in_effect

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 128,
}
ATTENTION_ELEMENTS = 2 * 64 * 64 + 2 * 32 * 64
MLP_ELEMENTS = 3 * 128 * 64
LINEAR_ELEMENTS = 4 * (ATTENTION_ELEMENTS + MLP_ELEMENTS) + 256 * 64
ALL_ELEMENTS = LINEAR_ELEMENTS + 256 * 64 + 9 * 64
TABLES_BYTES = 2 * 8 * 4
"""The two rotary tables, which stay in float32."""


def loaded_under(strategy, name):
    """The model of a factory here under a strategy, what is in effect, and what was promised."""
    parsed = parse(strategy)
    ref = ModelRef(name=name, kind="factory", location=f"support.odd_models:{name}")
    plan = parsed.apply(LoadPlan(model=ref))
    loaded = load(plan)
    return loaded, describe(loaded), parsed.promises(plan)


def effective_of(strategy, name):
    """What is in effect, if the promises hold; else NotInEffect."""
    _, effective, promises = loaded_under(strategy, name)
    require_in_effect(effective, promises, "loaded")
    return effective


def plain():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()


class InBuffer(nn.Module):
    """float32 weights in a buffer."""

    def __init__(self, layer):
        super().__init__()
        self.register_buffer("packed", layer.weight.data.clone())

    def forward(self, x):
        return nn.functional.linear(x.float(), self.packed).to(x.dtype)


class InList(nn.Module):
    """float32 weights in a list of a dictionary."""

    def __init__(self, layer):
        super().__init__()
        self.kept = {"w": [layer.weight.data.clone()]}

    def forward(self, x):
        return (x.float() @ self.kept["w"][0].T).to(x.dtype)


class InClosure(nn.Module):
    """float32 weights in the closure of a function."""

    def __init__(self, layer):
        super().__init__()
        weight = layer.weight.data.clone()
        self.apply_to = lambda x: nn.functional.linear(x.float(), weight).to(x.dtype)

    def forward(self, x):
        return self.apply_to(x)


class InPartial(nn.Module):
    """float32 weights among the arguments of a partial function."""

    def __init__(self, layer):
        super().__init__()
        self.apply_to = functools.partial(self.multiplied, layer.weight.data.clone())

    @staticmethod
    def multiplied(weight, x):
        return torch.einsum("oi,bni->bno", weight, x.float()).to(x.dtype)

    def forward(self, x):
        return self.apply_to(x)


class InHiddenModule(nn.Module):
    """float32 weights in a linear layer that no module has registered."""

    def __init__(self, layer):
        super().__init__()
        hidden = nn.Linear(layer.in_features, layer.out_features, bias=False)
        hidden.weight.data.copy_(layer.weight.data)
        self.hidden = [hidden]

    def forward(self, x):
        return self.hidden[0](x.float()).to(x.dtype)


class Packed(nn.Module):
    """4-bit weights as AutoAWQ keeps them: eight to an int32 in a buffer, unpacked in each call."""

    def __init__(self, layer, *, says_its_shape):
        super().__init__()
        if says_its_shape:
            self.in_features, self.out_features = layer.in_features, layer.out_features
        weight = layer.weight.data
        scales = weight.abs().amax(dim=1, keepdim=True) / 7
        codes = (weight / scales).round().clamp(-8, 7).to(torch.int32) + 8
        shifts = torch.arange(0, 32, 4, dtype=torch.int32)
        packed = (codes.reshape(len(codes), -1, 8) << shifts).sum(dim=-1).to(torch.int32)
        self.register_buffer("qweight", packed)
        self.register_buffer("scales", scales.to(torch.float16))
        self.register_buffer("shifts", shifts)

    def forward(self, x):
        codes = (self.qweight[..., None] >> self.shifts) & 15
        weight = (codes.flatten(1) - 8) * self.scales
        return nn.functional.linear(x, weight.to(x.dtype))


def _with_mlps(make):
    model = plain()
    for layer in model.model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(layer.mlp, name, make(getattr(layer.mlp, name)))
    return model


def in_buffers():
    return _with_mlps(InBuffer)


def in_lists():
    return _with_mlps(InList)


def in_closures():
    return _with_mlps(InClosure)


def in_partials():
    return _with_mlps(InPartial)


def in_hidden_modules():
    return _with_mlps(InHiddenModule)


def packed():
    return _with_mlps(functools.partial(Packed, says_its_shape=True))


def packed_without_shape():
    return _with_mlps(functools.partial(Packed, says_its_shape=False))


def copies_beside():
    """A float32 master of each parameter, which nothing uses."""
    model = plain()
    model.master = [parameter.detach().clone() for parameter in model.parameters()]
    return model


def copies_in_a_class():
    """The same, in an attribute that the class has."""
    model = plain()
    model.__class__ = type("Own", (LlamaForCausalLM,), {"__module__": __name__})
    type(model).master = [parameter.detach().clone() for parameter in model.parameters()]
    return model


def gradients():
    """As a training step leaves it."""
    model = plain()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model


def sliced():
    """Each linear weight is the first quarter of a storage."""
    model = plain()
    for layer in [module for module in model.modules() if type(module) is nn.Linear]:
        whole = torch.empty(layer.out_features * 4, layer.in_features)
        whole[: layer.out_features] = layer.weight.data
        layer.weight = nn.Parameter(whole[: layer.out_features], requires_grad=False)
    return model


def expanded():
    """A mask of 400 million elements that is one."""
    model = plain()
    model.register_buffer("mask", torch.ones(1, 1).expand(20000, 20000))
    return model


def views():
    """q, k and v are views of one parameter, which is registered too."""
    model = plain()
    for layer in model.model.layers:
        parts = (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
        fused = nn.Parameter(torch.cat([part.weight.data for part in parts]), requires_grad=False)
        layer.self_attn.fused = fused
        sizes = [part.out_features for part in parts]
        for part, rows in zip(parts, fused.data.split(sizes), strict=True):
            part.weight = nn.Parameter(rows, requires_grad=False)
    return model


class Wide(nn.Linear):
    """Computes in float32 and gives it out."""

    def forward(self, x):
        return nn.functional.linear(x.float(), self.weight.float())


class Back(nn.Linear):
    """Computes in float32, and gives out the dtype of its weights."""

    def forward(self, x):
        return nn.functional.linear(x.float(), self.weight.float()).to(self.weight.dtype)


def wide_mlps():
    """Islands of float32: all that a bf16 block gives out is bf16."""
    model = plain()
    for layer in model.model.layers:
        layer.mlp.gate_proj.__class__ = layer.mlp.up_proj.__class__ = Wide
        layer.mlp.down_proj.__class__ = Back
    return model


def one_wide_layer():
    """One of 29 linear layers computes in float32."""
    model = plain()
    model.model.layers[2].mlp.down_proj.__class__ = Back
    return model


class Routed(nn.Module):
    """An MLP behind a router that computes in float32, as many do."""

    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp
        self.router = nn.Parameter(torch.ones(4, 64))

    def forward(self, x):
        scores = nn.functional.linear(x.float(), self.router.float()).softmax(dim=-1)
        return self.mlp(x) * scores.amax(dim=-1, keepdim=True).to(x.dtype)


def with_routers():
    model = plain()
    for layer in model.model.layers:
        layer.mlp = Routed(layer.mlp)
    return model


def _attending(attend, layers):
    """A llama whose `layers` attend by a function of queries, keys and values."""
    model = plain()
    for index in layers:
        model.model.layers[index].self_attn = Own(model.model.layers[index].self_attn, attend)
    return model


class Own(nn.Module):
    """Attention of a project's own, in a class whose name does not say so."""

    def __init__(self, layer, attend):
        super().__init__()
        self.projections = layer
        self.attend = attend

    def forward(self, hidden_states, **_):
        own = self.projections
        shape = (*hidden_states.shape[:2], -1, 16)
        q, k, v = (
            projection(hidden_states).view(shape).transpose(1, 2)
            for projection in (own.q_proj, own.k_proj, own.v_proj)
        )
        k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
        out = self.attend(q, k, v).transpose(1, 2).flatten(2)
        return own.o_proj(out), None


def _written(q, k, v):
    return (q @ k.transpose(-1, -2) / 4).softmax(dim=-1) @ v


def _without_softmax(q, k, v):
    """Attention without a function that says what it is."""
    weights = (q @ k.transpose(-1, -2) / 4).exp()
    return weights / weights.sum(dim=-1, keepdim=True) @ v


def _by_torch(q, k, v):
    return nn.functional.scaled_dot_product_attention(q, k, v)


def three_written():
    return _attending(_written, (0, 1, 3))


def one_without_softmax():
    return _attending(_without_softmax, (2,))


def all_by_torch():
    return _attending(_by_torch, range(4))
