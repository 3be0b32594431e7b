"""The device's measured bandwidth and matmul rate.

They are measured once per device and kept in the cache folder, unless something disturbed them.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from pytest_llmperf.cache_folder import cache_dir
from pytest_llmperf.core.trace import Ceilings
from pytest_llmperf.wire.commands import MeasureCeilings
from pytest_llmperf.workers.pool import OpenModel

DTYPES = ("float32", "float16", "bfloat16")
MAX_AGE_DAYS = 30
ATTEMPTS = 2
METHOD = 3
"""How they are measured: 2 by CPU time on a CPU, and not beside others; 3 with a read."""

_disturbed: dict[Path, Ceilings] = {}
"""What was measured beside others, by the file that it is not kept in: for this session."""

VOLATILE = frozenset({"sm_clock_mhz", "memory_clock_mhz", "temperature_c", "power_w"})
"""Facts of a device that change from one moment to the next."""


def ceilings_of(model: OpenModel) -> Ceilings | None:
    """Return the ceilings of the model's device.

    They come from the cache when they are younger than 30 days, else they are measured now: again,
    where others used the device. What stays disturbed holds for this session alone.
    """
    path = _path(model)
    known = _read(path) or _disturbed.get(path)
    if known is not None:
        return known
    measured = _measured(model)
    if measured is None:
        return None
    if measured.disturbed:
        _disturbed[path] = measured
    else:
        _write(path, measured)
    return measured


def forget(model: OpenModel) -> None:
    """Have the ceilings of the model's device measured again: a run went beyond them."""
    path = _path(model)
    _disturbed.pop(path, None)
    with suppress(OSError):
        path.unlink()


def _measured(model: OpenModel) -> Ceilings | None:
    """Return the first of some measurements that nothing disturbed, else the last."""
    measured = None
    for _ in range(ATTEMPTS):
        measured = model.call(MeasureCeilings(dtypes=DTYPES)).ceilings
        if measured is None or not measured.disturbed:
            break
    if measured is None:
        return None
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return msgspec.structs.replace(measured, measured_at=now)


def _path(model: OpenModel) -> Path:
    facts = {
        **model.opened.device_facts,
        "engine": model.plan.engine,
        "torch": model.opened.versions.get("torch", ""),
        "method": METHOD,
        "ranks": model.plan.ranks,
    }
    stable = {name: fact for name, fact in facts.items() if name not in VOLATILE}
    key = hashlib.sha256(msgspec.json.encode(stable, order="sorted")).hexdigest()[:16]
    return cache_dir() / "ceilings" / f"{model.plan.device}-{key}.json"


def _read(path: Path) -> Ceilings | None:
    # What cannot be decoded is a ValueError, and so is a time that cannot be read.
    try:
        cached = msgspec.json.decode(path.read_bytes(), type=Ceilings)
        return cached if _is_recent(cached) else None
    except (OSError, ValueError, RecursionError):
        return None


def _is_recent(cached: Ceilings) -> bool:
    """Whether ceilings were measured lately. Raises ValueError for a time that is none."""
    age = datetime.now(UTC) - datetime.fromisoformat(cached.measured_at)
    return 0 <= age.days < MAX_AGE_DAYS


def _write(path: Path, value: Ceilings) -> None:
    """Write what the next sessions read; where that fails, the next one measures again.

    `llmperf doctor` names a folder that cannot be written.
    """
    # Two processes may measure the same device at once.
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(msgspec.json.encode(value))
        temporary.replace(path)
