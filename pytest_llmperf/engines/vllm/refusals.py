"""Plans that vLLM cannot load, with the reason, before anything is loaded.

Nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.quantization import CHECKPOINTS, Scheme, scheme_of
from pytest_llmperf.engines.refusals import Refusal, first_reason
from pytest_llmperf.engines.refusals.parallel import known_config
from pytest_llmperf.engines.vllm.arguments import OPTIONS
from pytest_llmperf.errors import did_you_mean

ON_LOADING = {"nf4": "bitsandbytes", "fp8": "fp8"}
"""Methods by which vLLM quantizes full-precision weights while it loads them, and its names."""

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes of vLLM 0.32's CPU attention (v1/attention/backends/cpu_attn.py)."""

MODEL_KINDS = ("builtin", "folder", "hub", "arch")


def refusal(plan: LoadPlan) -> str | None:
    """Return the first reason why vLLM cannot load the plan, or None."""
    return first_reason(check(plan) for check in _CHECKS)


def _model(plan: LoadPlan) -> str | None:
    if plan.model.kind in MODEL_KINDS:
        return None
    return (
        f"model {plan.model.name!r} is of kind {plan.model.kind!r}; "
        "vLLM reads a folder, a Hugging Face id, or 'arch:NAME'."
    )


def _options(plan: LoadPlan) -> str | None:
    reason = first_reason(_option(name, value) for name, value in plan.options)
    if reason is not None:
        return reason
    if plan.compile is not None and plan.option("eager", default=False):
        return "option 'eager' and strategy part 'compile' exclude each other. Keep one."
    return None


def _option(name: str, value: object) -> str | None:
    types = OPTIONS.get(name)
    if types is None:
        near = did_you_mean(name, OPTIONS, otherwise=f"Options: {', '.join(OPTIONS)}.")
        return f"option {name!r} is not known.{near}"
    if _has_type(value, types):
        return None
    return f"option {name} = {value!r}: {' or '.join(t.__name__ for t in types)} is needed."


def _has_type(value: object, types: tuple[type, ...]) -> bool:
    """Whether a value is of one of these types; a bool does not count as an int."""
    if isinstance(value, bool):
        return bool in types
    return isinstance(value, types)


def _quantization(plan: LoadPlan) -> str | None:
    if plan.quantization is None:
        return None
    scheme = scheme_of(plan.quantization)
    if scheme.method in CHECKPOINTS:
        return None
    return _quantization_on_loading(plan, scheme)


def _quantization_on_loading(plan: LoadPlan, scheme: Scheme) -> str | None:
    if scheme.method not in ON_LOADING:
        methods = ", ".join((*CHECKPOINTS, *ON_LOADING))
        return (
            f"vLLM has no {scheme.method!r} ({scheme.row.summary}) that quantizes while loading. "
            f"It takes: {methods}."
        )
    if plan.quantization != scheme.method:
        return f"vLLM has {scheme.method!r} without an argument, not {plan.quantization!r}."
    if plan.device_kind == "cpu":
        return (
            f"vLLM's {scheme.method!r} kernels are for GPUs. "
            f"On a CPU it reads checkpoints: {', '.join(CHECKPOINTS)}."
        )
    return None


def _compile(plan: LoadPlan) -> str | None:
    if plan.compile in (None, "default"):
        return None
    return f"vLLM chooses how it compiles; write 'compile' instead of 'compile:{plan.compile}'."


def _cache(plan: LoadPlan) -> str | None:
    if plan.cache != "fp8" or plan.device_kind != "cpu" or plan.weights_dtype != "float32":
        return None
    return (
        "vLLM's attention on a CPU keeps an 8-bit KV cache beside 16-bit activations only. "
        "Write 'bf16+kv-fp8'."
    )


def _adapters(plan: LoadPlan) -> str | None:
    """Refuse what vLLM's LoRA was not seen to do here."""
    if not plan.adapters:
        return None
    if plan.merge_adapters:
        return "vLLM does not merge adapters: leave out ':merged'."
    companion = _adapters_companion(plan)
    if not companion:
        return None
    return (
        f"adapters on vLLM go with a precision alone, not with {companion}: "
        "that was never seen to work."
    )


def _adapters_companion(plan: LoadPlan) -> str:
    """Name what stands beside the adapters of a plan and was not seen to work with them."""
    for field in ("quantization", "compile", "assist"):
        if getattr(plan, field) is not None:
            return field
    return "several ranks" if plan.ranks > 1 else ""


def _parallel(plan: LoadPlan) -> str | None:
    """Refuse heads that tensor parallelism cannot divide."""
    if plan.tp == 1:
        return None
    config = known_config(plan) or {}
    heads = _integer(config, "num_attention_heads")
    if heads % plan.tp:
        return f"tp{plan.tp} does not divide the {heads} heads of {plan.model.name!r}."
    kv_heads = _integer(config, "num_key_value_heads") or _integer(config, "num_kv_heads")
    if not kv_heads % plan.tp or not plan.tp % (kv_heads or 1):
        return None
    return (
        f"tp{plan.tp} neither divides nor repeats the {kv_heads} KV heads of {plan.model.name!r}."
    )


def _heads(plan: LoadPlan) -> str | None:
    """Refuse head dimensions that vLLM's attention on a CPU has no kernel for.

    It loads them, and fails at the first prompt.
    """
    config = known_config(plan) or {}
    heads = _integer(config, "num_attention_heads")
    if plan.device_kind != "cpu" or not heads:
        return None
    size = _integer(config, "head_dim") or _integer(config, "hidden_size") // heads
    if not size or size in CPU_HEAD_SIZES:
        return None
    sizes = ", ".join(map(str, CPU_HEAD_SIZES))
    return (
        f"the heads of {plan.model.name!r} have {size} dimensions; "
        f"vLLM's attention on a CPU takes {sizes}."
    )


def _integer(config: Mapping[str, Any], key: str) -> int:
    """Return a number of a model's config; 0 where the config does not have it."""
    return int(config.get(key) or 0)


_CHECKS: tuple[Refusal, ...] = (
    _model,
    _options,
    _quantization,
    _compile,
    _cache,
    _adapters,
    _parallel,
    _heads,
)
