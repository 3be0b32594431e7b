"""What the vLLM engine can do. Nothing heavy is imported here."""

from __future__ import annotations

import importlib.util

from pytest_llmperf.core.plan import ANY, LoadPlan
from pytest_llmperf.engines.base import Capabilities
from pytest_llmperf.engines.vllm.refusals import refusal
from pytest_llmperf.strategies.assistance import LOOKUP


def missing_library(plan: LoadPlan) -> str | None:
    """Name the package vllm itself, where this interpreter does not have it."""
    if importlib.util.find_spec("vllm") is not None:
        return None
    return (
        f"engine {plan.engine!r} needs vllm, which is not installed in this interpreter. "
        "pip install 'pytest-llmperf[vllm]', or name an interpreter that has it and "
        "pytest-llmperf: --llmperf-python vllm=/path/to/python."
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
    refusal=refusal,
    missing_library=missing_library,
    max_ranks=None,
)
