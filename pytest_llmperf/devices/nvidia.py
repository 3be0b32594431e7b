"""NVIDIA's GPUs as NVML lists them, for the placement of models on them.

It makes no CUDA context. Figures of one GPU that a worker reads are in `instruments.nvml`.
"""

from __future__ import annotations

import contextlib
from typing import Any

from pytest_llmperf.devices.inventory import Gpu, Physical, Usage


def listed() -> tuple[list[Physical], tuple[str, ...]]:
    """Return every GPU that NVML lists and lets us open, and notes on those that it does not."""
    import pynvml  # noqa: PLC0415 - costs milliseconds, and not every session looks

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [], (f"NVIDIA: no driver here (NVML: {error})",)
    gpus, notes = [], []
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                gpus.append(_physical(index))
            except pynvml.NVMLError as error:
                notes.append(f"GPU {index} is listed but cannot be used here (NVML: {error})")
    finally:
        pynvml.nvmlShutdown()
    return gpus, tuple(notes)


def usage(gpu: Gpu) -> Usage | None:
    """Return the memory of a device now; None where NVML does not say."""
    import pynvml  # noqa: PLC0415

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
    by_pid = {int(process.pid): _optional_int(process.usedGpuMemory) for process in processes}
    return Usage(used_bytes=int(memory.used), free_bytes=int(memory.free), by_pid=by_pid)


def _physical(index: int) -> Physical:
    """Return one GPU with its slices. Raises NVMLError where it cannot be opened."""
    import pynvml  # noqa: PLC0415

    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    capability = tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle))
    slices = _slice_handles(handle)
    parts = (
        [_part(handle, capability, mig=False)]
        if slices is None
        else [_part(slice_handle, capability, mig=True) for slice_handle in slices]
    )
    return Physical(uuid=_text(pynvml.nvmlDeviceGetUUID(handle)), parts=tuple(parts))


def _part(handle: Any, capability: tuple[int, int], *, mig: bool) -> Gpu:
    import pynvml  # noqa: PLC0415

    uuid = _text(pynvml.nvmlDeviceGetUUID(handle))
    return Gpu(
        index=0,
        uuid=uuid,
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        total_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        capability=capability,
        mig=mig,
        selector=uuid,
    )


def _slice_handles(handle: Any) -> list[Any] | None:
    """Return the handles of a GPU's slices (MIG); None for a GPU that is not cut up."""
    import pynvml  # noqa: PLC0415

    try:
        if pynvml.nvmlDeviceGetMigMode(handle)[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
            return None
    except pynvml.NVMLError:
        return None  # a GPU that cannot be cut up says so with an error
    slices = []
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        with contextlib.suppress(pynvml.NVMLError_NotFound):
            slices.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index))
    return slices


def _optional_int(value: int | None) -> int | None:
    return None if value is None else int(value)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
