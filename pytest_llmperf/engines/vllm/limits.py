"""What the vLLM engine can do, and the plans that it refuses before anything is loaded, with the reason."""

from __future__ import annotations

import importlib.util

from pytest_llmperf.core.plan import ANY, LoadPlan
from pytest_llmperf.core.quantization import CHECKPOINTS, scheme_of
from pytest_llmperf.engines.base import Capabilities
from pytest_llmperf.engines.refusals.parallel import known_config
from pytest_llmperf.engines.vllm.arguments import OPTIONS
from pytest_llmperf.errors import did_you_mean
from pytest_llmperf.strategies.assistance import LOOKUP

ON_LOADING = {"nf4": "bitsandbytes", "fp8": "fp8"}
"""Methods by which vLLM quantizes full-precision weights while it loads them, and its own names of these."""

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Of vLLM 0.32's CPU attention (v1/attention/backends/cpu_attn.py)."""

MODEL_KINDS = ("builtin", "folder", "hub", "arch")


def refuse(plan: LoadPlan) -> str | None:
    """The first reason why vLLM cannot load the plan, or None."""
    return next((reason for check in _CHECKS if (reason := check(plan)) is not None), None)


def _model(plan: LoadPlan) -> str | None:
    if plan.model.kind in MODEL_KINDS:
        return None
    return f"model {plan.model.name!r} is of kind {plan.model.kind!r}; vLLM reads a folder, a Hugging Face id, or 'arch:NAME'."


def _options(plan: LoadPlan) -> str | None:
    for name, value in plan.options:
        kinds = OPTIONS.get(name)
        if kinds is None:
            return f"option {name!r} is not known.{did_you_mean(name, OPTIONS)} Options: {', '.join(OPTIONS)}."
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            return f"option {name} = {value!r}: {wanted} is needed."
    if plan.compile is not None and plan.option("eager", default=False):
        return "option 'eager' and strategy part 'compile' exclude each other. Keep one."
    return None


def _quantization(plan: LoadPlan) -> str | None:
    if plan.quantization is None:
        return None
    scheme = scheme_of(plan.quantization)
    if scheme.method in CHECKPOINTS:
        return None
    if scheme.method not in ON_LOADING:
        able = ", ".join((*CHECKPOINTS, *ON_LOADING))
        return f"vLLM has no {scheme.method!r} ({scheme.row.summary}) that quantizes while loading. It takes: {able}."
    if plan.quantization != scheme.method:
        return f"vLLM has {scheme.method!r} without an argument, not {plan.quantization!r}."
    if plan.device.partition(":")[0] == "cpu":
        return f"vLLM's {scheme.method!r} kernels are for GPUs. On a CPU it reads checkpoints: {', '.join(CHECKPOINTS)}."
    return None


def _compile(plan: LoadPlan) -> str | None:
    if plan.compile in (None, "default"):
        return None
    return f"vLLM chooses how it compiles; write 'compile' instead of 'compile:{plan.compile}'."


def _cache(plan: LoadPlan) -> str | None:
    if (
        plan.cache != "fp8"
        or plan.device.partition(":")[0] != "cpu"
        or plan.weights_dtype != "float32"
    ):
        return None
    return "vLLM's attention on a CPU keeps an 8-bit KV cache beside 16-bit activations only. Write 'bf16+kv-fp8'."


def _adapters(plan: LoadPlan) -> str | None:
    """What vLLM's LoRA was not seen to do here."""
    if not plan.adapters:
        return None
    if plan.merge_adapters:
        return "vLLM does not merge adapters: leave out ':merged'."
    with_it = next(
        (name for name in ("quantization", "compile", "assist") if getattr(plan, name) is not None),
        "",
    )
    if with_it or plan.ranks > 1:
        return f"adapters on vLLM go with a precision alone, not with {with_it or 'several ranks'}: that was never seen to work."
    return None


def _parallel(plan: LoadPlan) -> str | None:
    """Heads that tensor parallelism cannot divide."""
    if plan.tp == 1:
        return None
    config = known_config(plan) or {}
    heads = int(config.get("num_attention_heads") or 0)
    kv_heads = int(config.get("num_key_value_heads") or config.get("num_kv_heads") or 0)
    if heads % plan.tp:
        return f"tp{plan.tp} does not divide the {heads} heads of {plan.model.name!r}."
    if kv_heads % plan.tp and plan.tp % (kv_heads or 1):
        return f"tp{plan.tp} neither divides nor repeats the {kv_heads} KV heads of {plan.model.name!r}."
    return None


def _heads(plan: LoadPlan) -> str | None:
    """Head dimensions that vLLM's attention on a CPU has no kernel for: it loads them, and fails at the first prompt."""
    config = known_config(plan) or {}
    heads = int(config.get("num_attention_heads") or 0)
    if plan.device.partition(":")[0] != "cpu" or not heads:
        return None
    size = int(config.get("head_dim") or int(config.get("hidden_size") or 0) // heads)
    if not size or size in CPU_HEAD_SIZES:
        return None
    able = ", ".join(map(str, CPU_HEAD_SIZES))
    return f"the heads of {plan.model.name!r} have {size} dimensions; vLLM's attention on a CPU takes {able}."


_CHECKS = (_model, _options, _quantization, _compile, _cache, _adapters, _parallel, _heads)


def lacks(plan: LoadPlan) -> str | None:
    """The package vllm itself, where this interpreter does not have it."""
    if importlib.util.find_spec("vllm") is not None:
        return None
    return (
        f"engine {plan.engine!r} needs vllm, which is not installed in this interpreter. pip install 'pytest-llmperf[vllm]', or "
        "name an interpreter that has it and pytest-llmperf: --llmperf-python vllm=/path/to/python."
    )


VLLM = Capabilities(
    plan_fields={
        "weights_dtype": frozenset({"auto", "float32", "float16", "bfloat16"}),
        "autocast_dtype": frozenset({None}),
        "cache": frozenset({"dynamic", "fp8"}),
        "compile": ANY,
        "quantization": ANY,
        "assist": frozenset({None, LOOKUP}),
        "batching": frozenset({None, "continuous"}),
        "tp": ANY,
        "adapters": ANY,
        "merge_adapters": frozenset({False, True}),
    },
    refuses=refuse,
    lacks=lacks,
    max_ranks=None,
)
