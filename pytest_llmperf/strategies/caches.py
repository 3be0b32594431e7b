"""KV caches that hold keys and values in 8 bit."""

from __future__ import annotations

from pytest_llmperf.core.effective import Effective, Promise
from pytest_llmperf.strategies.base import Part


def cache_holds(part: str, dtype: str) -> Promise:
    """Promise that the KV cache of the last run stored keys and values in `dtype`.

    It is seen in the cache's own tensors.

    Known after warm-up.
    """
    return Promise(
        f"the KV cache holds {dtype}",
        lambda effective: _other_cache(effective, dtype),
        when="warm",
        part=part,
    )


def _other_cache(effective: Effective, dtype: str) -> str | None:
    if f" of {dtype}" in effective.cache:
        return None
    return f"the last run used {effective.cache or 'no cache'}, asked for one of {dtype}"


def _quantized(name: str, cache: str, dtype: str, summary: str) -> Part:
    promises = (cache_holds(name, dtype),)
    return Part(
        name=name,
        kind="cache",
        summary=summary,
        fields={"cache": cache},
        promises=lambda _plan: promises,
    )


KV_INT8 = _quantized(
    "kv-int8", "int8", "int8", "a KV cache in 8-bit integers, one scale a head and position"
)
KV_FP8 = _quantized(
    "kv-fp8",
    "fp8",
    "float8_e4m3fn",
    "a KV cache in 8-bit floats (e4m3), one scale a layer, set by the prompt",
)
