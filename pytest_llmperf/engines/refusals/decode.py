"""Plans that the transformers engine cannot load although it honours each of their fields.

Nothing heavy is imported here.
"""

from __future__ import annotations

from pytest_llmperf.core.plan import LoadPlan


def adapters(plan: LoadPlan) -> str | None:
    """Merging: of one adapter, into weights that can take it."""
    if not plan.merge_adapters:
        return None
    if len(plan.adapters) > 1:
        return "a merged adapter is part of the weights and cannot be switched. Name one adapter, or leave out ':merged'."
    if plan.quantization is not None and ":" in plan.quantization:
        return (
            f"the weights of {plan.quantization} are quantized already, and an adapter merged into them would be rounded away. "
            "Leave out ':merged', or merge into the full-precision model and quantize that ('nf4+lora:PATH:merged' does)."
        )
    return None


def assistance(plan: LoadPlan) -> str | None:
    """Assisted decoding takes rejected tokens back out of the cache, and its forward passes have lengths of their own."""
    if plan.assist is None:
        return None
    if plan.cache != "dynamic":
        return f"assisted decoding takes rejected tokens out of the cache, which a {plan.cache} cache does not allow. Keep one."
    if plan.compile is not None:
        return "assisted decoding changes the length of each forward pass, which would be compiled anew. Leave out 'compile'."
    return None


def quantized_cache(plan: LoadPlan) -> str | None:
    """An 8-bit cache has one decode loop: `generate`, eager."""
    if plan.cache in {"int8", "fp8"} and plan.compile is not None:
        return f"the {plan.cache} cache quantizes in Python at each step and is not compiled. Leave out 'compile'."
    return None


def continuous(plan: LoadPlan) -> str | None:
    """Transformers' continuous batching has a decode loop, a paged cache and a thread of its own."""
    if plan.batching is None:
        return None
    other = (
        (plan.cache != "dynamic", f"the {plan.cache} cache: its own cache has pages"),
        (plan.compile is not None, "'compile': its loop is not the compiled one"),
        (plan.assist is not None, "assisted decoding: each step gives one token"),
        (
            plan.autocast_dtype is not None,
            "autocast, which does not reach its thread. Take a full precision such as 'bf16'",
        ),
        (
            bool(plan.adapters) and not plan.merge_adapters,
            "adapters that can be switched. Merge it: 'lora:PATH:merged'",
        ),
        (plan.spread > 1, "several devices"),
        (plan.offload is not None, "offloaded weights"),
    )
    reason = next((text for holds, text in other if holds), None)
    return None if reason is None else f"'continuous' does not go with {reason}."


ALL = (adapters, assistance, quantized_cache, continuous)
