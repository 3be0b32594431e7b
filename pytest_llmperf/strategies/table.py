"""The table of strategy parts: the load-plan fields that each sets, and what it promises."""

from __future__ import annotations

from collections.abc import Callable

from pytest_llmperf.core.effective import Promise
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.strategies import parallel, promises, pruned
from pytest_llmperf.strategies.adapters import LORA
from pytest_llmperf.strategies.assistance import ASSISTED, PROMPT_LOOKUP
from pytest_llmperf.strategies.base import Part
from pytest_llmperf.strategies.batching import CONTINUOUS
from pytest_llmperf.strategies.caches import KV_FP8, KV_INT8
from pytest_llmperf.strategies.quantized import QUANTIZED

KINDS = (
    "precision",
    "quantization",
    "pruning",
    "adapter",
    "cache",
    "compile",
    "attention",
    "assistance",
    "batching",
    "parallel",
)
"""Kinds in the order of the canonical text."""


def _always(*constant: Promise) -> Callable[[LoadPlan], tuple[Promise, ...]]:
    return lambda _plan: constant


def _full(name: str, dtype: str) -> Part:
    return Part(
        name=name,
        kind="precision",
        summary=f"weights and compute in {dtype}",
        fields={"weights_dtype": dtype, "autocast_dtype": None},
        promises=lambda plan: (
            promises.weights_are(name, dtype, unquantized=plan.quantization is not None),
            promises.computes_in(name, dtype),
            promises.autocast_is(name, None),
        ),
    )


def _mixed(name: str, dtype: str) -> Part:
    return Part(
        name=name,
        kind="precision",
        summary=f"float32 weights under {dtype} autocast",
        fields={"weights_dtype": "float32", "autocast_dtype": dtype},
        promises=_always(
            promises.weights_are(name, "float32"),
            promises.computes_in(name, dtype),
            promises.autocast_is(name, dtype),
        ),
    )


def _attention(name: str, implementation: str, summary: str) -> Part:
    return Part(
        name=name,
        kind="attention",
        summary=summary,
        fields={"attention": implementation},
        promises=_always(promises.attention_is(name, implementation)),
    )


AUTO = Part(
    name="auto",
    kind="precision",
    summary="the checkpoint's own dtype; in force where no other precision is named",
    fields={"weights_dtype": "auto", "autocast_dtype": None},
    promises=lambda plan: (
        promises.weights_as_in_checkpoint("auto", unquantized=plan.quantization is not None),
        promises.autocast_is("auto", None),
    ),
)

_STATIC_CACHE = Part(
    name="static-cache",
    kind="cache",
    summary="a KV cache of fixed size, allocated once",
    fields={"cache": "static"},
    promises=_always(promises.cache_is_static("static-cache")),
)

_COMPILE = Part(
    name="compile",
    kind="compile",
    summary=(
        "torch.compile of the forward pass; an argument asks for one of its modes, "
        "none leaves the mode to the engine"
    ),
    fields={"compile": "default"},
    promises=lambda plan: (promises.is_compiled("compile", plan.compile or "default"),),
    arguments={mode: {"compile": mode} for mode in ("default", "reduce-overhead", "max-autotune")},
)

TABLE: dict[str, Part] = {
    part.name: part
    for part in (
        AUTO,
        _full("fp32", "float32"),
        _full("fp16", "float16"),
        _full("bf16", "bfloat16"),
        _mixed("fp16-mixed", "float16"),
        _mixed("bf16-mixed", "bfloat16"),
        *QUANTIZED,
        *pruned.PARTS,
        LORA,
        _STATIC_CACHE,
        KV_INT8,
        KV_FP8,
        _COMPILE,
        _attention("sdpa", "sdpa", "attention by torch's scaled_dot_product_attention"),
        _attention("eager", "eager", "attention written out in separate operations"),
        _attention("flash", "flash_attention_2", "attention by the flash-attn package"),
        ASSISTED,
        PROMPT_LOOKUP,
        CONTINUOUS,
        *parallel.PARTS,
    )
}
