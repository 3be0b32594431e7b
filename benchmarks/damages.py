"""Damages to a Llama-like model, a line each: what an agreement rule should catch.

Each is done to a model in memory and undone. `DECODING` ones touch what happens behind a cache
alone, so that one pass over a text does not show them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.cache_utils import DynamicLayer

Undo = contextlib.AbstractContextManager[None]


class Damage(NamedTuple):
    """A way to break a model; `decoding` ones show behind a cache alone."""

    name: str
    family: str
    apply: Callable[[Any, Any], Undo]
    decoding: bool = False


@contextlib.contextmanager
def _patched(owner: Any, name: str, value: Any) -> Iterator[None]:
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


def _positions(move: Callable[[Tensor], Tensor]) -> Callable[[Any, Any], Undo]:
    def apply(model: Any, _tokenizer: Any) -> Undo:
        rotary = model.model.rotary_emb
        forward = rotary.forward
        return _patched(rotary, "forward", lambda x, position_ids: forward(x, move(position_ids)))

    return apply


def _beyond(n: int, by: int) -> Callable[[Any, Any], Undo]:
    return _positions(lambda ids: torch.where(ids >= n, ids + by, ids))


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


def _theta(factor: float) -> Callable[[Any, Any], Undo]:
    def stretch(inv_freq: Tensor) -> Tensor:
        n = len(inv_freq)
        return inv_freq * factor ** (-torch.arange(n, dtype=inv_freq.dtype) / n)

    return _frequencies(stretch)


def _without(index: int) -> Callable[[Any, Any], Undo]:
    def zero(inv_freq: Tensor) -> Tensor:
        inv_freq[index] = 0
        return inv_freq

    return _frequencies(zero)


# Vocabulary


def _permuted(is_hurt: Callable[[str], bool]) -> Callable[[Any, Any], Undo]:
    def apply(model: Any, tokenizer: Any) -> Undo:
        ids = [i for i in range(len(tokenizer)) if is_hurt(tokenizer.decode([i]))]
        weight = model.model.embed_tokens.weight

        def roll(rows: Tensor) -> Tensor:
            rolled = rows.clone()
            rolled[ids] = rows[ids].roll(1, 0)
            return rolled

        return _edited([weight], roll)

    return apply


def _between(first: str, last: str) -> Callable[[str], bool]:
    return lambda text: any(first <= character <= last for character in text)


_PYTHON = frozenset(("self", "def", "class", "None", "import", "return", "__", "init", "int", "."))


def _head(edit: Callable[[Tensor, int], Tensor]) -> Callable[[Any, Any], Undo]:
    def apply(model: Any, tokenizer: Any) -> Undo:
        head, end = model.lm_head, tokenizer.eos_token_id
        forward = head.forward
        return _patched(head, "forward", lambda x: edit(forward(x).clone(), end))

    return apply


def _end(by: float) -> Callable[[Any, Any], Undo]:
    def shift(logits: Tensor, end: int) -> Tensor:
        logits[..., end] += by
        return logits

    return _head(shift)


def _no_end(logits: Tensor, end: int) -> Tensor:
    logits[..., end] = 0
    return logits


# Weights


def _round_to(bits: int, *, by_row: bool = True) -> Callable[[Tensor], Tensor]:
    def rounded(weight: Tensor) -> Tensor:
        most = 2 ** (bits - 1) - 1
        values = weight.float()
        largest = values.abs().amax(1, keepdim=True) if by_row else values.abs().amax()
        scale = largest.clamp(min=1e-8) / most
        return ((values / scale).round().clamp(-most - 1, most) * scale).to(weight.dtype)

    return rounded


def _times(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda weight: weight * factor


def _noisy(share: float) -> Callable[[Tensor], Tensor]:
    def add(weight: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(weight.shape, generator=generator) * weight.float().std() * share
        return (weight.float() + noise).to(weight.dtype)

    return add


def _pruned(share: float) -> Callable[[Tensor], Tensor]:
    def prune(weight: Tensor) -> Tensor:
        limit = weight.float().abs().flatten().kthvalue(int(share * weight.numel())).values
        return torch.where(weight.abs() <= limit.to(weight.dtype), 0, weight)

    return prune


def _weights(
    choose: Callable[[Any], list[Tensor]], edit: Callable[[Tensor], Tensor]
) -> Callable[[Any, Any], Undo]:
    return lambda model, _tokenizer: _edited(choose(model), edit)


def _in_layer(index: int, *names: str) -> Callable[[Any], list[Tensor]]:
    def choose(model: Any) -> list[Tensor]:
        layer = _layers(model)[index]
        return [layer.get_submodule(name).weight for name in names] or _matrices(layer)

    return choose


def _all_layers(model: Any) -> list[Tensor]:
    return _matrices(_layers(model))


def _all_down(model: Any) -> list[Tensor]:
    return [layer.mlp.down_proj.weight for layer in _layers(model)]


def _final_norm(model: Any) -> list[Tensor]:
    return [model.model.norm.weight]


def _embedding(model: Any) -> list[Tensor]:
    return [model.model.embed_tokens.weight]


def _zero(_weight: Tensor) -> Tensor:
    return torch.zeros_like(_weight)


def _zero_columns(first: int, last: int) -> Callable[[Tensor], Tensor]:
    def zero(weight: Tensor) -> Tensor:
        columns = weight.clone()
        columns[:, first:last] = 0
        return columns

    return zero


def _swap_rows(a: int, b: int, n: int) -> Callable[[Tensor], Tensor]:
    def swap(weight: Tensor) -> Tensor:
        rows = weight.clone()
        rows[a * n : (a + 1) * n] = weight[b * n : (b + 1) * n]
        rows[b * n : (b + 1) * n] = weight[a * n : (a + 1) * n]
        return rows

    return swap


# Modules


def _attention_scale(factor: float) -> Callable[[Any, Any], Undo]:
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


def _epsilon(value: float) -> Callable[[Any, Any], Undo]:
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


def _skipped(index: int) -> Callable[[Any, Any], Undo]:
    def apply(model: Any, _tokenizer: Any) -> Undo:
        return _patched(_layers(model)[index], "forward", lambda hidden, **_named: hidden)

    return apply


def _gelu(indices: range) -> Callable[[Any, Any], Undo]:
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


def _rounded_output(index: int, dtype: torch.dtype) -> Callable[[Any, Any], Undo]:
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


def _attention(edit: Callable[..., tuple[Tensor, Tensor | None]]) -> Callable[[Any, Any], Undo]:
    """Change the inputs of torch's attention by `edit(query, key, mask) -> (key, mask)`."""

    def apply(_model: Any, _tokenizer: Any) -> Undo:
        attend = functional.scaled_dot_product_attention

        @functools.wraps(attend)
        def changed(query: Tensor, key: Tensor, value: Tensor, **named: Any) -> Tensor:
            key, mask = edit(query, key, _written_mask(query, key, named))
            named |= {"attn_mask": mask, "is_causal": False}
            return attend(query, key, value, **named)

        return _patched(functional, "scaled_dot_product_attention", changed)

    return apply


