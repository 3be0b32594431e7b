"""What strategy parts promise, as pure predicates over what is in effect.

The reason of a broken promise always says what is in effect instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from pytest_llmperf.core.effective import (
    LARGE_SHARE,
    PLAIN_FLOATS,
    ComputeGroup,
    Effective,
    Promise,
)

SMALL_SHARE = 0.005
"""What linear layers may compute in another dtype, as a share of all products with weights."""


def weights_are(part: str, dtype: str, *, unquantized: bool = False) -> Promise:
    """Promise that every linear layer and every parameter is stored in `dtype`.

    Parameters that the architecture itself keeps apart are not looked at. With `unquantized` only
    what is not quantized is, where another part promises that some layers are.
    """
    return Promise(
        f"weights are {dtype}",
        lambda e: _wrong_weights(e, dtype, unquantized=unquantized),
        part=part,
    )


def weights_as_in_checkpoint(part: str, *, unquantized: bool = False) -> Promise:
    """Promise that weights are stored in the dtype of the checkpoint.

    An engine that does not report that dtype breaks the promise. A server, which shows no weights,
    is asked for nothing: its notes hold what it reports. `unquantized` is as for `weights_are`.
    """
    return Promise(
        "weights are in the checkpoint's dtype",
        lambda effective: _unlike_checkpoint(effective, unquantized=unquantized),
        part=part,
    )


def computes_in(part: str, dtype: str) -> Promise:
    """Promise that weights are multiplied in `dtype` in a probe forward, and give it out.

    That is every linear layer but those that the architecture keeps apart, and all but a twentieth
    of the other products: routers compute in float32.
    """
    return Promise(f"compute is {dtype}", lambda e: _other_compute(e, dtype), part=part)


def autocast_is(part: str, dtype: str | None) -> Promise:
    """Promise that forward passes run under autocast to `dtype`, or without it for None."""
    return Promise(
        f"autocast to {dtype}" if dtype else "no autocast",
        lambda e: _differs("autocast", e.autocast_dtype, dtype),
        part=part,
    )


def attention_is(part: str, implementation: str) -> Promise:
    """Promise that the attention layers use `implementation`."""
    return Promise(
        f"attention is {implementation}",
        lambda e: _differs("attention", e.attention, implementation),
        part=part,
    )


def cache_is_static(part: str) -> Promise:
    """Promise that the KV cache of the last run was one of fixed size. Known after warm-up."""
    return Promise("the KV cache is static", _no_static_cache, when="warm", part=part)


def is_compiled(part: str, mode: str) -> Promise:
    """Promise that compiled graphs ran all but a twentieth of a step's products with weights.

    Mode "default" leaves the choice to the engine; another must be the one in use.
    """
    return Promise(
        f"compiled in mode {mode}",
        lambda effective: _not_compiled(effective, mode),
        when="warm",
        part=part,
    )


def _other_compute(effective: Effective, dtype: str) -> str | None:
    others = [group for group in effective.computes if not _computes_in(group, dtype)]
    linear_share = sum(group.share for group in others if group.linear)
    share = sum(group.share for group in others)
    if linear_share <= SMALL_SHARE and share <= LARGE_SHARE:
        return _differs("compute", effective.compute_dtype, dtype)
    if all(group in others for group in effective.computes):
        only = {group.dtype for group in others} | {group.output for group in others}
        if len(only) == 1:
            return _differs("compute", only.pop(), dtype)
    modules = sum(group.modules for group in effective.computes)
    listed = ", ".join(map(_in_words, others))
    return f"{listed} (of {modules} modules with weights), asked for {dtype}"


def _computes_in(group: ComputeGroup, dtype: str) -> bool:
    return group.fixed_dtype or (group.dtype == dtype and group.output == dtype)


def _in_words(group: ComputeGroup) -> str:
    """Say which modules compute otherwise.

    For example: `12 linear layers compute in float32, 63 % of the products, like layers.0.mlp.up`.
    """
    kind = "linear layers" if group.linear else "modules"
    output = "" if group.output == group.dtype else f" and give out {group.output}"
    share = f"{100 * group.share:.0f} % of the products"
    example = group.example or "the model itself"
    return f"{group.modules} {kind} compute in {group.dtype}{output}, {share}, like {example}"


def _unlike_checkpoint(effective: Effective, *, unquantized: bool) -> str | None:
    if effective.reported_dtype is not None:
        return None
    if effective.checkpoint_dtype is None:
        return f"engine {effective.engine!r} did not report the dtype of the checkpoint"
    # Layers that the checkpoint itself holds quantized are in its own dtype, whatever that is.
    unquantized = unquantized or bool(effective.stored_quantized)
    return _wrong_weights(effective, effective.checkpoint_dtype, unquantized=unquantized)


def _no_static_cache(effective: Effective) -> str | None:
    if "static" in effective.cache.lower():
        return None
    return f"the last run used {effective.cache or 'no cache'}, asked for a static cache"


def _not_compiled(effective: Effective, mode: str) -> str | None:
    if effective.compiled_graphs < 1:
        return f"{effective.compiled_graphs} graphs were compiled, asked for at least 1"
    share = effective.compiled_share
    if share is not None and share < 1 - LARGE_SHARE:
        reasons = "; ".join(effective.notes) or "torch does not say why"
        return (
            f"{100 * share:.0f} % of the products with weights ran in compiled graphs, asked for "
            f"all but {100 * LARGE_SHARE:.0f} % ({reasons})"
        )
    if mode == "default" and effective.compile_mode is not None:
        return None
    return _differs("compile mode", effective.compile_mode, mode)


def _differs(title: str, actual: str | None, expected: str | None) -> str | None:
    if actual == expected:
        return None
    return f"{title} is {actual or 'none'}, asked for {expected or 'none'}"


def _wrong_weights(effective: Effective, dtype: str, *, unquantized: bool) -> str | None:
    if effective.reported_dtype is not None:
        return _wrong_report(effective.reported_dtype, dtype)
    layers = _totals(
        (group.dtype, group.layers)
        for group in effective.linears
        if not (unquantized and group.quantized)
    )
    tensors = _totals(
        (group.dtype, group.tensors)
        for group in effective.tensors
        if group.kind == "parameter"
        and not group.fixed_dtype
        and not (unquantized and group.quantized)
    )
    matrices = _totals(
        (group.dtype, group.tensors)
        for group in effective.other_matrices
        if not group.fixed_dtype and not (unquantized and group.dtype not in PLAIN_FLOATS)
    )
    if set(matrices) - {dtype}:
        return _other_matrices(effective, dtype)
    for title, totals in (("linear layers", layers), ("parameters", tensors)):
        if set(totals) - {dtype}:
            return _other_dtypes(totals, dtype, title, effective.model_class)
    if not layers and not tensors:
        return f"no weights were found ({effective.model_class}), asked for {dtype}"
    return None


def _other_matrices(effective: Effective, dtype: str) -> str:
    """Return which matrices that are no linear layers have another dtype."""
    groups = [group for group in effective.other_matrices if group.dtype != dtype]
    listed = "; ".join(map(str, groups))
    return f"matrices that are no linear layers ({listed}) are not {dtype}, which was asked for"


def _wrong_report(reported: str, dtype: str) -> str | None:
    if not reported:
        return "the server does not say its dtype"
    return _differs("the dtype that the server says", reported, dtype)


def _totals(pairs: Iterable[tuple[str, int]]) -> Counter[str]:
    totals: Counter[str] = Counter()
    for dtype, count in pairs:
        totals[dtype] += count
    return totals


def _other_dtypes(totals: Counter[str], dtype: str, title: str, model_class: str) -> str:
    """Return which weights have another dtype.

    For example: `210 of 210 linear layers hold float32 weights (LlamaForCausalLM), asked for
    bfloat16`.
    """
    others = {other: count for other, count in totals.items() if other != dtype}
    return (
        f"{sum(others.values())} of {totals.total()} {title} hold {', '.join(sorted(others))} "
        f"weights ({model_class}), asked for {dtype}"
    )
