"""What the GPU drivers say: NVML, and AMD's own library where it is.

No CUDA context is made and no torch is imported.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from pytest_llmperf.devices.inventory import SIMULATED, Gpu, Inventory, Physical, simulated, visible


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Memory of one device now: in use by anyone (what the driver keeps for itself apart), free, and by process.

    `by_pid` holds compute processes; a process whose figure the driver hides has None. Containers may hide processes
    altogether or show foreign numbers for them.
    """

    used_bytes: int
    free_bytes: int
    by_pid: dict[int, int | None] = {}


@cache
def inventory() -> Inventory:
    """The GPUs that this process sees. Asked once a process."""
    return read_inventory(os.environ)


def read_inventory(environ: Mapping[str, str]) -> Inventory:
    """As `inventory`, for a given environment.

    Raises UsageError for a simulated inventory that cannot be read.
    """
    if SIMULATED in environ:
        return simulated(environ[SIMULATED])
    listed, notes = _nvidia()
    seen = visible(listed, environ.get("CUDA_VISIBLE_DEVICES"))
    if listed:
        return msgspec.structs.replace(seen, notes=(*notes, *seen.notes))
    amd, amd_note = _amd()
    if not amd:
        return Inventory(notes=(*notes, amd_note))
    name = next(
        (n for n in ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES") if n in environ),
        "HIP_VISIBLE_DEVICES",
    )
    return visible(amd, environ.get(name), name)


def usage(gpu: Gpu) -> Usage | None:
    """Memory of a device now.

    None where the driver does not say (simulated devices, AMD without its library).
    """
    if gpu.uuid.startswith("GPU-simulated-"):
        return _simulated_usage(gpu)
    return _amd_usage(gpu) if gpu.vendor == "amd" else _nvidia_usage(gpu)


def _nvidia() -> tuple[list[Physical], tuple[str, ...]]:
    """Every GPU that NVML lists and lets us open, and what it does not."""
    import pynvml  # noqa: PLC0415

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [], (f"NVIDIA: no driver here (NVML: {error})",)
    try:
        listed, notes = [], []
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                listed.append(_nvidia_gpu(index))
            except pynvml.NVMLError as error:
                notes.append(f"GPU {index} is listed but cannot be used here (NVML: {error})")
        return listed, tuple(notes)
    finally:
        pynvml.nvmlShutdown()


def _nvidia_gpu(index: int) -> Physical:
    import pynvml  # noqa: PLC0415

    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    uuid = _text(pynvml.nvmlDeviceGetUUID(handle))
    capability = tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle))
    slices = _mig_handles(handle)
    parts = [(each, True) for each in slices] if slices is not None else [(handle, False)]
    return Physical(
        uuid=uuid, parts=tuple(_nvidia_part(each, mig, capability) for each, mig in parts)
    )


def _nvidia_part(handle: Any, mig: bool, capability: tuple[int, int]) -> Gpu:
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


def _mig_handles(handle: Any) -> list[Any] | None:
    """Handles of a GPU's slices; None for a GPU that is not cut up."""
    import pynvml  # noqa: PLC0415

    try:
        if pynvml.nvmlDeviceGetMigMode(handle)[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
            return None
    except pynvml.NVMLError:
        return None  # a GPU that cannot be cut up says so with an error
    found = []
    for i in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        with contextlib.suppress(pynvml.NVMLError_NotFound):
            found.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, i))
    return found


def _nvidia_usage(gpu: Gpu) -> Usage | None:
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
    by_pid = {
        int(p.pid): None if p.usedGpuMemory is None else int(p.usedGpuMemory) for p in processes
    }
    return Usage(used_bytes=int(memory.used), free_bytes=int(memory.free), by_pid=by_pid)


def _amd() -> tuple[list[Physical], str]:
    """AMD GPUs through amdsmi, which comes with ROCm; or why none are seen."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints when its library is missing
            import amdsmi  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415
    # KeyError: the package is there and ROCm's library is not.
    except (ImportError, KeyError, OSError):
        return [], "AMD: not seen (Python package amdsmi with ROCm's library is not installed)"
    try:
        with _amd_library(amdsmi):
            return [
                _amd_gpu(amdsmi, i, h) for i, h in enumerate(amdsmi.amdsmi_get_processor_handles())
            ], "AMD: lists none"
    except amdsmi.AmdSmiException as error:
        return [], f"AMD: {error}"


def _amd_gpu(amdsmi: Any, index: int, handle: Any) -> Physical:
    uuid = f"GPU-{amdsmi.amdsmi_get_gpu_device_uuid(handle)}"
    gpu = Gpu(
        index=0,
        uuid=uuid,
        name=str(amdsmi.amdsmi_get_gpu_asic_info(handle)["market_name"]),
        total_bytes=int(amdsmi.amdsmi_get_gpu_memory_total(handle, amdsmi.AmdSmiMemoryType.VRAM)),
        vendor="amd",
        selector=str(index),
    )
    return Physical(uuid=uuid, parts=(gpu,))


def _amd_usage(gpu: Gpu) -> Usage | None:
    amdsmi = sys.modules.get("amdsmi")
    if amdsmi is None:
        return None
    try:
        with _amd_library(amdsmi):
            handle = amdsmi.amdsmi_get_processor_handles()[int(gpu.selector)]
            used = int(amdsmi.amdsmi_get_gpu_memory_usage(handle, amdsmi.AmdSmiMemoryType.VRAM))
            processes = amdsmi.amdsmi_get_gpu_process_list(handle)
    except amdsmi.AmdSmiException:
        return None
    by_pid: dict[int, int | None] = {
        int(p["pid"]): int(p["memory_usage"]["vram_mem"]) for p in processes
    }
    return Usage(used_bytes=used, free_bytes=gpu.total_bytes - used, by_pid=by_pid)


@contextlib.contextmanager
def _amd_library(amdsmi: Any) -> Iterator[None]:
    amdsmi.amdsmi_init()
    try:
        yield
    finally:
        amdsmi.amdsmi_shut_down()


SIMULATED_USAGE = "LLMPERF_SIMULATED_USAGE"
"""Environment variable: a JSON file with `{uuid: {pid: bytes}}`, read anew each time.

Only for simulated GPUs.
"""


def _simulated_usage(gpu: Gpu) -> Usage:
    path = os.environ.get(SIMULATED_USAGE)
    content = Path(path).read_bytes() if path and Path(path).exists() else b"{}"
    by_pid = msgspec.json.decode(content, type=dict[str, dict[int, int]]).get(gpu.uuid, {})
    used = sum(by_pid.values())
    return Usage(used_bytes=used, free_bytes=gpu.total_bytes - used, by_pid=dict(by_pid))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