def _written_mask(query: Tensor, key: Tensor, named: dict[str, Any]) -> Tensor:
    """Return a boolean mask [.., queries, keys] of an attention, causal where none is given."""
    mask = named.get("attn_mask")
    if mask is not None:
        return mask if mask.dtype == torch.bool else mask >= 0
    n, total = query.shape[-2], key.shape[-2]
    return torch.ones(n, total, dtype=torch.bool).tril(total - n)[None, None]


def _windowed(n: int, query: Tensor, key: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    rows, total = query.shape[-2], key.shape[-2]
    near = torch.ones(rows, total, dtype=torch.bool).triu(total - rows - n + 1)
    return key, mask & near


def _blind_to_first(_query: Tensor, key: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    blind = mask.clone()
    first = blind.int().argmax(-1, keepdim=True)
    rows = blind.sum(-1, keepdim=True) > 1
    return key, torch.where(rows, blind.scatter(-1, first, value=False), blind)


# Decoding alone


def _cache(
    edit: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]],
) -> Callable[[Any, Any], Undo]:
    """Change what a cache gives back when a single token is appended."""

    def apply(_model: Any, _tokenizer: Any) -> Undo:
        update = DynamicLayer.update

        def changed(self: Any, key: Tensor, value: Tensor, *args: Any, **named: Any) -> Any:
            keys, values = update(self, key, value, *args, **named)
            if key.shape[-2] > 1:
                return keys, values
            return edit(keys.clone(), values.clone(), keys.shape[-2])

        return _patched(DynamicLayer, "update", changed)

    return apply


def _stale(keys: Tensor, values: Tensor, _n: int) -> tuple[Tensor, Tensor]:
    values[..., -2, :] = values[..., -3, :]
    return keys, values


def _forgets(n: int) -> Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]:
    def edit(keys: Tensor, values: Tensor, _n: int) -> tuple[Tensor, Tensor]:
        values[..., :-n, :] = 0
        return keys, values

    return edit


