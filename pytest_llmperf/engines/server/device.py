"""What a server runs on, for the environment of a record. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pytest_llmperf.instruments.nvml import Nvml, Unreadable

ELSEWHERE = "elsewhere"
"""Device of a server that ran already.

What it runs on is not known, and no run of ours on a device is compared with it.
"""


_NAMES = {"cpu": "CPU", ELSEWHERE: "a server elsewhere"}


def device_facts(device: str, *, started: bool) -> dict[str, Any]:
    """Return the device's kind and what the driver says of it.

    The driver is asked for the first GPU that this process may use.
    """
    if not started:
        return {"device": ELSEWHERE}
    if device.partition(":")[0] != "cuda":
        return {"device": "cpu"}
    return {"device": "cuda", **_gpu_facts()}


def _gpu_facts() -> dict[str, Any]:
    """Return what the driver says of the first GPU; nothing where it says nothing."""
    gpu = _first_gpu(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    return {} if isinstance(gpu, Unreadable) else _prefixed(gpu.facts())


def _prefixed(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {_fact_name(name): value for name, value in facts.items()}


def _fact_name(name: str) -> str:
    return name if name == "driver" else f"device_{name}"


def device_name(device: str, facts: dict[str, Any]) -> str:
    """Return the device as a reader knows it."""
    if facts.get("device_name"):
        return str(facts["device_name"])
    return _NAMES.get(str(facts["device"]), device)


def _first_gpu(visible: str) -> Nvml | Unreadable:
    first = _first_entry(visible)
    if first.startswith(("GPU-", "MIG-")):
        return Nvml.of(first)
    return Nvml.at(_index(first))


def _index(entry: str) -> int:
    return int(entry) if entry.isdigit() else 0


def _first_entry(visible: str) -> str:
    return visible.split(",", maxsplit=1)[0].strip()
