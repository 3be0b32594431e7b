"""What a server runs on, for the environment of a record. No torch."""

from __future__ import annotations

import os
from typing import Any

from pytest_llmperf.instruments.nvml import Nvml, Unreadable

ELSEWHERE = "elsewhere"
"""Device of a server that ran already: what it runs on is not known, and no run of ours on a device is compared with it."""


def device_facts(device: str, *, started: bool) -> dict[str, Any]:
    """The device's kind and, of a GPU, what the driver says of the first that this process may use."""
    if not started:
        return {"device": ELSEWHERE}
    if device.partition(":")[0] != "cuda":
        return {"device": "cpu"}
    gpu = _first_gpu(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    facts = {} if isinstance(gpu, Unreadable) else gpu.facts()
    return {"device": "cuda"} | {
        name if name == "driver" else f"device_{name}": value for name, value in facts.items()
    }


def device_name(device: str, facts: dict[str, Any]) -> str:
    """As a reader knows it."""
    return str(
        facts.get("device_name")
        or {"cpu": "CPU", "elsewhere": "a server elsewhere"}.get(str(facts["device"]), device)
    )


def _first_gpu(visible: str) -> Nvml | Unreadable:
    first = visible.split(",", maxsplit=1)[0].strip()
    if first.startswith(("GPU-", "MIG-")):
        return Nvml.of(first)
    return Nvml.at(int(first) if first.isdigit() else 0)
