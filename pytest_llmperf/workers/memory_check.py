"""Memory that a worker must give back when it is gone, and what a test's own process keeps of a model it made."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest

from pytest_llmperf.devices.drivers import foreign_processes, usage
from pytest_llmperf.devices.inventory import Gpu
from pytest_llmperf.errors import MemoryNotReturned

RETURN_LIMIT_S = 10.0
"""How long after its end a worker's memory may still be in use.

The driver frees a dead process's memory in the background.
"""

TOLERANCE_BYTES = 128 * 2**20
"""What a device may hold more than before it was used: the driver's own bookkeeping moves by tens of MB."""

KEPT_SHARE = 0.5
"""A test's own process has kept a model when it grew by more than this share of the model's weights."""

SMALLEST_KEPT_BYTES = 16 * 2**20
"""Smaller models are not looked for: a process's resident memory moves by some MB whatever it does.
"""

_POLL_S = 0.05


@dataclass(frozen=True)
class WorkerTree:
    """The processes of a worker and all that it started, as they were while it still ran."""

    processes: tuple[psutil.Process, ...]

    @classmethod
    def of(cls, pids: Iterable[int]) -> WorkerTree:
        """The trees below these processes; those that are gone are left out."""
        found: dict[int, psutil.Process] = {}
        for pid in pids:
            with contextlib.suppress(psutil.Error):
                root = psutil.Process(pid)
                found |= {
                    process.pid: process for process in (root, *root.children(recursive=True))
                }
        return cls(tuple(found.values()))

    def left(self, gpus: Sequence[Gpu]) -> list[str]:
        """What its processes still have, in words with bytes: resident memory, and memory on the devices."""
        held = [text for process in self.processes if (text := _resident(process))]
        ids = {process.pid for process in self.processes}
        for gpu in gpus:
            seen = usage(gpu)
            by_pid = {} if seen is None else seen.by_pid
            held += [
                f"process {pid}: {_gb(used)} on {gpu.torch_name}"
                for pid, used in by_pid.items()
                if pid in ids and used != 0
            ]
        return held

    def kill(self) -> None:
        """End what is left of it."""
        for process in self.processes:
            with contextlib.suppress(psutil.Error):
                process.kill()


def used_bytes(gpus: Iterable[Gpu]) -> dict[str, int]:
    """Memory in use on each device, by UUID, where the driver says it."""
    seen = {gpu.uuid: usage(gpu) for gpu in gpus}
    return {uuid: each.used_bytes for uuid, each in seen.items() if each is not None}


def more_than(before: Mapping[str, int], gpus: Sequence[Gpu]) -> list[str]:
    """Devices that hold more than `before`, in words.

    Not those that others use too, this process among them.
    """
    if _uses_cuda():
        return []
    after = used_bytes(gpus)
    grown = [(g, after.get(g.uuid, 0) - before[g.uuid]) for g in gpus if g.uuid in before]
    return [
        f"{gpu.torch_name}: {_gb(more)} more than before it was used ({_gb(after[gpu.uuid])} in use)"
        for gpu, more in grown
        if more > TOLERANCE_BYTES and not foreign_processes(gpu)
    ]


def not_returned(left: Iterable[str]) -> MemoryNotReturned:
    """The error for what is left when the limit has passed."""
    return MemoryNotReturned(
        f"memory was not given back within {RETURN_LIMIT_S:g} s of the end: {'; '.join(left)}."
    )


def settle(left: Callable[[], list[str]], limit_s: float | None = None) -> list[str]:
    """What is still left when nothing is, or after the limit (`RETURN_LIMIT_S`)."""
    end_s = time.monotonic() + (RETURN_LIMIT_S if limit_s is None else limit_s)
    while (found := left()) and time.monotonic() < end_s:
        time.sleep(_POLL_S)
    return found


@dataclass
class OwnProcess:
    """What the test's own process held before a test, and the models that the test handed over to be measured."""

    gpus: Callable[[], Sequence[Gpu]]
    before: dict[str, int] = field(default_factory=dict)
    models: list[tuple[weakref.ref[Any], str, int]] = field(default_factory=list)
    known: frozenset[int] = frozenset()

    def begin(self, module: object = None) -> None:
        """A test of this module starts. What the module holds now, the test has not made."""
        self.before, self.models = self._now(), []
        self.known = frozenset(map(id, _reached(module))) if module is not None else frozenset()

    def watch(self, model: object, name: str, weights_bytes: int) -> None:
        """The test measures a model that it holds itself."""
        if id(model) in self.known or weights_bytes < SMALLEST_KEPT_BYTES:
            return
        # A few objects cannot be referred to weakly; nothing is known of them.
        with contextlib.suppress(TypeError):
            self.models.append((weakref.ref(model), name, weights_bytes))

    def kept(self, allowed: Callable[[object], bool]) -> list[str]:
        """Models that the test is over and not let go of, with what this process grew by.

        Those `allowed` left out.
        """
        watched, self.models = self.models, []
        if not watched:
            return []
        gc.collect()
        grown = {where: now - self.before.get(where, 0) for where, now in self._now().items()}
        return [
            f"{name} ({_gb(weights)} of weights) is still referred to after the test, "
            f"and this process grew by {_gb(grown[where])} {where}"
            for ref, name, weights in watched
            if (model := ref()) is not None and not allowed(model)
            for where in grown
            if grown[where] > KEPT_SHARE * weights > 0
        ]

    def _now(self) -> dict[str, int]:
        held = {"of resident memory": int(psutil.Process().memory_info().rss)}
        for gpu in self.gpus():
            seen = usage(gpu)
            if seen is not None and (used := seen.by_pid.get(os.getpid())) is not None:
                held[f"on {gpu.torch_name}"] = used
        return held


def held_by_fixture(item: pytest.Item, model: object) -> bool:
    """Whether a fixture that outlives the test gave it the model, so that the test cannot let go of it."""
    # pytest has no public way from a test to the values of its fixtures.
    info = getattr(item, "_fixtureinfo", None)
    for definitions in getattr(info, "name2fixturedefs", {}).values():
        for definition in definitions:
            cached = getattr(definition, "cached_result", None)
            if definition.scope != "function" and cached is not None and reaches(cached[0], model):
                return True
    return False


def reaches(value: object, wanted: object) -> bool:
    """Whether `wanted` is `value`, or inside it: an element, a mapping's value or an attribute, at most two steps deep."""
    return any(each is wanted for each in _reached(value))


def _reached(value: object, depth: int = 2) -> Iterator[object]:
    yield value
    if depth > 0 and not isinstance(value, str | bytes | int | float | None):
        for each in _inside(value):
            yield from _reached(each, depth - 1)


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if isinstance(value, dict):
        return list(value.values())
    return list(vars(value).values()) if hasattr(value, "__dict__") else ()


def _resident(process: psutil.Process) -> str:
    """Empty for a process that has ended."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE or not process.is_running():
            return ""
        return f"process {process.pid}: {_gb(process.memory_info().rss)} of resident memory"
    except psutil.Error:
        return ""


def _uses_cuda() -> bool:
    """Whether this process has a CUDA context. torch is looked up, never imported."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def _gb(size_bytes: int | None) -> str:
    return (
        "an amount that the driver hides"
        if size_bytes is None
        else f"{size_bytes / 1e9:.2f} GB ({size_bytes} bytes)"
    )
