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

_CAPABILITIES = {"fp8": FLOAT8_CAPABILITY, "int4wo": INT4_CAPABILITY}
"""Method -> the compute capability that its products need."""


def missing_library(plan: LoadPlan) -> str | None:
    """Name the library that the plan's quantization needs and that is not installed here.

    The text names the extra that installs it. Imports nothing.
    """
    if plan.quantization is None:
        return None
    scheme = scheme_of(plan.quantization)
    return None if _has_library(scheme) else _library_to_install(plan, scheme)


def _has_library(scheme: Scheme) -> bool:
    return importlib.util.find_spec(scheme.row.library) is not None


def _part_on_model(plan: LoadPlan) -> str:
    return f"{plan.quantization!r} on model {plan.model.name!r}"


def _library_to_install(plan: LoadPlan, scheme: Scheme) -> str:
    return (
        f"strategy part {_part_on_model(plan)} needs {scheme.row.library}, "
        f"which is not installed for engine {plan.engine!r}. "
        f"pip install 'pytest-llmperf[{scheme.row.extra}]'"
    )


def quantized(plan: LoadPlan) -> str | None:
    """Return the first reason why the plan's quantization cannot be had, with part and model."""
    if plan.quantization is None:
        return None
    reason = _reason_against(plan, scheme_of(plan.quantization))
    return None if reason is None else f"{_part_on_model(plan)}: {reason}"


def _reason_against(plan: LoadPlan, scheme: Scheme) -> str | None:
    return first_reason(check(plan, scheme) for check in _CHECKS)


def _autocast(plan: LoadPlan, _scheme: Scheme) -> str | None:
    if plan.autocast_dtype is None:
        return None
    return (
        "quantized layers compute in the dtype of the precision part, and autocast gives them "
        "another. Use fp32, fp16 or bf16."
    )


def _device(plan: LoadPlan, scheme: Scheme) -> str | None:
    """Refuse kernels that a device lacks."""
    needed = _needed_capability(scheme)
    if needed is None:
        return None
    return _cpu_kernels(scheme) if plan.device_kind == "cpu" else _gpu_kernels(needed)


def _needed_capability(scheme: Scheme) -> tuple[int, int] | None:
    """Return the compute capability that a scheme's products need; None for weights alone."""
    return None if scheme.weight_only else _CAPABILITIES.get(scheme.method)


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
        f"the GPU has compute capability {_dotted(capability)}, "
        f"{_dotted(needed)} or newer is needed."
    )


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


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
    folder = _checkpoint_folder(scheme)
    return None if folder is None else _other_contents(folder, scheme)


def _other_contents(folder: Path, scheme: Scheme) -> str | None:
    packed = stored_as(folder)
    return packed if isinstance(packed, str) else disagreement(scheme, packed)


def _checkpoint_folder(scheme: Scheme) -> Path | None:
    """Return the folder of a scheme's checkpoint, where it names one that is there."""
    folder = Path(scheme.path)
    return folder if scheme.path and (folder / "config.json").is_file() else None


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
    capabilities = (gpu.compute_capability() for gpu in gpus)
    return min((c for c in capabilities if not isinstance(c, Unreadable)), default=None)


ALL = (quantized,)
