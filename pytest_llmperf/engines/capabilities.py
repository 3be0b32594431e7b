"""What the built-in engines can do. Nothing heavy is imported here."""

from __future__ import annotations

from pytest_llmperf.core.plan import ANY, LoadPlan
from pytest_llmperf.engines.base import Capabilities
from pytest_llmperf.engines.refusals import (
    Refusal,
    decode,
    first_reason,
    parallel,
    pruning,
    quantized,
)
from pytest_llmperf.engines.scripted.options import parse

REFUSALS: tuple[Refusal, ...] = (
    *decode.ALL,
    *quantized.ALL,
    *parallel.ALL,
    pruning.refusal,
)


def _transformers_refusal(plan: LoadPlan) -> str | None:
    return first_reason(refusal(plan) for refusal in REFUSALS)


_DTYPES = frozenset({"auto", "float32", "float16", "bfloat16"})

TRANSFORMERS = Capabilities(
    plan_fields={
        "weights_dtype": _DTYPES,
        "autocast_dtype": frozenset({None, "float16", "bfloat16"}),
        "attention": frozenset({None, "sdpa", "eager", "flash_attention_2"}),
        "cache": frozenset({"dynamic", "static", "int8", "fp8"}),
        "compile": frozenset({None, "default", "reduce-overhead", "max-autotune"}),
        "quantization": ANY,
        "pruning": ANY,
        "adapters": ANY,
        "merge_adapters": frozenset({False, True}),
        "assist": ANY,
        "batching": frozenset({None, "continuous"}),
        **dict.fromkeys(("tp", "fsdp", "pp", "dp"), ANY),
        "tp_by": frozenset({"library", "own"}),
        "offload": frozenset({None, "cpu", "disk"}),
    },
    refusal=_transformers_refusal,
    missing_library=quantized.missing_library,
    max_ranks=None,
)


def _scripted_fits_in_process(plan: LoadPlan) -> bool:
    """Say whether no fault is scripted, which may end the process, and no ranks have to meet."""
    return plan.ranks == 1 and not parse(plan.model.location, plan.strategy).faults


def _scripted_processes_differ(plan: LoadPlan) -> bool:
    """Say whether the script gives each process a factor of its own."""
    return parse(plan.model.location, plan.strategy).process > 0


SCRIPTED = Capabilities(
    plan_fields={
        field: values
        for field, values in TRANSFORMERS.plan_fields.items()
        if field != "quantization"
    },
    max_ranks=None,
    occupies_device=False,
    processes_differ=_scripted_processes_differ,
    serves=True,
    fits_in_process=_scripted_fits_in_process,
)
