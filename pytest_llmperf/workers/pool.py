"""The models that are loaded now.

Equal plans share one; what the next test does not need is released before it loads its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from pytest_llmperf.core.effective import Promise
from pytest_llmperf.core.loaded import ModelFacts
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.devices.held import GIVE_WAY_S
from pytest_llmperf.devices.inventory import Gpu
from pytest_llmperf.devices.placement import needed_bytes
from pytest_llmperf.errors import LoadError, OutOfMemory, UsageError, WorkerError
from pytest_llmperf.strategies import parse, require_in_effect
from pytest_llmperf.wire.commands import Close, Command, Open, R
from pytest_llmperf.wire.messages import Heartbeat
from pytest_llmperf.workers.memory_check import (
    WorkerTree,
    more_than,
    not_returned,
    settle,
    used_bytes,
)
from pytest_llmperf.workers.place import Place
from pytest_llmperf.workers.this_host import ThisHost, occupies_device

_CLOSE_S = 30.0


class Channel(Protocol):
    """Whatever answers commands: a group of worker processes, or a host in this process."""

    def call(
        self,
        command: Command[R],
        *,
        deadline_s: float,
        on_beat: Callable[[Heartbeat], None] | None = None,
    ) -> R:
        """Return rank 0's result."""

    def close(self) -> object:
        """End it and give everything back."""

    @property
    def alive(self) -> bool:
        """Whether it can take another command."""

    @property
    def started(self) -> str:
        """How it was started: "forked", "in pytest's process", or "program" and why."""

    @property
    def fork_failure(self) -> str:
        """Why it could not be forked, though it was to be; or nothing."""


@dataclass(frozen=True, eq=False)
class OpenModel:
    """A loaded model: its plan, the channel to its worker, and what the worker said of it.

    `gpus` are the leased GPUs of this host that it is on, `started_s` the seconds from the start of
    its worker until it was loaded.
    """

    plan: LoadPlan
    channel: Channel
    opened: ModelFacts
    promises: tuple[Promise, ...]
    timeout_s: float
    place: Place
    gpus: tuple[Gpu, ...] = ()
    started_s: float = 0.0

    def call(self, command: Command[R]) -> R:
        """Send a command while no other session can measure on the model's device.

        GPUs, and what a cluster lends, are held for longer than that (`Place.hold`).
        """
        with self.alone():
            return self.channel.call(command, deadline_s=self.timeout_s)

    def alone(self) -> AbstractContextManager[None]:
        """Hold the device for one command, where it is not held anyway."""
        return self.place.alone(self.plan, self.gpus)


