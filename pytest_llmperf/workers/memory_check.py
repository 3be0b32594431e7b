"""Memory that a worker must give back when it is gone.

And what a test's own process keeps of a model it made.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
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
"""How much more a device may hold than before it was used.

The driver's own bookkeeping moves by tens of MB.
"""

KEPT_SHARE = 0.5
"""A test's own process has kept a model when it grew by more than this share of its weights."""

SMALLEST_KEPT_BYTES = 16 * 2**20
"""Smaller models are not looked for: a process's resident memory moves by some MB on its own."""

_POLL_S = 0.05


@dataclass(frozen=True)
class WorkerTree:
    """The processes of a worker and all that it started, as they were while it still ran."""

    processes: tuple[psutil.Process, ...]

    @classmethod
    def of(cls, pids: Iterable[int]) -> WorkerTree:
        """Return the trees below these processes; those that are gone are left out."""
        by_pid: dict[int, psutil.Process] = {}
        for pid in pids:
            with contextlib.suppress(psutil.Error):
                root = psutil.Process(pid)
                tree = (root, *root.children(recursive=True))
                by_pid.update((process.pid, process) for process in tree)
        return cls(tuple(by_pid.values()))

    def left(self, gpus: Sequence[Gpu]) -> list[str]:
        """Return what its processes still have, in words with bytes.

        That is resident memory, and memory on the devices.
        """
        resident = [_resident_text(process) for process in self.processes]
        on_devices = chain.from_iterable(self._left_on(gpu) for gpu in gpus)
        return [*filter(None, resident), *on_devices]

    def _left_on(self, gpu: Gpu) -> list[str]:
        pids = {process.pid for process in self.processes}
        return [
            f"process {pid}: {_gb(used)} on {gpu.torch_name}"
            for pid, used in _bytes_by_pid(gpu).items()
            if pid in pids and used != 0
        ]

    def kill(self) -> None:
        """End what is left of it."""
        for process in self.processes:
            with contextlib.suppress(psutil.Error):
                process.kill()


def used_bytes(gpus: Iterable[Gpu]) -> dict[str, int]:
    """Return the memory in use on each device, by UUID, where the driver says it."""
    in_use = {gpu.uuid: usage(gpu) for gpu in gpus}
    return {uuid: memory.used_bytes for uuid, memory in in_use.items() if memory is not None}


def more_than(before: Mapping[str, int], gpus: Sequence[Gpu]) -> list[str]:
    """Return the devices that hold more than `before`, in words.

    Those that others use too, this process among them, are left out.
    """
    if _uses_cuda():
        return []
    after = used_bytes(gpus)
    texts = []
    for gpu in gpus:
        used = after.get(gpu.uuid, 0)
        growth = used - before.get(gpu.uuid, used)
        if growth > TOLERANCE_BYTES and not foreign_processes(gpu):
            texts.append(
                f"{gpu.torch_name}: {_gb(growth)} more than before it was used ({_gb(used)} in use)"
            )
    return texts


def not_returned(left: Iterable[str]) -> MemoryNotReturned:
    """Return the error for what is left when the limit has passed."""
    return MemoryNotReturned(
        f"memory was not given back within {RETURN_LIMIT_S:g} s of the end: {'; '.join(left)}."
    )


def settle(left: Callable[[], list[str]], limit_s: float | None = None) -> list[str]:
    """Wait until nothing is left, and return what is after the limit (`RETURN_LIMIT_S`)."""
    end_s = time.monotonic() + (RETURN_LIMIT_S if limit_s is None else limit_s)
    while (texts := left()) and time.monotonic() < end_s:
        time.sleep(_POLL_S)
    return texts


