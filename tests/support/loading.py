"""Plans and dtypes for the tests of loading."""

from __future__ import annotations

import torch

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.instruments.layers import dtype_name

DTYPES = ("float32", "float16", "bfloat16")


def plan_for(name: object, **fields: object) -> LoadPlan:
    return LoadPlan(model=model_ref(str(name)), **fields)


def dtypes(model: torch.nn.Module) -> set[str]:
    return {dtype_name(parameter) for parameter in model.parameters()}
