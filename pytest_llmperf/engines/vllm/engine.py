"""vLLM's offline engine, its core in this process.

Importing this module imports vLLM: only a worker does.
"""

from __future__ import annotations

import os
import time
from typing import Any

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.vllm.arguments import ENVIRONMENT, arguments, environment

os.environ.update(ENVIRONMENT)  # vLLM reads them while it is imported

import torch
from vllm import EngineArgs, LLMEngine
from vllm.usage.usage_lib import UsageContext

from pytest_llmperf.engines.loading.checkpoint import load_errors
from pytest_llmperf.engines.loading.folder import ModelFolder, model_folder
from pytest_llmperf.engines.vllm.adapters import adapter_arguments
from pytest_llmperf.engines.vllm.loaded import VllmModel
from pytest_llmperf.engines.vllm.requesting import LoadedEngine
from pytest_llmperf.engines.vllm.shards import own_shared_memory
from pytest_llmperf.instruments.ranks import package_versions, rank_device, torch_device


class VllmEngine:
    """See engines.base.Engine."""

    def open(self, plan: LoadPlan) -> VllmModel:
        """Load the plan's model.

        Raises UsageError, LoadError, NotInEffect, or out of memory as torch does.
        """
        device = torch_device(rank_device(plan.device))
        source = model_folder(plan)
        keywords = _keywords(plan, source, device)
        if plan.ranks > 1 and device.type == "cpu":
            own_shared_memory()
        os.environ.update(environment(plan))
        start_ns = time.perf_counter_ns()
        with load_errors(plan, str(source.folder)):
            engine = LLMEngine.from_engine_args(
                EngineArgs(**keywords), usage_context=UsageContext.LLM_CLASS
            )
        load_s = (time.perf_counter_ns() - start_ns) / 1e9
        return VllmModel(
            LoadedEngine(
                engine=engine,
                plan=plan,
                source=source,
                device=device,
                load_s=load_s,
                versions=package_versions(),
            ),
        )


def _keywords(plan: LoadPlan, source: ModelFolder, device: torch.device) -> dict[str, Any]:
    """Return the keyword arguments of vLLM's EngineArgs."""
    dtype = source.dtype if plan.weights_dtype == "auto" else plan.weights_dtype
    keywords = arguments(
        plan, source.folder, dtype=dtype, dummy=source.dummy, free_share=_free_share(device)
    )
    return keywords | adapter_arguments(plan)


def _free_share(device: torch.device) -> float:
    """Return the share of a GPU's memory that nobody uses yet."""
    if device.type != "cuda":
        return 1.0
    free, total = torch.cuda.mem_get_info(device)
    return free / total