def _loses_prompt(keys: Tensor, values: Tensor, _n: int) -> tuple[Tensor, Tensor]:
    values[..., -48:-40, :] = 0
    return keys, values


def _wraps(n: int) -> Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]:
    def edit(keys: Tensor, values: Tensor, total: int) -> tuple[Tensor, Tensor]:
        if total > n:
            keys[..., : total - n, :], values[..., : total - n, :] = 0, 0
        return keys, values

    return edit


def _coarse(bits: int) -> Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]:
    most = 2 ** (bits - 1) - 1

    def rounded(states: Tensor) -> Tensor:
        scale = states.abs().amax(-1, keepdim=True).clamp(min=1e-6) / most
        return (states / scale).round() * scale

    return lambda keys, values, _n: (rounded(keys), rounded(values))


def _decoded_positions(move: Callable[[Tensor], Tensor]) -> Callable[[Any, Any], Undo]:
    def apply(model: Any, _tokenizer: Any) -> Undo:
        rotary = model.model.rotary_emb
        forward = rotary.forward

        def changed(x: Tensor, position_ids: Tensor) -> Any:
            alone = position_ids.shape[-1] == 1
            return forward(x, move(position_ids) if alone else position_ids)

        return _patched(rotary, "forward", changed)

    return apply


def _one_token_for_ever(model: Any, _tokenizer: Any) -> Undo:
    forward = model.forward

    @functools.wraps(forward)
    def changed(*args: Any, **named: Any) -> Any:
        out = forward(*args, **named)
        if named["input_ids"].shape[1] == 1:
            out.logits.fill_(-1e4)
            out.logits[..., 17] = 0
        return out

    return _patched(model, "forward", changed)


