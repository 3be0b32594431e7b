"""The device's measured copy bandwidth and matmul rate.

They are measured once per device and kept in the cache folder.
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
VOLATILE = frozenset({"sm_clock_mhz", "memory_clock_mhz", "temperature_c", "power_w"})
"""Facts of a device that change from one moment to the next."""


def ceilings_of(model: OpenModel) -> Ceilings | None:
    """Return the ceilings of the model's device.

    They come from the cache when they are younger than 30 days, else they are measured now.
    """
    path = _path(model)
    cached = _read(path)
    if cached is not None:
        return cached
    answer = model.call(MeasureCeilings(dtypes=DTYPES))
    if answer.ceilings is None:
        return None
    measured = msgspec.structs.replace(
        answer.ceilings, measured_at=datetime.now(UTC).isoformat(timespec="seconds")
    )
    _write(path, measured)
    return measured


def _path(model: OpenModel) -> Path:
    facts = {
        **model.opened.device_facts,
        "engine": model.plan.engine,
        "torch": model.opened.versions.get("torch", ""),
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
