"""Damages to a Llama-like model, a line each: what an agreement rule should catch.

Each is done to a model in memory and undone. `DECODING` ones touch what happens behind a cache
alone, so that one pass over a text does not show them.
"""

# ruff: noqa: D103 - each function is named for the damage that it does

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

Undo = contextlib.AbstractContextManager[None]


class Damage(NamedTuple):
    """A way to break a model.

    `decoding` ones show behind a cache alone. `behind` says how long a text has to be for it to
    show: a short one, "mid" or "long".
    """

    name: str
    family: str
    apply: Callable[[Any, Any], Undo]
    decoding: bool = False
    behind: str = ""


@contextlib.contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    own = name in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


@contextlib.contextmanager
def _changed(*weights: Tensor) -> Iterator[None]:
    """Give weights back as they were."""
    before = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            yield
    finally:
        for weight, value in zip(weights, before, strict=True):
            weight.data.copy_(value)


@contextlib.contextmanager
def _edited(weights: list[Tensor], edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    with _changed(*weights):
        for weight in weights:
            weight.copy_(edit(weight))
        yield


def _layers(model: Any) -> Any:
    return model.model.layers


def _matrices(module: nn.Module) -> list[Tensor]:
    return [part.weight for part in module.modules() if type(part) is nn.Linear]


# Positions


def positions(move: Callable[[Tensor], Tensor]) -> Callable[[Any, Any], Undo]:
    def apply(model: Any, _tokenizer: Any) -> Undo:
        rotary = model.model.rotary_emb
        forward = rotary.forward
        return patched(rotary, "forward", lambda x, position_ids: forward(x, move(position_ids)))

    return apply


def beyond(n: int, by: int) -> Callable[[Any, Any], Undo]:
    return positions(lambda ids: torch.where(ids >= n, ids + by, ids))


def _frequencies(edit: Callable[[Tensor], Tensor]) -> Callable[[Any, Any], Undo]:
    def apply(model: Any, _tokenizer: Any) -> Undo:
        rotary = model.model.rotary_emb
        return _patched_buffer(rotary, edit(rotary.inv_freq.clone()))

    return apply


@contextlib.contextmanager
def _patched_buffer(rotary: Any, value: Tensor) -> Iterator[None]:
    before = rotary.inv_freq
    rotary.inv_freq = value
    try:
        yield
    finally:
        rotary.inv_freq = before


def theta(factor: float) -> Callable[[Any, Any], Undo]:
    def stretch(inv_freq: Tensor) -> Tensor:
        n = len(inv_freq)
        return inv_freq * factor ** (-torch.arange(n, dtype=inv_freq.dtype) / n)

    return _frequencies(stretch)


def without(index: int) -> Callable[[Any, Any], Undo]:
    def zero(inv_freq: Tensor) -> Tensor:
        inv_freq[index] = 0
        return inv_freq

    return _frequencies(zero)


# Vocabulary


def permuted(is_hurt: Callable[[str], bool]) -> Callable[[Any, Any], Undo]:
    def apply(model: Any, tokenizer: Any) -> Undo:
        ids = [i for i in range(len(tokenizer)) if is_hurt(tokenizer.decode([i]))]
        weight = model.model.embed_tokens.weight

        def roll(rows: Tensor) -> Tensor:
            rolled = rows.clone()
            rolled[ids] = rows[ids].roll(1, 0)
            return rolled

        return _edited([weight], roll)

    return apply


def between(first: str, last: str) -> Callable[[str], bool]:
    return lambda text: any(first <= character <= last for character in text)


PYTHON = frozenset(("self", "def", "class", "None", "import", "return", "__", "init", "int", "."))


def head(edit: Callable[[Tensor, int], Tensor]) -> Callable[[Any, Any], Undo]:
    def apply(model: Any, tokenizer: Any) -> Undo:
        head, end = model.lm_head, tokenizer.eos_token_id
        forward = head.forward
        return patched(head, "forward", lambda x: edit(forward(x).clone(), end))

    return apply


def end(by: float) -> Callable[[Any, Any], Undo]:
    def shift(logits: Tensor, end: int) -> Tensor:
        logits[..., end] += by
        return logits

    return head(shift)


def no_end(logits: Tensor, end: int) -> Tensor:
    logits[..., end] = 0
    return logits


# Weights


def round_to(bits: int, *, by_row: bool = True) -> Callable[[Tensor], Tensor]:
    def rounded(weight: Tensor) -> Tensor:
        most = 2 ** (bits - 1) - 1
        values = weight.float()
        largest = values.abs().amax(1, keepdim=True) if by_row else values.abs().amax()
        scale = largest.clamp(min=1e-8) / most
        return ((values / scale).round().clamp(-most - 1, most) * scale).to(weight.dtype)

    return rounded


def times(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda weight: weight * factor


def noisy(share: float) -> Callable[[Tensor], Tensor]:
    def add(weight: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(weight.shape, generator=generator) * weight.float().std() * share
        return (weight.float() + noise).to(weight.dtype)

    return add


def pruned(share: float) -> Callable[[Tensor], Tensor]:
    def prune(weight: Tensor) -> Tensor:
        limit = weight.float().abs().flatten().kthvalue(int(share * weight.numel())).values
        return torch.where(weight.abs() <= limit.to(weight.dtype), 0, weight)

    return prune


def weights(
    choose: Callable[[Any], list[Tensor]], edit: Callable[[Tensor], Tensor]
) -> Callable[[Any, Any], Undo]:
    return lambda model, _tokenizer: _edited(choose(model), edit)


def in_layer(index: int, *names: str) -> Callable[[Any], list[Tensor]]:
    def choose(model: Any) -> list[Tensor]:
        layer = _layers(model)[index]
        return [layer.get_submodule(name).weight for name in names] or _matrices(layer)

    return choose


def all_layers(model: Any) -> list[Tensor]:
    return _matrices(_layers(model))


def all_down(model: Any) -> list[Tensor]:
    return [layer.mlp.down_proj.weight for layer in _layers(model)]


def final_norm(model: Any) -> list[Tensor]:
    return [model.model.norm.weight]


def embedding(model: Any) -> list[Tensor]:
    return [model.model.embed_tokens.weight]


def zero(_weight: Tensor) -> Tensor:
    return torch.zeros_like(_weight)


def zero_columns(first: int, last: int) -> Callable[[Tensor], Tensor]:
    def zero(weight: Tensor) -> Tensor:
        columns = weight.clone()
        columns[:, first:last] = 0
        return columns

    return zero


def swap_rows(a: int, b: int, n: int) -> Callable[[Tensor], Tensor]:
    def swap(weight: Tensor) -> Tensor:
        rows = weight.clone()
        rows[a * n : (a + 1) * n] = weight[b * n : (b + 1) * n]
        rows[b * n : (b + 1) * n] = weight[a * n : (a + 1) * n]
        return rows

    return swap


# Modules


def attention_scale(factor: float) -> Callable[[Any, Any], Undo]:
    @contextlib.contextmanager
    def apply(model: Any, _tokenizer: Any) -> Iterator[None]:
        attentions = [layer.self_attn for layer in _layers(model)]
        for attention in attentions:
            attention.scaling *= factor
        try:
            yield
        finally:
            for attention in attentions:
                attention.scaling /= factor

    return apply


def epsilon(value: float) -> Callable[[Any, Any], Undo]:
    @contextlib.contextmanager
    def apply(model: Any, _tokenizer: Any) -> Iterator[None]:
        norms = [part for part in model.modules() if hasattr(part, "variance_epsilon")]
        before = [norm.variance_epsilon for norm in norms]
        for norm in norms:
            norm.variance_epsilon = value
        try:
            yield
        finally:
            for norm, epsilon in zip(norms, before, strict=True):
                norm.variance_epsilon = epsilon

    return apply


def skipped(index: int) -> Callable[[Any, Any], Undo]:
    def apply(model: Any, _tokenizer: Any) -> Undo:
        return patched(_layers(model)[index], "forward", lambda hidden, **_named: hidden)

    return apply


def gelu(indices: range) -> Callable[[Any, Any], Undo]:
    @contextlib.contextmanager
    def apply(model: Any, _tokenizer: Any) -> Iterator[None]:
        mlps = [_layers(model)[i].mlp for i in indices]
        before = [mlp.act_fn for mlp in mlps]
        for mlp in mlps:
            mlp.act_fn = nn.GELU()
        try:
            yield
        finally:
            for mlp, activation in zip(mlps, before, strict=True):
                mlp.act_fn = activation

    return apply


def rounded_output(index: int, dtype: torch.dtype) -> Callable[[Any, Any], Undo]:
    @contextlib.contextmanager
    def apply(model: Any, _tokenizer: Any) -> Iterator[None]:
        def rounded(_module: nn.Module, _inputs: object, out: Any) -> Any:
            return out.to(dtype).to(out.dtype)

        handle = _layers(model)[index].register_forward_hook(rounded)
        try:
            yield
        finally:
            handle.remove()

    return apply


def attention(edit: Callable[..., tuple[Tensor, Tensor | None]]) -> Callable[[Any, Any], Undo]:
    """Change the inputs of torch's attention by `edit(query, key, mask) -> (key, mask)`."""

    def apply(_model: Any, _tokenizer: Any) -> Undo:
        attend = functional.scaled_dot_product_attention

        @functools.wraps(attend)
        def changed(query: Tensor, key: Tensor, value: Tensor, **named: Any) -> Tensor:
            key, mask = edit(query, key, _written_mask(query, key, named))
            named |= {"attn_mask": mask, "is_causal": False}
            return attend(query, key, value, **named)

        return patched(functional, "scaled_dot_product_attention", changed)

    return apply


def _written_mask(query: Tensor, key: Tensor, named: dict[str, Any]) -> Tensor:
    """Return a boolean mask [.., queries, keys] of an attention, causal where none is given."""
    mask = named.get("attn_mask")
    if mask is not None:
        return mask if mask.dtype == torch.bool else mask >= 0
    n, total = query.shape[-2], key.shape[-2]
    return torch.ones(n, total, dtype=torch.bool).tril(total - n)[None, None]


def windowed(n: int, query: Tensor, key: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    rows, total = query.shape[-2], key.shape[-2]
    near = torch.ones(rows, total, dtype=torch.bool).triu(total - rows - n + 1)
    return key, mask & near


def blind_to_first(_query: Tensor, key: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    blind = mask.clone()
    first = blind.int().argmax(-1, keepdim=True)
    rows = blind.sum(-1, keepdim=True) > 1
    return key, torch.where(rows, blind.scatter(-1, first, value=False), blind)
