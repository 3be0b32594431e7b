"""What strategy parts promise, as pure predicates over what is in effect.

The reason of a broken promise always says what is in effect instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from pytest_llmperf.core.effective import Effective, Promise


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
    """Promise that a linear layer's output in a probe forward has `dtype`."""
    return Promise(
        f"compute is {dtype}", lambda e: _differs("compute", e.compute_dtype, dtype), part=part
    )


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
    """Promise that at least one graph was compiled.

    Mode "default" leaves the choice to the engine; another must be the one in use.
    """
    return Promise(
        f"compiled in mode {mode}",
        lambda effective: _not_compiled(effective, mode),
        when="warm",
        part=part,
    )


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
    for title, totals in (("linear layers", layers), ("parameters", tensors)):
        if set(totals) - {dtype}:
            return _other_dtypes(totals, dtype, title, effective.model_class)
    if not layers and not tensors:
        return f"no weights were found ({effective.model_class}), asked for {dtype}"
    return None


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
