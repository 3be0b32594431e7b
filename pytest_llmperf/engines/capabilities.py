"""What the built-in engines can do. Nothing heavy is imported here."""

from __future__ import annotations

from pytest_llmperf.engines.base import Capabilities

_DTYPES = frozenset({"auto", "float32", "float16", "bfloat16"})

TRANSFORMERS = Capabilities(
    plan_fields={
        "weights_dtype": _DTYPES,
        "autocast_dtype": frozenset({None, "float16", "bfloat16"}),
        "attention": frozenset({None, "sdpa", "eager", "flash_attention_2"}),
        "cache": frozenset({"dynamic", "static"}),
        "compile": frozenset({None, "default", "reduce-overhead", "max-autotune"}),
    },
)

SCRIPTED = Capabilities(plan_fields=dict(TRANSFORMERS.plan_fields), max_ranks=None)