DAMAGES = (
    *(
        Damage(f"positions from {n} on, + {by}", "positions", _beyond(n, by))
        for n, by in ((64, 1), (96, 1), (128, 1), (256, 1), (512, 1), (1024, 1), (96, 100))
    ),
    Damage("positions x 1.05", "positions", _positions(lambda ids: ids * 1.05)),
    Damage("positions / 2", "positions", _positions(lambda ids: ids / 2)),
    Damage("positions in bf16", "positions", _positions(lambda ids: ids.bfloat16().float())),
    Damage("RoPE theta x 1.5", "positions", _theta(1.5)),
    Damage("RoPE theta x 10", "positions", _theta(10)),
    Damage("RoPE theta x 0.1", "positions", _theta(0.1)),
    Damage("first RoPE frequency 0", "positions", _without(0)),
    Damage("RoPE frequency 8 is 0", "positions", _without(8)),
    Damage("Cyrillic tokens rolled", "tokens", _permuted(_between("\u0400", "\u04ff"))),
    Damage("Greek tokens rolled", "tokens", _permuted(_between("\u0370", "\u03ff"))),
    Damage("Arabic tokens rolled", "tokens", _permuted(_between("\u0600", "\u06ff"))),
    Damage("Chinese tokens rolled", "tokens", _permuted(_between("\u4e00", "\u9fff"))),
    Damage("accented Latin rolled", "tokens", _permuted(_between("\u00c0", "\u00ff"))),
    Damage("Python words rolled", "tokens", _permuted(lambda text: text.strip() in _PYTHON)),
    Damage("digits rolled", "tokens", _permuted(str.isdigit)),
    Damage(
        "blank tokens rolled", "tokens", _permuted(lambda text: len(text) > 1 > len(text.strip()))
    ),
    *(Damage(f"end of sequence {by:+g}", "end", _end(by)) for by in (-5, -1.5, 1, 3)),
    Damage("end of sequence 0", "end", _head(_no_end)),
    *(
        Damage(f"logits x {factor}", "scale", _weights(_final_norm, _times(factor)))
        for factor in (0.95, 1.05, 1.09)
    ),
    *(
        Damage(f"attention scale x {factor}", "scale", _attention_scale(factor))
        for factor in (0.9, 1.05, 1.2)
    ),
    Damage("layer 15 x 1.02", "scale", _weights(_in_layer(15), _times(1.02))),
    Damage("layer 15 x 1.05", "scale", _weights(_in_layer(15), _times(1.05))),
    Damage("all down_proj x 1.02", "scale", _weights(_all_down, _times(1.02))),
    Damage("all down_proj x 0.97", "scale", _weights(_all_down, _times(0.97))),
    Damage("norms' epsilon 1e-3", "scale", _epsilon(1e-3)),
    Damage("norms' epsilon 1e-2", "scale", _epsilon(1e-2)),
    Damage("embeddings x 1.1", "scale", _weights(_embedding, _times(1.1))),
    Damage(
        "layer 15 down in 3 bits", "bits", _weights(_in_layer(15, "mlp.down_proj"), _round_to(3))
    ),
    Damage("layer 15 in 3 bits", "bits", _weights(_in_layer(15), _round_to(3))),
    Damage("layer 0 in 4 bits", "bits", _weights(_in_layer(0), _round_to(4))),
    Damage("all layers in 6 bits", "bits", _weights(_all_layers, _round_to(6))),
    Damage("all layers in 8 bits", "bits", _weights(_all_layers, _round_to(8, by_row=False))),
    Damage("layer 20 up in 2 bits", "bits", _weights(_in_layer(20, "mlp.up_proj"), _round_to(2))),
    Damage("embeddings in 4 bits", "bits", _weights(_embedding, _round_to(4))),
    Damage("embeddings in 6 bits", "bits", _weights(_embedding, _round_to(6))),
    Damage("weights + 1 % noise", "bits", _weights(_all_layers, _noisy(0.01))),
    Damage("layer 10 + 5 % noise", "bits", _weights(_in_layer(10), _noisy(0.05))),
    Damage("5 % of weights 0", "bits", _weights(_all_layers, _pruned(0.05))),
    Damage("10 % of weights 0", "bits", _weights(_all_layers, _pruned(0.1))),
    Damage("layer 15 out in fp8", "bits", _rounded_output(15, torch.float8_e4m3fn)),
    Damage(
        "layer 15 query heads swapped",
        "heads",
        _weights(_in_layer(15, "self_attn.q_proj"), _swap_rows(0, 1, 64)),
    ),
    Damage(
        "layer 15 kv heads swapped",
        "heads",
        _weights(_in_layer(15, "self_attn.k_proj", "self_attn.v_proj"), _swap_rows(0, 1, 64)),
    ),
    Damage(
        "layer 5 key heads swapped",
        "heads",
        _weights(_in_layer(5, "self_attn.k_proj"), _swap_rows(1, 2, 64)),
    ),
    *(
        Damage(
            f"layer {layer} head {head} is 0",
            "heads",
            _weights(
                _in_layer(layer, "self_attn.o_proj"), _zero_columns(64 * head, 64 * head + 64)
            ),
        )
        for layer, head in ((5, 3), (15, 0), (25, 8))
    ),
    *(
        Damage(
            f"layer {layer} attention is 0",
            "heads",
            _weights(_in_layer(layer, "self_attn.o_proj"), _zero),
        )
        for layer in (10, 20)
    ),
    Damage("layer 15 MLP is 0", "heads", _weights(_in_layer(15, "mlp.down_proj"), _zero)),
    Damage(
        "layer 15, 100 neurons are 0",
        "heads",
        _weights(_in_layer(15, "mlp.down_proj"), _zero_columns(0, 100)),
    ),
    Damage("layer 14 left out", "heads", _skipped(14)),
    Damage("layer 15 GELU for SiLU", "heads", _gelu(range(15, 16))),
    Damage("GELU for SiLU", "heads", _gelu(range(30))),
    Damage("window of 64", "mask", _attention(lambda *a: _windowed(64, *a))),
    Damage("window of 256", "mask", _attention(lambda *a: _windowed(256, *a))),
    Damage("window of 1024", "mask", _attention(lambda *a: _windowed(1024, *a))),
    Damage("first token unseen", "mask", _attention(_blind_to_first)),
    Damage("decoded positions + 1", "decoding", _decoded_positions(lambda ids: ids + 1), True),
    Damage("decoded positions + 10", "decoding", _decoded_positions(lambda ids: ids + 10), True),
    Damage("decoded positions 0", "decoding", _decoded_positions(lambda ids: ids * 0), True),
    Damage("value before is stale", "decoding", _cache(_stale), True),
    Damage("values older than 32 are 0", "decoding", _cache(_forgets(32)), True),
    Damage("8 prompt values lost", "decoding", _cache(_loses_prompt), True),
    Damage("cache wraps at 512", "decoding", _cache(_wraps(512)), True),
    Damage("cache in 4 bits", "decoding", _cache(_coarse(4)), True),
    Damage("cache in 6 bits", "decoding", _cache(_coarse(6)), True),
    Damage("one token for ever", "decoding", _one_token_for_ever, True),
)
"""In this order; every second one of a family is held out (`agreement_damages.held_out`)."""
