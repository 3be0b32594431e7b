"""What a server runs on, for the environment of a record. Imports no torch."""

from __future__ import annotations

import os
from typing import Any

from pytest_llmperf.instruments.nvml import Nvml, Unreadable

ELSEWHERE = "elsewhere"
"""Device of a server that ran already.

What it runs on is not known, and no run of ours on a device is compared with it.
"""


def device_facts(device: str, *, started: bool) -> dict[str, Any]:
    """Return the device's kind and what the driver says of it.

    The driver is asked for the first GPU that this process may use.
    """
    if not started:
        return {"device": ELSEWHERE}
    if device.partition(":")[0] != "cuda":
        return {"device": "cpu"}
    gpu = _first_gpu(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    facts: dict[str, Any] = {"device": "cuda"}
    if not isinstance(gpu, Unreadable):
        for name, value in gpu.facts().items():
            facts[name if name == "driver" else f"device_{name}"] = value
    return facts


def device_name(device: str, facts: dict[str, Any]) -> str:
    """Return the device as a reader knows it."""
    if facts.get("device_name"):
        return str(facts["device_name"])
    names = {"cpu": "CPU", ELSEWHERE: "a server elsewhere"}
    return names.get(str(facts["device"]), device)


def _first_gpu(visible: str) -> Nvml | Unreadable:
    first = visible.split(",", maxsplit=1)[0].strip()
    if first.startswith(("GPU-", "MIG-")):
        return Nvml.of(first)
    return Nvml.at(int(first) if first.isdigit() else 0)
