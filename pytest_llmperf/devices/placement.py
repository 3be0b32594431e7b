"""Which device a plan goes to, asked of the driver (NVML) and never by initialising CUDA."""

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
from pytest_llmperf.errors import UsageError
from pytest_llmperf.settings.settings import DEVICES


def resolve_device(wanted: str, can: Capabilities, pool: Callable[[], GpuPool]) -> str:
    """'cuda' or 'cpu' for 'auto', 'cuda' or 'cpu', where `pool` gives the GPUs that may be used.

    Raises:
        UsageError: the device is not here, the pool has none or cannot be had, or the engine cannot
            use it.
    """
    if wanted not in DEVICES:
        raise UsageError(f"device {wanted!r} is not known. Choices: {', '.join(DEVICES)}.")
    usable = "cuda" in can.devices and wanted != "cpu"
    device = wanted if wanted != "auto" else ("cuda" if usable and pool().gpus else "cpu")
    if device not in can.devices:
        raise UsageError(
            f"device {device!r}: this engine runs on {', '.join(sorted(can.devices))}."
        )
    if device == "cuda" and not pool().gpus:
        raise UsageError(
            f"device 'cuda': {pool()}. Use --llmperf-device=cpu, or another --llmperf-gpus; 'llmperf doctor' says more.",
        )
    return device


def gpu_count() -> int:
    """GPUs that the driver shows and that CUDA_VISIBLE_DEVICES does not hide.

    0 where there is no driver.
    """
    return len(inventory().gpus)


USABLE_SHARE = 0.92  # the rest is the runtime's context, activations and the operating system


def total_bytes(device: str, gpus: Sequence[Gpu] = ()) -> int:
    """Memory of the smallest of these GPUs, or of this host (its container's limit, where there is one)."""
    if device.startswith("cuda") and (gpus or inventory().gpus):
        return min(gpu.total_bytes for gpu in gpus or inventory().gpus)
    return host_limit_bytes()


def free_bytes(device: str, gpus: Sequence[Gpu] = ()) -> int:
    """Memory that is free now on each of these GPUs (the least.

    The first visible for none), or on the host.

    Where the driver does not say what is free it is the GPU's total.
    """
    import psutil  # noqa: PLC0415

    if not device.startswith("cuda"):
        return min(int(psutil.virtual_memory().available), host_limit_bytes())
    seen = [(gpu, usage(gpu)) for gpu in gpus or inventory().gpus[:1]]
    return min((gpu.total_bytes if now is None else now.free_bytes for gpu, now in seen), default=0)


def needed_bytes(plan: LoadPlan) -> int | None:
    """Least bytes that loading `plan` takes on each of its devices, or None if that cannot be told."""
    predicted = predict(plan)
    return None if predicted is None else math.ceil(predicted / plan.ranks)


def host_limit_bytes() -> int:
    """Memory of this host, or of its container where that is less."""
    import psutil  # noqa: PLC0415

    from pytest_llmperf.devices.host import memory_limit_bytes  # noqa: PLC0415

    total = int(psutil.virtual_memory().total)
    return min(total, memory_limit_bytes(Path("/proc"), Path("/sys/fs/cgroup")) or total)
