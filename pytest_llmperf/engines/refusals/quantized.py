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
from pytest_llmperf.engines.refusals import first_reason

FLOAT8_CAPABILITY = (8, 9)
INT4_CAPABILITY = (8, 0)
CPU_GROUPS = (32, 64, 128)


def missing_library(plan: LoadPlan) -> str | None:
    """Name the library that the plan's quantization needs and that is not installed here.

    The text names the extra that installs it. Imports nothing.
    """
    if plan.quantization is None:
        return None
    row = scheme_of(plan.quantization).row
    if importlib.util.find_spec(row.library) is not None:
        return None
    return (
        f"strategy part {plan.quantization!r} on model {plan.model.name!r} needs {row.library}, "
        f"which is not installed for engine {plan.engine!r}. "
        f"pip install 'pytest-llmperf[{row.extra}]'"
    )


def quantized(plan: LoadPlan) -> str | None:
    """Return the first reason why the plan's quantization cannot be had, with part and model."""
    if plan.quantization is None:
        return None
    scheme = scheme_of(plan.quantization)
    reason = first_reason(check(plan, scheme) for check in _CHECKS)
    if reason is None:
        return None
    return f"{plan.quantization!r} on model {plan.model.name!r}: {reason}"


def _autocast(plan: LoadPlan, _scheme: Scheme) -> str | None:
    if plan.autocast_dtype is None:
        return None
    return (
        "quantized layers compute in the dtype of the precision part, and autocast gives them "
        "another. Use fp32, fp16 or bf16."
    )


def _device(plan: LoadPlan, scheme: Scheme) -> str | None:
    """Refuse kernels that a device lacks."""
    needed = {"fp8": FLOAT8_CAPABILITY, "int4wo": INT4_CAPABILITY}.get(scheme.method)
    if needed is None or scheme.weight_only:
        return None
    if plan.device_kind == "cpu":
        return _cpu_kernels(scheme)
    return _gpu_kernels(needed)


def _cpu_kernels(scheme: Scheme) -> str | None:
    if scheme.method == "fp8":
        return (
            "float8 products need a GPU of compute capability 8.9 or newer. "
            "'fp8:wo' stores float8 weights on any device."
        )
    if scheme.group in CPU_GROUPS:
        return None
    return f"group sizes on a CPU: {', '.join(map(str, CPU_GROUPS))}."


def _gpu_kernels(needed: tuple[int, int]) -> str | None:
    capability = compute_capability()
    if capability is None or capability >= needed:
        return None
    return (
        f"the GPU has compute capability {capability[0]}.{capability[1]}, "
        f"{needed[0]}.{needed[1]} or newer is needed."
    )


def _dtype(plan: LoadPlan, scheme: Scheme) -> str | None:
    if not _takes_bfloat16_only(plan, scheme):
        return None
    precision = computed_dtype(plan)
    if precision in (None, "bfloat16"):
        return None
    return (
        f"its kernels take bfloat16 only, the precision is {precision}. "
        f"Write 'bf16+{plan.quantization}'."
    )


def _takes_bfloat16_only(plan: LoadPlan, scheme: Scheme) -> bool:
    if scheme.method == "fp8":
        return not scheme.weight_only
    return scheme.method == "int4wo" and plan.device_kind == "cuda"


def _compile(plan: LoadPlan, scheme: Scheme) -> str | None:
    if scheme.method != "int8" or not scheme.threshold or plan.compile is None:
        return None
    return (
        "LLM.int8() picks its outlier columns by their values at each step, which a compiled graph "
        "cannot do. Leave out 'compile', or the outliers: 'int8:0'."
    )


def _checkpoint(_plan: LoadPlan, scheme: Scheme) -> str | None:
    """Refuse a checkpoint that is not what the part says it is.

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
    """Return the lowest compute capability of the GPUs that the driver shows; None without one."""
    # It costs milliseconds, and only some plans depend on it.
    from pytest_llmperf.instruments.nvml import Nvml, Unreadable  # noqa: PLC0415

    gpus = Nvml.listed()
    if isinstance(gpus, Unreadable):
        return None
    capabilities = [gpu.compute_capability() for gpu in gpus]
    known = [value for value in capabilities if not isinstance(value, Unreadable)]
    return min(known, default=None)


ALL = (quantized,)
