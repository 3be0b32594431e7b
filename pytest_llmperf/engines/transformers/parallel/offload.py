"""Weights that wait in the host's memory or on disk.

accelerate's hooks move them to the device layer by layer.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.errors import UsageError


def require_accelerate(plan: LoadPlan) -> None:
    """Raise UsageError where a plan offloads and accelerate is not installed."""
    if plan.offload is not None and find_spec("accelerate") is None:
        raise UsageError(
            f"strategy part 'offload-{plan.offload}' needs the package accelerate on top of engine "
            "'transformers', which is not installed. pip install accelerate",
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
        accelerate.disk_offload(model, _folder_for(model), execution_device=device)
    _move_buffers(model, device)


def _folder_for(model: Any) -> str:
    """Make a folder that is removed with the model."""
    folder = tempfile.mkdtemp(prefix="llmperf-offload-")
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    return folder


def _move_buffers(model: nn.Module, device: torch.device) -> None:
    for buffer_owner in model.modules():
        for name, buffer in list(buffer_owner.named_buffers(recurse=False)):
            # accelerate leaves small tables where they are.
            buffer_owner._buffers[name] = buffer.to(device)  # noqa: SLF001


def offloaded_bytes(model: nn.Module) -> dict[str, int]:
    """Return the bytes of the parameters that are offloaded now, by place ("cpu", "disk").

    Tied parameters are one in memory, and two on disk.
    """
    offloaded: Counter[str] = Counter()
    counted: set[int] = set()
    for values, name, parameter in _offloaded_parameters(model):
        if _is_on_disk(values):
            offloaded["disk"] += parameter.nbytes
        elif not _is_counted(values[name], counted):
            offloaded["cpu"] += parameter.nbytes
    return dict(offloaded)


def _offloaded_parameters(model: nn.Module) -> Iterator[tuple[Any, str, nn.Parameter]]:
    """Yield accelerate's map of weights, the name in it, and the parameter on the meta device."""
    for module in model.modules():
        hook: Any = getattr(module, "_hf_hook", None)
        values: Any = getattr(hook, "weights_map", None)
        if values is None or not getattr(hook, "offload", False):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                yield values, name, parameter


def _is_on_disk(values: Any) -> bool:
    """Whether accelerate's map of weights reads them from a folder."""
    return getattr(getattr(values, "dataset", values), "save_folder", None) is not None


def _is_counted(tensor: torch.Tensor, counted: set[int]) -> bool:
    """Whether the tensor's address is in `counted`; add it if it is not."""
    address = tensor.data_ptr()
    if address in counted:
        return True
    counted.add(address)
    return False