class Pool:
    """Opens load plans on the devices of `place`, in workers made by `start`, and closes them.

    `host` is where the test's own process is; it is `place` itself where that is this host.
    """

    def __init__(
        self,
        start: Callable[[LoadPlan], Channel],
        *,
        place: Place,
        host: ThisHost,
        timeout_s: float,
        progress: Callable[[str, str, float | None], None],
    ) -> None:
        self._start = start
        self._place = place
        self._host = host
        self._timeout_s = timeout_s
        self._progress = progress
        self._open: dict[LoadPlan, OpenModel] = {}
        self._failed: dict[LoadPlan, LoadError | UsageError] = {}
        self._adopted: set[LoadPlan] = set()
        self._unreturned: list[str] = []
        self._used_before: Mapping[str, int] = {}
        host.call_before_release(lambda: self._leave(host))
        place.call_before_release(lambda: self._leave(place))

    def open(self, plan: LoadPlan) -> OpenModel:
        """Return the loaded model of `plan`; where it is not loaded, make room and load it.

        Raises:
            LoadError, UsageError, OutOfMemory, WorkerError: it cannot be loaded.
            NotInEffect: it loaded as something else than its strategy promised.
            DeviceBusy, InvalidRun: its GPUs could not be leased, or are used by others.
            MemoryNotReturned: what was closed to make room did not give its memory back.

        """
        if plan in self._failed:
            raise self._failed[plan]
        known = self._open.get(plan)
        if known is not None and known.channel.alive:
            return known
        gpus = self._hold(plan)
        self._make_room(plan)
        return self._load(plan, gpus)

    def adopt(self, plan: LoadPlan, channel: Channel) -> None:
        """Take in a model that the test itself holds; nothing was promised of it."""
        gpus = self._host.claim(plan)
        facts = channel.call(Open(plan=plan), deadline_s=self._timeout_s).facts
        self._open[plan] = OpenModel(
            plan,
            channel,
            facts,
            promises=(),
            timeout_s=self._timeout_s,
            place=self._host,
            gpus=gpus,
        )
        self._adopted.add(plan)

    def renew(self, plan: LoadPlan) -> bool:
        """Close a model, so that its next use loads it in a fresh worker.

        Returns False for one that the test itself holds, which stays.
        """
        if plan in self._open and plan not in self._adopted:
            self._close(plan)
        return plan not in self._adopted

    def is_adopted(self, plan: LoadPlan) -> bool:
        """Whether the test itself holds the model, so that no other process can load it."""
        return plan in self._adopted

    def keep_only(self, plans: Iterable[LoadPlan]) -> None:
        """Close every model that is not among `plans`, or whose worker is gone.

        Raises MemoryNotReturned, after all are closed, when the memory of one is still in use.
        """
        staying = set(plans)
        # The order is reversed so that a model taken in twice is put back as it was at first.
        for plan, model in reversed(list(self._open.items())):
            if plan not in staying or not model.channel.alive:
                self._close(plan)
        self._require_returned()

    def fits_together(self, *plans: LoadPlan) -> bool:
        """Whether the predicted weights of all plans fit at once.

        True where that cannot be predicted.
        """
        return self._place.fits(plans)

    def undisturbed(self, plans: Sequence[LoadPlan]) -> AbstractContextManager[None]:
        """Hold the CPU for a whole measurement, where all of its models are on the CPU.

        Other sessions wait once for it, not once a command. It is never held around models on GPUs:
        who holds the CPU waits for no GPU.
        """
        if any(plan.device != "cpu" for plan in plans):
            return nullcontext()
        occupying = [plan for plan in plans if occupies_device(plan)]
        return self._place.alone(occupying[0], ()) if occupying else nullcontext()

    def release_idle(self) -> None:
        """Give back the devices that no model is on, or that others have waited for long enough.

        Raises MemoryNotReturned for what is unloaded for their sake.
        """
        for place in dict.fromkeys((self._host, self._place)):
            if not self._lent(place) or place.wanted_since_s() >= GIVE_WAY_S:
                place.release()

    def close(self) -> None:
        """Close every model."""
        self.keep_only(())

    def _hold(self, plan: LoadPlan) -> tuple[Gpu, ...]:
        """Hold devices to load on, and note what is in use there before our first model."""
        gpus = self._place.hold(plan)
        if gpus and not self._lent(self._host):
            self._used_before = used_bytes(self._host.held)
        return gpus

    def _load(self, plan: LoadPlan, gpus: tuple[Gpu, ...]) -> OpenModel:
        self._show_load(plan)
        began_s = time.monotonic()
        channel = self._start(plan)
        try:
            opened = self._opened(plan, channel, gpus)
            promises = parse(plan.strategy).promises(plan)
            require_in_effect(opened.effective, promises, when="loaded")
        except (LoadError, UsageError) as error:
            self._failed[plan] = error
            channel.close()
            raise
        except BaseException:
            channel.close()
            raise
        started_s = time.monotonic() - began_s
        model = OpenModel(
            plan, channel, opened, promises, self._timeout_s, self._place, gpus, started_s
        )
        self._open[plan] = model
        return model

    def _opened(self, plan: LoadPlan, channel: Channel, gpus: tuple[Gpu, ...]) -> ModelFacts:
        """Return what the worker said of its model, with what the place knows of its devices."""
        with self._place.alone(plan, gpus):
            opened = channel.call(
                Open(plan=plan),
                deadline_s=self._timeout_s,
                on_beat=lambda _beat: self._show_load(plan),
            ).facts
        started = {"worker_start": channel.started}
        facts = {**self._place.facts(plan), **started, **opened.device_facts}
        return msgspec.structs.replace(opened, device_facts=facts)

    def _show_load(self, plan: LoadPlan) -> None:
        self._progress("loading", f"{plan.model.name} {plan.strategy}", None)

    def _make_room(self, plan: LoadPlan) -> None:
        needed = needed_bytes(plan)
        if needed is None:
            return
        if needed > self._place.room_bytes(plan, self._open):
            self.keep_only(())
        free = self._place.room_bytes(plan, self._open)
        if needed > free:
            raise _does_not_fit(plan, needed, free)

    def _lent(self, place: Place) -> list[LoadPlan]:
        """Return the loaded plans that are on devices which a place holds for them."""
        return [
            plan for plan, model in self._open.items() if model.place is place and place.lends(plan)
        ]

    def _leave(self, place: Place) -> None:
        """Close the models on devices that a place is about to give back."""
        leaving = set(self._lent(place))
        self.keep_only([plan for plan in self._open if plan not in leaving])

    def _require_returned(self) -> None:
        """Raise MemoryNotReturned for what closed workers still hold.

        Whether each device is as empty as before is seen when the last model has left.
        """
        if self._used_before and not self._lent(self._host):
            before, self._used_before = self._used_before, {}
            gpus = self._host.held
            if not self._unreturned:
                self._unreturned = settle(lambda: more_than(before, gpus))
        unreturned, self._unreturned = self._unreturned, []
        if unreturned:
            raise not_returned(unreturned)

    def _close(self, plan: LoadPlan) -> None:
        model = self._open.pop(plan)
        tree = WorkerTree.of(getattr(model.channel, "pids", ()))
        try:
            _ask_to_close(model.channel)
        finally:
            model.channel.close()
            texts = settle(lambda: tree.left(model.gpus))
            self._unreturned += [f"{plan.model.name} {plan.strategy}: {text}" for text in texts]
            tree.kill()


def _ask_to_close(channel: Channel) -> None:
    with suppress(WorkerError):  # it is being ended anyway
        if channel.alive:
            channel.call(Close(), deadline_s=_CLOSE_S)


def _does_not_fit(plan: LoadPlan, needed_bytes: int, free_bytes: int) -> OutOfMemory:
    each_rank = "" if plan.ranks == 1 else " on each rank"
    return OutOfMemory(
        f"{plan.model.name} as {plan.strategy} needs {needed_bytes / 1e9:.1f} GB for its weights "
        f"alone{each_rank}; {plan.device} has {free_bytes / 1e9:.1f} GB free. Predicted, nothing "
        "was loaded. A 16-bit strategy halves fp32; 'llmperf doctor' lists the devices.",
    )


def worker_logs(root: Path) -> Path:
    """Return the folder of the workers' logs of a project."""
    return root / ".llmperf" / "logs"
