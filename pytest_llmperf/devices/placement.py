"""Which device a plan goes to, and how much memory is there.

The driver is asked (NVML); CUDA is never initialised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.devices.drivers import inventory, usage
from pytest_llmperf.devices.inventory import Gpu
from pytest_llmperf.devices.selection import GpuPool
from pytest_llmperf.engines.base import Capabilities
from pytest_llmperf.engines.models.names import predict
from pytest_llmperf.errors import UsageError, did_you_mean
from pytest_llmperf.names import DEVICE_MEANINGS
from pytest_llmperf.settings.settings import DEVICES

USABLE_SHARE = 0.92
"""Share of memory for weights; the rest is the runtime's context, activations and the system."""


def resolve_device(option: str, can: Capabilities, pool: Callable[[], GpuPool]) -> str:
    """Return 'cuda' or 'cpu' for 'auto', 'cuda' or 'cpu'.

    `pool` gives the GPUs that may be used, and is asked only where that matters.

    Raises:
        UsageError: the device is not here, the pool has none or cannot be had, or the engine cannot
            use it.
    """
    if option not in DEVICES:
        all_devices = f"Choices: {', '.join(DEVICES)}."
        near = did_you_mean(option, DEVICES, DEVICE_MEANINGS, otherwise=all_devices)
        raise UsageError(f"device {option!r} is not known.{near}")
    device = _best_device(can, pool) if option == "auto" else option
    if device not in can.devices:
        raise UsageError(
            f"device {device!r}: this engine runs on {', '.join(sorted(can.devices))}."
        )
    if device == "cuda" and not pool().gpus:
        raise UsageError(
            f"device 'cuda': {pool()}. Use --llmperf-device=cpu, or another --llmperf-gpus; "
            "'llmperf doctor' says more.",
        )
    return device


def gpu_count() -> int:
    """Return the number of GPUs that the driver shows and CUDA_VISIBLE_DEVICES does not hide.

    It is 0 where there is no driver.
    """
    return len(inventory().gpus)


def total_bytes(device: str, gpus: Sequence[Gpu] = ()) -> int:
    """Return the memory of the smallest of these GPUs, or of the host.

    No GPUs mean all visible ones. A host's memory is its container's limit, where there is one.
    """
    candidates = gpus or inventory().gpus
    if device.startswith("cuda") and candidates:
        return min(gpu.total_bytes for gpu in candidates)
    return host_limit_bytes()


def free_bytes(device: str, gpus: Sequence[Gpu] = ()) -> int:
    """Return the memory that is free now on the fullest of these GPUs, or on the host.

    For no GPUs it is that of the first visible one. Where the driver does not say what is free it
    is the GPU's total.
    """
    if not device.startswith("cuda"):
        return _free_host_bytes()
    return min(map(_free_gpu_bytes, gpus or inventory().gpus[:1]), default=0)


def _free_host_bytes() -> int:
    """Return the host's available memory, within its container's limit."""
    import psutil  # noqa: PLC0415

    return min(int(psutil.virtual_memory().available), host_limit_bytes())


def needed_bytes(plan: LoadPlan) -> int | None:
    """Return the least bytes that loading `plan` takes on each of its devices; None: not known."""
    predicted = predict(plan)
    return None if predicted is None else math.ceil(predicted / plan.ranks)


def host_limit_bytes() -> int:
    """Return the memory of this host, or of its container where that is less."""
    import psutil  # noqa: PLC0415

    from pytest_llmperf.devices.host import memory_limit_bytes  # noqa: PLC0415

    total = int(psutil.virtual_memory().total)
    return min(total, memory_limit_bytes(Path("/proc"), Path("/sys/fs/cgroup")) or total)


def _best_device(can: Capabilities, pool: Callable[[], GpuPool]) -> str:
    return "cuda" if "cuda" in can.devices and pool().gpus else "cpu"


def _free_gpu_bytes(gpu: Gpu) -> int:
    in_use = usage(gpu)
    return gpu.total_bytes if in_use is None else in_use.free_bytes
