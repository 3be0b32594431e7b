"""AMD's GPUs through amdsmi, which comes with ROCm. No context is made."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import Any

from pytest_llmperf.devices.inventory import Gpu, Physical, Usage


def listed() -> tuple[list[Physical], str]:
    """Return the GPUs that the library lists, and why there are none where there are none."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints when its library is missing
            import amdsmi  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415
    except (ImportError, KeyError, OSError):  # KeyError: ROCm's library is not there
        return [], "AMD: not seen (Python package amdsmi with ROCm's library is not installed)"
    try:
        with _library(amdsmi):
            handles = amdsmi.amdsmi_get_processor_handles()
            gpus = [_physical(amdsmi, index, handle) for index, handle in enumerate(handles)]
    except amdsmi.AmdSmiException as error:
        return [], f"AMD: {error}"
    return gpus, "AMD: lists none"


def usage(gpu: Gpu) -> Usage | None:
    """Return the memory of a device now; None where the library does not say, or is not here."""
    amdsmi = sys.modules.get("amdsmi")
    if amdsmi is None:
        return None
    try:
        with _library(amdsmi):
            handle = amdsmi.amdsmi_get_processor_handles()[int(gpu.selector)]
            vram = amdsmi.AmdSmiMemoryType.VRAM
            used = int(amdsmi.amdsmi_get_gpu_memory_usage(handle, vram))
            by_pid = _vram_by_pid(amdsmi.amdsmi_get_gpu_process_list(handle))
    except amdsmi.AmdSmiException:
        return None
    return Usage(used_bytes=used, free_bytes=gpu.total_bytes - used, by_pid=by_pid)


def _vram_by_pid(processes: Any) -> dict[int, int | None]:
    return {int(row["pid"]): int(row["memory_usage"]["vram_mem"]) for row in processes}


def _physical(amdsmi: Any, index: int, handle: Any) -> Physical:
    uuid = f"GPU-{amdsmi.amdsmi_get_gpu_device_uuid(handle)}"
    total = amdsmi.amdsmi_get_gpu_memory_total(handle, amdsmi.AmdSmiMemoryType.VRAM)
    gpu = Gpu(
        index=0,
        uuid=uuid,
        name=str(amdsmi.amdsmi_get_gpu_asic_info(handle)["market_name"]),
        total_bytes=int(total),
        vendor="amd",
        selector=str(index),
    )
    return Physical(uuid=uuid, parts=(gpu,))


@contextlib.contextmanager
def _library(amdsmi: Any) -> Iterator[None]:
    amdsmi.amdsmi_init()
    try:
        yield
    finally:
        amdsmi.amdsmi_shut_down()
