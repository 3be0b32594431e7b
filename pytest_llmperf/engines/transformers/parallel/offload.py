"""Weights that wait in the host's memory or on disk, moved to the device layer by layer by accelerate's hooks."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections import Counter
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.errors import UsageError


def require_accelerate(plan: LoadPlan) -> None:
    """Raise UsageError, before anything is loaded, where a plan offloads and accelerate is not installed."""
    if plan.offload is not None and find_spec("accelerate") is None:
        raise UsageError(
            f"strategy part 'offload-{plan.offload}' needs the package accelerate on top of engine 'transformers', which is not "
            "installed. pip install accelerate",
        )


def offload(model: Any, plan: LoadPlan, device: torch.device) -> None:
    """Leave the weights where the plan says, and run on `device`.

    The folder on disk goes with the model.
    """
    if plan.offload is None:
        return
    import accelerate  # type: ignore[import-untyped]  # noqa: PLC0415

    if plan.offload == "cpu":
        accelerate.cpu_offload(model, execution_device=device)
    else:
        folder = tempfile.mkdtemp(prefix="llmperf-offload-")
        weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
        accelerate.disk_offload(model, folder, execution_device=device)
    for buffer_owner in model.modules():
        for name, buffer in list(buffer_owner.named_buffers(recurse=False)):
            # Accelerate leaves small tables in place.
            buffer_owner._buffers[name] = buffer.to(device)  # noqa: SLF001


def offloaded_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes of the parameters that accelerate's hooks hold elsewhere now, by place ("cpu", "disk").

    On disk a tied one is two.
    """
    waiting: Counter[str] = Counter()
    seen: set[int] = set()
    for module in model.modules():
        hook: Any = getattr(module, "_hf_hook", None)
        values: Any = getattr(hook, "weights_map", None)
        for name, parameter in module.named_parameters(recurse=False):
            if values is None or not getattr(hook, "offload", False) or not parameter.is_meta:
                continue
            on_disk = getattr(getattr(values, "dataset", values), "save_folder", None) is not None
            if not on_disk and _seen(values[name], seen):
                continue
            waiting["disk" if on_disk else "cpu"] += parameter.numel() * parameter.element_size()
    return dict(waiting)


def _seen(tensor: torch.Tensor, seen: set[int]) -> bool:
    known = tensor.data_ptr() in seen
    seen.add(tensor.data_ptr())
    return known
