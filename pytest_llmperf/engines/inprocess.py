"""A project's own callable as an engine, in the test's own process.

Only its calls are seen: when a call began and ended.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from pytest_llmperf.core.effective import Effective
from pytest_llmperf.core.loaded import Description, ModelFacts, TimedRun
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.trace import (
    EnergyReading,
    MemoryGauges,
    RequestTrace,
    TokenEvent,
    Trace,
)
from pytest_llmperf.instruments.cpu_time import ON_A_GPU, CpuTimer
from pytest_llmperf.workloads import Workload

_REASON = "llmperf.measure sees calls, not tokens or memory; llmperf.wrap(model) sees both"


class CallableEngine:
    """Opens a callable that produces a fixed number of output tokens a call."""

    def __init__(self, function: Callable[[], Any], n_tokens: int) -> None:
        self._function = function
        self._n_tokens = n_tokens

    def open(self, plan: LoadPlan) -> CallableModel:
        """Return the callable as a model; nothing is loaded."""
        return CallableModel(self._function, self._n_tokens, plan)


class CallableModel:
    """See `pytest_llmperf.engines.base.LoadedModel`."""

    refusals: ClassVar[Mapping[str, str]] = {
        "make_reference": f"agreement needs a model: {_REASON}.",
        "compare_reference": f"agreement needs a model: {_REASON}.",
        "use_adapters": f"adapters need a model: {_REASON}.",
        "answer_tasks": f"tasks need a model: {_REASON}.",
        "top_tokens": f"next tokens need a model: {_REASON}.",
    }

    def __init__(self, function: Callable[[], Any], n_tokens: int, plan: LoadPlan) -> None:
        self._function = function
        self._n_tokens = n_tokens
        self._plan = plan

    def opened(self) -> ModelFacts:
        """Return what is known: a name, and this machine."""
        return ModelFacts(
            effective=self.describe().effective,
            load_s=0.0,
            content_hash=f"callable:{self._plan.model.name}",
            vocab_size=0,
            versions={"python": platform.python_version()},
            device_name="this process",
            device_facts={},
            memory=MemoryGauges(weights=0, reasons={"weights": _REASON}),
        )

    def describe(self) -> Description:
        """Return nothing but the device: what a callable does inside is not seen."""
        effective = Effective(
            engine="inprocess",
            model_class=type(self._function).__name__,
            tensors=(),
            linears=(),
            compute_dtype="",
            autocast_dtype=None,
            checkpoint_dtype=None,
            attention="",
            cache="",
            compile_mode=None,
            compiled_graphs=0,
            decode_loop="callable",
            padding_side="",
            device=self._plan.device,
            notes=(_REASON,),
        )
        return Description(
            effective=effective, memory=MemoryGauges(weights=0, reasons={"weights": _REASON})
        )

    def run(self, _workload: Workload, repetition: int) -> TimedRun:
        """Call it once, with the device idle before and after."""
        _synchronize()
        timer = CpuTimer()
        timer.start()
        start_ns = time.perf_counter_ns()
        self._function()
        _synchronize()
        end_ns = time.perf_counter_ns()
        cpu_s = timer.elapsed_s()
        uses_gpu = _cuda_in_use() is not None
        request = RequestTrace(
            n_prompt_tokens=0, t_due_ns=start_ns, events=(TokenEvent(end_ns, self._n_tokens),)
        )
        return TimedRun(
            trace=Trace(
                repetition=repetition,
                requests=(request,),
                token_times=False,
                cpu_s=None if uses_gpu else cpu_s,
                no_cpu_s=ON_A_GPU if uses_gpu else "",
            ),
            step=None,
        )

    def read_memory(self, _workload: Workload, _repetition: int) -> None:
        """Return None: not measurable."""

    def read_energy(self, _workload: Workload, _repetition: int, _seconds: float) -> EnergyReading:
        """Return why there is no reading."""
        return EnergyReading(joules=None, seconds=0.0, n_output_tokens=0, reason=_REASON)

    def ceilings(self, _dtypes: tuple[str, ...]) -> None:
        """Return None: there is nothing to hold against them."""

    def close(self) -> None:
        """Do nothing: there is nothing to free."""


def _synchronize() -> None:
    """Wait for CUDA if the test uses it."""
    cuda = _cuda_in_use()
    if cuda is not None:
        cuda.synchronize()


def _cuda_in_use() -> Any:
    """Return torch.cuda if the test uses it, else None. torch is looked up, never imported."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None
