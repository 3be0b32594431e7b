"""Quantized plans that the transformers engine cannot load, with the reason.

Looks at the driver and at files, loads nothing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.quantization import Scheme, scheme_of
from pytest_llmperf.engines.models.names import computed_dtype
from pytest_llmperf.engines.models.quantized_checkpoint import disagreement, stored_as

FLOAT8_CAPABILITY = (8, 9)
INT4_CAPABILITY = (8, 0)
CPU_GROUPS = (32, 64, 128)


def missing_library(plan: LoadPlan) -> str | None:
    """The library that the plan's quantization needs and that is not installed here, with the extra. Imports nothing."""
    if plan.quantization is None:
        return None
    row = scheme_of(plan.quantization).row
    if importlib.util.find_spec(row.library) is not None:
        return None
    return (
        f"strategy part {plan.quantization!r} on model {plan.model.name!r} needs {row.library}, which is not installed for "
        f"engine {plan.engine!r}. pip install 'pytest-llmperf[{row.extra}]'"
    )


def quantized(plan: LoadPlan) -> str | None:
    """The first reason why the plan's quantization cannot be had, with part and model."""
    if plan.quantization is None:
        return None
    scheme = scheme_of(plan.quantization)
    reason = next((found for check in _CHECKS if (found := check(plan, scheme)) is not None), None)
    return (
        None if reason is None else f"{plan.quantization!r} on model {plan.model.name!r}: {reason}"
    )


def _autocast(plan: LoadPlan, _scheme: Scheme) -> str | None:
    if plan.autocast_dtype is None:
        return None
    return "quantized layers compute in the dtype of the precision part, and autocast gives them another. Use fp32, fp16 or bf16."


def _device(plan: LoadPlan, scheme: Scheme) -> str | None:
    """Kernels that a device lacks."""
    needed = {"fp8": FLOAT8_CAPABILITY, "int4wo": INT4_CAPABILITY}.get(scheme.method)
    if needed is None or scheme.weight_only:
        return None
    on_cpu = plan.device.partition(":")[0] == "cpu"
    if on_cpu and scheme.method == "fp8":
        return "float8 products need a GPU of compute capability 8.9 or newer. 'fp8:wo' stores float8 weights on any device."
    if on_cpu:
        return (
            None
            if scheme.group in CPU_GROUPS
            else f"group sizes on a CPU: {', '.join(map(str, CPU_GROUPS))}."
        )
    found = compute_capability()
    if found is None or found >= needed:
        return None
    return f"the GPU has compute capability {found[0]}.{found[1]}, {needed[0]}.{needed[1]} or newer is needed."


def _dtype(plan: LoadPlan, scheme: Scheme) -> str | None:
    bfloat16_only = (scheme.method == "fp8" and not scheme.weight_only) or (
        scheme.method == "int4wo" and plan.device.partition(":")[0] == "cuda"
    )
    precision = computed_dtype(plan) if bfloat16_only else None
    if precision in (None, "bfloat16"):
        return None
    return f"its kernels take bfloat16 only, the precision is {precision}. Write 'bf16+{plan.quantization}'."


def _compile(plan: LoadPlan, scheme: Scheme) -> str | None:
    if scheme.method != "int8" or not scheme.threshold or plan.compile is None:
        return None
    return (
        "LLM.int8() picks its outlier columns by their values at each step, which a compiled graph cannot do. "
        "Leave out 'compile', or the outliers: 'int8:0'."
    )


def _checkpoint(_plan: LoadPlan, scheme: Scheme) -> str | None:
    """A checkpoint that is not what the part says it is.

    One that is not there was told when the plan was made.
    """
    folder = Path(scheme.path)
    if not scheme.path or not (folder / "config.json").is_file():
        return None
    packed = stored_as(folder)
    return packed if isinstance(packed, str) else disagreement(scheme, packed)


_CHECKS: tuple[Callable[[LoadPlan, Scheme], str | None], ...] = (
    _autocast,
    _device,
    _dtype,
    _compile,
    _checkpoint,
)


@cache
def compute_capability() -> tuple[int, int] | None:
    """The lowest compute capability of the GPUs that the driver shows, or None where it shows none."""
    # It costs milliseconds, and only some plans depend on it.
    from pytest_llmperf.instruments.nvml import Nvml, Unreadable  # noqa: PLC0415

    gpus = Nvml.listed()
    if isinstance(gpus, Unreadable):
        return None
    capabilities = [gpu.compute_capability() for gpu in gpus]
    known = [value for value in capabilities if not isinstance(value, Unreadable)]
    return min(known, default=None)


ALL = (quantized,)
