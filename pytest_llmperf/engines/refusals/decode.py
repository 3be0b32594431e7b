"""Plans that the transformers engine cannot load although it honours each of their fields.

Nothing heavy is imported here.
"""

from __future__ import annotations

from pytest_llmperf.core.plan import LoadPlan


def adapters(plan: LoadPlan) -> str | None:
    """Refuse to merge several adapters, or one into weights that cannot take it."""
    if not plan.merge_adapters:
        return None
    if len(plan.adapters) > 1:
        return (
            "a merged adapter is part of the weights and cannot be switched. "
            "Name one adapter, or leave out ':merged'."
        )
    if _reads_quantized_weights(plan):
        return (
            f"the weights of {plan.quantization} are quantized already, and an adapter merged into "
            "them would be rounded away. Leave out ':merged', or merge into the full-precision "
            "model and quantize that ('nf4+lora:PATH:merged' does)."
        )
    return None


def _reads_quantized_weights(plan: LoadPlan) -> bool:
    """Whether the plan names a checkpoint whose weights are quantized already."""
    return plan.quantization is not None and ":" in plan.quantization


def assistance(plan: LoadPlan) -> str | None:
    """Refuse a cache or a compiled graph that assisted decoding cannot use.

    It takes rejected tokens back out of the cache, and its forward passes differ in length.
    """
    if plan.assist is None:
        return None
    if plan.cache != "dynamic":
        return (
            f"assisted decoding takes rejected tokens out of the cache, which a {plan.cache} cache "
            "does not allow. Keep one."
        )
    if plan.compile is not None:
        return (
            "assisted decoding changes the length of each forward pass, which would be compiled "
            "anew. Leave out 'compile'."
        )
    return None


def quantized_cache(plan: LoadPlan) -> str | None:
    """Refuse to compile with an 8-bit cache, whose one decode loop is `generate`, eager."""
    if plan.cache not in {"int8", "fp8"} or plan.compile is None:
        return None
    return (
        f"the {plan.cache} cache quantizes in Python at each step and is not compiled. "
        "Leave out 'compile'."
    )


def continuous(plan: LoadPlan) -> str | None:
    """Refuse what transformers' continuous batching cannot take.

    It has a decode loop, a paged cache and a thread of its own.
    """
    if plan.batching is None:
        return None
    obstacle = _obstacle_of_decoding(plan) or _obstacle_of_loading(plan)
    return f"'continuous' does not go with {obstacle}." if obstacle else None


def _obstacle_of_decoding(plan: LoadPlan) -> str:
    """Name how a plan decodes, where continuous batching decodes otherwise."""
    if plan.cache != "dynamic":
        return f"the {plan.cache} cache: its own cache has pages"
    if plan.compile is not None:
        return "'compile': its loop is not the compiled one"
    if plan.assist is not None:
        return "assisted decoding: each step gives one token"
    return ""


def _obstacle_of_loading(plan: LoadPlan) -> str:
    """Name how a plan loads its weights, where continuous batching cannot use them."""
    if plan.autocast_dtype is not None:
        return "autocast, which does not reach its thread. Take a full precision such as 'bf16'"
    if _has_switchable_adapters(plan):
        return "adapters that can be switched. Merge it: 'lora:PATH:merged'"
    if plan.spread > 1:
        return "several devices"
    return "offloaded weights" if plan.offload is not None else ""


def _has_switchable_adapters(plan: LoadPlan) -> bool:
    return bool(plan.adapters) and not plan.merge_adapters


ALL = (adapters, assistance, quantized_cache, continuous)
