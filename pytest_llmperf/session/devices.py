"""Which device a plan goes to, asked of the driver (NVML) and never by initialising CUDA."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

from pytest_llmperf.engines.base import Capabilities
from pytest_llmperf.errors import UsageError
from pytest_llmperf.session.settings import DEVICES


def resolve_device(wanted: str, can: Capabilities) -> str:
    """'cuda' or 'cpu' for 'auto', 'cuda' or 'cpu'. Raises UsageError when the device is not here or the engine cannot use it."""
    if wanted not in DEVICES:
        raise UsageError(f"device {wanted!r} is not known. Choices: {', '.join(DEVICES)}.")
    device = wanted if wanted != "auto" else ("cuda" if "cuda" in can.devices and gpu_count() else "cpu")
    if device not in can.devices:
        raise UsageError(f"device {device!r}: this engine runs on {', '.join(sorted(can.devices))}.")
    if device == "cuda" and not gpu_count():
        raise UsageError(
            "device 'cuda': the driver shows no NVIDIA GPU here (NVML). Use --llmperf-device=cpu; 'llmperf doctor' says more."
        )
    return device


@cache
def gpu_count() -> int:
    """NVIDIA GPUs that the driver shows and that CUDA_VISIBLE_DEVICES does not hide; 0 where there is no driver."""
    import pynvml  # noqa: PLC0415 - costs milliseconds, needed only when a test asks for a device

    if os.environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}:
        return 0
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        return int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()


USABLE_SHARE = 0.92  # the rest is the runtime's context, activations and the operating system


def total_bytes(device: str) -> int:
    """Memory of the first visible GPU, or of this host (its container's limit, where there is one)."""
    return _gpu_memory().total if device == "cuda" else host_limit_bytes()


def free_bytes(device: str) -> int:
    """Memory that is free now on the device."""
    import psutil  # noqa: PLC0415

    if device == "cuda":
        return int(_gpu_memory().free)
    return min(int(psutil.virtual_memory().available), host_limit_bytes())


def _gpu_memory() -> Any:
    import pynvml  # noqa: PLC0415

    pynvml.nvmlInit()
    try:
        return pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0))
    finally:
        pynvml.nvmlShutdown()


def host_limit_bytes() -> int:
    """Memory of this host, or of its container where that is less."""
    import psutil  # noqa: PLC0415

    from pytest_llmperf.session.host import memory_limit_bytes  # noqa: PLC0415

    total = int(psutil.virtual_memory().total)
    return min(total, memory_limit_bytes(Path("/proc"), Path("/sys/fs/cgroup")) or total)