@dataclass
class OwnProcess:
    """What the test's own process held before a test, and the models that the test lets measure."""

    gpus: Callable[[], Sequence[Gpu]]
    before: dict[str, int] = field(default_factory=dict)
    models: list[tuple[weakref.ref[Any], str, int]] = field(default_factory=list)
    known: frozenset[int] = frozenset()

    def begin(self, module: object = None) -> None:
        """Note what is held as a test of this module starts.

        What the module holds now, the test has not made.
        """
        self.before, self.models = self._bytes_by_place(), []
        self.known = frozenset(map(id, _reached(module))) if module is not None else frozenset()

    def watch(self, model: object, name: str, weights_bytes: int) -> None:
        """Note a model that the test holds itself and measures."""
        if id(model) in self.known or weights_bytes < SMALLEST_KEPT_BYTES:
            return
        # A few objects cannot be referred to weakly; nothing is known of them.
        with contextlib.suppress(TypeError):
            self.models.append((weakref.ref(model), name, weights_bytes))

    def kept(self, allowed: Callable[[object], bool]) -> list[str]:
        """Return the models that are still referred to after the test, with this process's growth.

        Those that are `allowed` are left out.
        """
        watched, self.models = self.models, []
        if not watched:
            return []
        gc.collect()
        growth = self._growth_by_place()
        texts = []
        for reference, name, weights_bytes in watched:
            model = reference()
            if model is not None and not allowed(model):
                texts += _kept_texts(name, weights_bytes, growth)
        return texts

    def _growth_by_place(self) -> dict[str, int]:
        after = self._bytes_by_place()
        return {place: used - self.before.get(place, 0) for place, used in after.items()}

    def _bytes_by_place(self) -> dict[str, int]:
        """Return the memory of this process, by words for where it is."""
        by_place = {"of resident memory": int(psutil.Process().memory_info().rss)}
        for gpu in self.gpus():
            used = _bytes_by_pid(gpu).get(os.getpid())
            if used is not None:
                by_place[f"on {gpu.torch_name}"] = used
        return by_place


def _kept_texts(name: str, weights_bytes: int, growth: Mapping[str, int]) -> list[str]:
    """Return where this process grew by enough to hold the model's weights, in words."""
    return [
        f"{name} ({_gb(weights_bytes)} of weights) is still referred to after the test, "
        f"and this process grew by {_gb(grown_bytes)} {place}"
        for place, grown_bytes in growth.items()
        if grown_bytes > KEPT_SHARE * weights_bytes > 0
    ]


def held_by_fixture(item: pytest.Item, model: object) -> bool:
    """Whether a fixture that outlives the test gave it the model.

    The test cannot let go of it then.
    """
    # pytest has no public way from a test to the values of its fixtures.
    info = getattr(item, "_fixtureinfo", None)
    for definitions in getattr(info, "name2fixturedefs", {}).values():
        for definition in definitions:
            cached = getattr(definition, "cached_result", None)
            if definition.scope != "function" and cached is not None and reaches(cached[0], model):
                return True
    return False


def reaches(value: object, model: object) -> bool:
    """Whether `model` is `value`, or inside it, at most two steps deep.

    Inside is an element, a mapping's value or an attribute.
    """
    return any(reached is model for reached in _reached(value))


def _reached(value: object, depth: int = 2) -> Iterator[object]:
    yield value
    if depth > 0 and not isinstance(value, str | bytes | int | float | None):
        for member in _members(value):
            yield from _reached(member, depth - 1)


def _members(value: object) -> Iterable[object]:
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if isinstance(value, dict):
        return list(value.values())
    return list(vars(value).values()) if hasattr(value, "__dict__") else ()


def _bytes_by_pid(gpu: Gpu) -> Mapping[int, int | None]:
    in_use = usage(gpu)
    return {} if in_use is None else in_use.by_pid


def _resident_text(process: psutil.Process) -> str:
    """Return the memory of a process in words; an empty text for one that has ended."""
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
    if size_bytes is None:
        return "an amount that the driver hides"
    return f"{size_bytes / 1e9:.2f} GB ({size_bytes} bytes)"
