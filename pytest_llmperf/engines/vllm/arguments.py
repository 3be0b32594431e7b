"""From a load plan to vLLM's own arguments.

Pure: vLLM is not imported, so that every process can ask.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.quantization import CHECKPOINTS, scheme_of

OPTIONS: dict[str, tuple[type, ...]] = {
    "eager": (bool,),
    "kv_cache_gib": (int, float),
    "max_model_len": (int,),
    "max_num_seqs": (int,),
    "max_num_batched_tokens": (int,),
    "prefix_cache": (bool,),
}
"""Engine options (`@pytest.mark.llmperf(options={…})`) and their types."""

GIB = 2**30
CPU_KV_CACHE_GIB = 1.0
GPU_SHARE = 0.9
LOOKUP_TOKENS = 5
LOOKUP_NGRAM = (2, 4)
"""Tokens proposed at a time, and lengths of the n-gram that they are looked up by."""

FOUR_BITS = 4

ENVIRONMENT = {
    # The core in this process: its tensors can be looked at, no message is timed.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


_PLAIN_INPUTS = {"VLLM_CPU_INT4_W4A8": "0"}
"""On CPUs with AMX vLLM quantizes the inputs of 4-bit layers to int8, unless this is 0."""


def environment(plan: LoadPlan) -> dict[str, str]:
    """Return the variables that vLLM is to read while it loads the plan's model."""
    if plan.quantization is None or scheme_of(plan.quantization).method not in CHECKPOINTS:
        return {}
    return _PLAIN_INPUTS if scheme_of(plan.quantization).row.bits == FOUR_BITS else {}


def arguments(
    plan: LoadPlan, folder: Path, *, dtype: str, dummy: bool = False, free_share: float = 1.0
) -> dict[str, Any]:
    """Return the keyword arguments of vLLM's EngineArgs.

    `folder` holds the model, `dtype` is torch's name of the dtype of its weights ("auto" would let
    vLLM turn float32 into 16 bit), `dummy` asks for random weights, and `free_share` is the share
    of the GPU's memory that nobody uses yet.
    """
    return {
        "model": str(folder),
        "dtype": dtype,
        "seed": plan.seed,
        "enable_prefix_caching": bool(plan.option("prefix_cache", default=False)),
        "enforce_eager": is_eager(plan),
        "trust_remote_code": plan.model.trust_remote_code,
        # A checkpoint's own sampling defaults would change what is measured.
        "generation_config": "vllm",
        "max_logprobs": 1,
        "disable_log_stats": True,  # as in vLLM's own offline benchmarks
        "skip_tokenizer_init": True,  # token ids go in and come out
        "tensor_parallel_size": plan.tp,
        **_memory(plan, free_share),
        **_scheduler_limits(plan),
        **({"load_format": "dummy"} if dummy else {}),
        **_strategy(plan),
    }


def _strategy(plan: LoadPlan) -> dict[str, Any]:
    """Return the arguments of the plan's strategy parts."""
    keywords: dict[str, Any] = {}
    if plan.ranks > 1:
        # One process a rank, as every engine here has it.
        keywords["distributed_executor_backend"] = "external_launcher"
    if plan.quantization is not None and scheme_of(plan.quantization).method not in CHECKPOINTS:
        keywords["quantization"] = {"nf4": "bitsandbytes"}.get(plan.quantization, plan.quantization)
    if plan.cache == "fp8":
        keywords["kv_cache_dtype"] = "fp8"
    if plan.assist is not None:
        keywords["speculative_config"] = _prompt_lookup()
    return keywords


def is_eager(plan: LoadPlan) -> bool:
    """Whether no graph is compiled or recorded.

    So it is where it was asked for, and on a CPU unless 'compile' was.
    """
    if plan.compile is not None:
        return False
    return bool(plan.option("eager", default=False)) or plan.device_kind == "cpu"


def _memory(plan: LoadPlan, free_share: float) -> dict[str, Any]:
    """Return the bytes of the KV cache, or the share of a GPU up to which it may grow."""
    default = CPU_KV_CACHE_GIB if plan.device_kind == "cpu" else None
    cache_gib = plan.option("kv_cache_gib", default)
    if cache_gib is not None:
        return {"kv_cache_memory_bytes": int(float(cache_gib) * GIB)}
    return {"gpu_memory_utilization": round(GPU_SHARE * free_share, 3)}


def _scheduler_limits(plan: LoadPlan) -> dict[str, Any]:
    names = ("max_model_len", "max_num_seqs", "max_num_batched_tokens")
    return {name: value for name in names if (value := plan.option(name)) is not None}


def _prompt_lookup() -> dict[str, Any]:
    low, high = LOOKUP_NGRAM
    return {
        "method": "ngram",
        "num_speculative_tokens": LOOKUP_TOKENS,
        "prompt_lookup_min": low,
        "prompt_lookup_max": high,
    }
