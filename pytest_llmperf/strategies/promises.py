"""What strategy parts promise, as pure predicates over what is in effect.

A reason always carries what was found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from pytest_llmperf.core.effective import Effective, Promise


def weights_are(part: str, dtype: str, *, unquantized: bool = False) -> Promise:
    """Every linear layer, and every parameter that the architecture does not keep apart itself, is stored in `dtype`.

    `unquantized`: only what is not quantized, where another part promises that some layers are.
    """
    return Promise(
        f"weights are {dtype}",
        lambda e: _wrong_weights(e, dtype, unquantized=unquantized),
        part=part,
    )


def weights_as_in_checkpoint(part: str, *, unquantized: bool = False) -> Promise:
    """Weights are stored in the dtype of the checkpoint.

    An engine that does not report that dtype breaks the promise.

    `unquantized` as for `weights_are`. Of a server, which shows no weights, nothing was asked then:
    its notes say what it said.
    """

    def broken(effective: Effective) -> str | None:
        if effective.reported_dtype is not None:
            return None
        if effective.checkpoint_dtype is None:
            return f"engine {effective.engine!r} did not report the dtype of the checkpoint"
        return _wrong_weights(effective, effective.checkpoint_dtype, unquantized=unquantized)

    return Promise("weights are in the checkpoint's dtype", broken, part=part)


def computes_in(part: str, dtype: str) -> Promise:
    """A linear layer's output in a probe forward has `dtype`."""
    return Promise(
        f"compute is {dtype}", lambda e: _differs("compute", e.compute_dtype, dtype), part=part
    )


def autocast_is(part: str, dtype: str | None) -> Promise:
    """Forward passes run under autocast to `dtype`; None: without autocast."""
    return Promise(
        f"autocast to {dtype or 'nothing'}",
        lambda e: _differs("autocast", e.autocast_dtype, dtype),
        part=part,
    )


def attention_is(part: str, implementation: str) -> Promise:
    """The attention layers use `implementation`."""
    return Promise(
        f"attention is {implementation}",
        lambda e: _differs("attention", e.attention, implementation),
        part=part,
    )


def cache_is_static(part: str) -> Promise:
    """The KV cache of the last run was one of fixed size. Known after warm-up."""

    def broken(effective: Effective) -> str | None:
        if "static" in effective.cache.lower():
            return None
        return f"the last run used {effective.cache or 'no cache'}, asked for a static cache"

    return Promise("the KV cache is static", broken, when="warm", part=part)


def is_compiled(part: str, mode: str) -> Promise:
    """At least one graph was compiled.

    Mode "default" leaves the choice to the engine; another must be the one in use.
    """

    def broken(effective: Effective) -> str | None:
        if effective.compiled_graphs < 1:
            return f"{effective.compiled_graphs} graphs were compiled, asked for at least 1"
        if mode == "default" and effective.compile_mode is not None:
            return None
        return _differs("compile mode", effective.compile_mode, mode)

    return Promise(f"compiled in mode {mode}", broken, when="warm", part=part)


def _differs(what: str, found: str | None, asked: str | None) -> str | None:
    return None if found == asked else f"{what} is {found or 'none'}, asked for {asked or 'none'}"


def _wrong_weights(effective: Effective, dtype: str, *, unquantized: bool) -> str | None:
    if effective.reported_dtype is not None:
        said = effective.reported_dtype
        return (
            _differs("the dtype that the server says", said, dtype)
            if said
            else "the server does not say its dtype"
        )
    layers = _totals(
        (group.dtype, group.layers)
        for group in effective.linears
        if not (unquantized and group.quantized)
    )
    if set(layers) - {dtype}:
        return _counted(layers, dtype, "linear layers", effective.model_class)
    owned = [
        group
        for group in effective.tensors
        if group.kind == "parameter" and not group.kept and not (unquantized and group.quantized)
    ]
    tensors = _totals((group.dtype, group.tensors) for group in owned)
    if set(tensors) - {dtype}:
        return _counted(tensors, dtype, "parameters", effective.model_class)
    return (
        None
        if layers or tensors
        else f"no weights were found ({effective.model_class}), asked for {dtype}"
    )


def _totals(pairs: Iterable[tuple[str, int]]) -> Counter[str]:
    totals: Counter[str] = Counter()
    for dtype, count in pairs:
        totals[dtype] += count
    return totals


def _counted(found: Counter[str], asked: str, what: str, model_class: str) -> str:
    """For example: `210 of 210 linear layers hold float32 weights (LlamaForCausalLM), asked for bfloat16`."""
    wrong = {dtype: count for dtype, count in found.items() if dtype != asked}
    dtypes = ", ".join(sorted(wrong))
    return f"{sum(wrong.values())} of {found.total()} {what} hold {dtypes} weights ({model_class}), asked for {asked}"
