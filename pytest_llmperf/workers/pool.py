"""The models that are loaded now.

Equal plans share one; what the next test does not need is released before it loads its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from pytest_llmperf import engines
from pytest_llmperf.core.effective import Promise
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.devices import placement
from pytest_llmperf.devices.held import Gpus
from pytest_llmperf.devices.inventory import Gpu
from pytest_llmperf.devices.leases import exclusive
from pytest_llmperf.errors import LoadError, OutOfMemory, UsageError, WorkerError
from pytest_llmperf.strategies import parse, require_in_effect
from pytest_llmperf.wire.messages import Close, Command, Heartbeat, Open, Opened, Result
from pytest_llmperf.workers.memory_check import (
    WorkerTree,
    more_than,
    not_returned,
    settle,
    used_bytes,
)

if TYPE_CHECKING:
    from pytest_llmperf.cluster.cluster import Cluster


class Channel(Protocol):
    """Whatever answers commands: a group of worker processes, or a host in this process."""

    def call(
        self,
        command: Command,
        *,
        deadline_s: float,
        on_beat: Callable[[Heartbeat], None] | None = None,
    ) -> Result:
        """Rank 0's result."""

    def close(self) -> object:
        """End it and give everything back."""

    @property
    def alive(self) -> bool:
        """Whether it can take another command."""


@dataclass(frozen=True, eq=False)
class OpenModel:
    """A loaded model: its plan, the channel to its worker, what the worker said of it, and the leased GPUs it is on."""

    plan: LoadPlan
    channel: Channel
    opened: Opened
    promises: tuple[Promise, ...]
    timeout_s: float
    wait_s: float
    gpus: tuple[Gpu, ...] = ()
    elsewhere: bool = False

    def call(self, command: Command) -> Result:
        """Send a command while holding the device, so that no other session measures on it at the same time.

        GPUs, and what a cluster lends, are held for longer than that (`Gpus`, `Cluster`).
        """
        with self.alone():
            return self.channel.call(command, deadline_s=self.timeout_s)

    def alone(self) -> AbstractContextManager[None]:
        """Hold the device for one command, where it is not held anyway."""
        return nullcontext() if self.elsewhere else alone(self.plan, self.gpus, self.wait_s)


class Pool:
    """Opens load plans in workers made by `start`, and closes them."""

    def __init__(
        self,
        start: Callable[[LoadPlan], Channel],
        *,
        timeout_s: float,
        progress: Callable[[str, str, float | None], None],
        wait_s: float | None = None,
        gpus: Gpus | None = None,
        cluster: Cluster | None = None,
    ) -> None:
        self._start = start
        self._timeout_s = timeout_s
        self._wait_s = timeout_s if wait_s is None else wait_s
        self._progress = progress
        self._open: dict[LoadPlan, OpenModel] = {}
        self._failed: dict[LoadPlan, LoadError | UsageError] = {}
        self._adopted: set[LoadPlan] = set()
        self._gpus = gpus
        self._left: list[str] = []
        self._used_before: Mapping[str, int] = {}
        if gpus is not None:
            gpus.before_release = self._leave_gpus
        self._cluster = cluster
        if cluster is not None:
            cluster.before_release = self._leave_cluster

    def open(self, plan: LoadPlan) -> OpenModel:
        """The loaded model of `plan`; loads it when it is not, after making room.

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
        gpus = self._lease(plan)
        self._make_room(plan, gpus)
        return self._load(plan, gpus)

    def adopt(self, plan: LoadPlan, channel: Channel) -> None:
        """Take in a model that the test itself holds; nothing was promised of it."""
        gpus: tuple[Gpu, ...] = ()
        if self._gpus is not None and plan.device.startswith("cuda"):
            self._gpus.claim(plan.device)
            gpus = self._gpus.held[:1]
        opened = channel.call(Open(plan=plan), deadline_s=self._timeout_s)
        assert isinstance(opened, Opened)  # noqa: S101 - narrows the union
        self._open[plan] = OpenModel(plan, channel, opened, (), self._timeout_s, self._wait_s, gpus)
        self._adopted.add(plan)

    def renew(self, plan: LoadPlan) -> bool:
        """Close a model, so that its next use loads it in a fresh worker.

        One that the test itself holds stays: False.
        """
        if plan in self._open and plan not in self._adopted:
            self._close(plan)
        return plan not in self._adopted

    def keep_only(self, plans: Iterable[LoadPlan]) -> None:
        """Close every model that is not among `plans`, or whose worker is gone.

        Raises MemoryNotReturned, after all are closed, when the memory of one is still in use.
        """
        wanted = set(plans)
        # A model taken in twice is put back as it was first found.
        for plan, model in reversed(list(self._open.items())):
            if plan not in wanted or not model.channel.alive:
                self._close(plan)
        self._require_returned()

    def fits_together(self, *plans: LoadPlan) -> bool:
        """Whether the predicted weights of all plans fit at once.

        True where that cannot be predicted.
        """
        if self._cluster is not None:
            return self._cluster.fits(plans)
        held = self._gpus.held if self._gpus is not None else ()
        needed = sum(placement.needed_bytes(plan) or 0 for plan in plans)
        return needed <= placement.total_bytes(plans[0].device, held) * placement.USABLE_SHARE

    def undisturbed(self, plans: Sequence[LoadPlan]) -> AbstractContextManager[None]:
        """Hold the CPU from the first to the last command of a measurement, where its models are all there.

        Other sessions wait once for it, not once a command. Never around models on GPUs: who holds the CPU waits for none.
        """
        if self._cluster is not None or any(plan.device != "cpu" for plan in plans):
            return nullcontext()
        busy = [plan for plan in plans if _occupies(plan)]
        return alone(busy[0], (), self._wait_s) if busy else nullcontext()

    @property
    def loaded(self) -> bool:
        """Whether a model is loaded, here or on a cluster."""
        return bool(self._open)

    @property
    def on_gpus(self) -> bool:
        """Whether a model is loaded on leased GPUs."""
        return any(model.gpus for model in self._open.values())

    def close(self) -> None:
        """Close every model."""
        self.keep_only(())

    def _lease(self, plan: LoadPlan) -> tuple[Gpu, ...]:
        """The GPUs to load on, held.

        With what they have in use before the first of our models is on them.
        """
        if self._cluster is not None:
            self._cluster.hold(plan)
            return ()
        if self._gpus is None or plan.device != "cuda":
            return ()
        gpus = self._gpus.ensure(plan.ranks)
        if not self.on_gpus:
            self._used_before = used_bytes(self._gpus.held)
        return gpus

    def _load(self, plan: LoadPlan, gpus: tuple[Gpu, ...]) -> OpenModel:
        self._show_load(plan)
        channel = self._start(plan)
        elsewhere = self._cluster is not None
        try:
            with nullcontext() if elsewhere else alone(plan, gpus, self._wait_s):
                opened = channel.call(
                    Open(plan=plan),
                    deadline_s=self._timeout_s,
                    on_beat=lambda _beat: self._show_load(plan),
                )
            assert isinstance(opened, Opened)  # noqa: S101 - narrows the union
            facts = self._host_facts(plan) | opened.device_facts | _lease_facts(gpus)
            opened = msgspec.structs.replace(opened, device_facts=facts)
            promises = parse(plan.strategy).promises(plan)
            require_in_effect(opened.effective, promises, when="loaded")
        except BaseException as error:
            channel.close()
            if isinstance(error, LoadError | UsageError):
                self._failed[plan] = error
            raise
        self._open[plan] = OpenModel(
            plan, channel, opened, promises, self._timeout_s, self._wait_s, gpus, elsewhere
        )
        return self._open[plan]

    def _show_load(self, plan: LoadPlan) -> None:
        self._progress("loading", f"{plan.model.name} {plan.strategy}", None)

    def _host_facts(self, plan: LoadPlan) -> dict[str, Any]:
        """Facts of the host that a model is on, where that is not this one."""
        return {} if self._cluster is None else self._cluster.facts(plan)

    def _free_bytes(self, plan: LoadPlan, gpus: tuple[Gpu, ...]) -> int:
        if self._cluster is None:
            return placement.free_bytes(plan.device, gpus)
        return self._cluster.room_bytes(plan) - sum(
            placement.needed_bytes(each) or 0 for each in self._open
        )

    def _make_room(self, plan: LoadPlan, gpus: tuple[Gpu, ...]) -> None:
        needed = placement.needed_bytes(plan)
        if needed is None:
            return
        if needed > self._free_bytes(plan, gpus):
            self.keep_only(())
        free = self._free_bytes(plan, gpus)
        if needed > free:
            each = "" if plan.ranks == 1 else " on each rank"
            raise OutOfMemory(
                f"{plan.model.name} as {plan.strategy} needs {needed / 1e9:.1f} GB for its weights alone{each}; "
                f"{plan.device} has {free / 1e9:.1f} GB free. Predicted, nothing was loaded. "
                "A 16-bit strategy halves fp32; 'llmperf doctor' lists the devices.",
            )

    def _leave_gpus(self) -> None:
        self.keep_only([plan for plan, model in self._open.items() if not model.gpus])

    def _leave_cluster(self) -> None:
        self.keep_only([plan for plan, model in self._open.items() if not model.elsewhere])

    def _require_returned(self) -> None:
        """Raise for what closed workers still hold.

        That each device is as empty as before is seen when the last has left.
        """
        held = self._gpus.held if self._gpus is not None else ()
        if self._used_before and not self.on_gpus:
            before, self._used_before = self._used_before, {}
            self._left += settle(lambda: more_than(before, held)) if not self._left else []
        left, self._left = self._left, []
        if left:
            raise not_returned(left)

    def _close(self, plan: LoadPlan) -> None:
        model = self._open.pop(plan)
        tree = WorkerTree.of(getattr(model.channel, "pids", ()))
        try:
            if model.channel.alive:
                model.channel.call(Close(), deadline_s=30)
        except WorkerError:
            pass  # it is being ended anyway; close() below kills what is left
        finally:
            model.channel.close()
            left = settle(lambda: tree.left(model.gpus))
            self._left += [f"{plan.model.name} {plan.strategy}: {text}" for text in left]
            tree.kill()


def alone(plan: LoadPlan, gpus: tuple[Gpu, ...], wait_s: float) -> AbstractContextManager[None]:
    """Hold the device of a plan for one command.

    Nothing where GPUs are held, or where the engine does not occupy it.
    """
    return (
        nullcontext() if gpus or not _occupies(plan) else exclusive(plan.device, timeout_s=wait_s)
    )


def _occupies(plan: LoadPlan) -> bool:
    """What a test measures in its own process does, and every engine that does not say otherwise."""
    return plan.engine not in engines.TABLE or engines.engine(plan.engine).load_capabilities().occupies_device


def _lease_facts(gpus: tuple[Gpu, ...]) -> dict[str, str]:
    """Which of this host's devices a worker saw as its first, its second and so on."""
    return {"leased_gpus": ",".join(gpu.torch_name for gpu in gpus)} if gpus else {}


def worker_logs(root: Path) -> Path:
    """Where workers' logs of a project are kept."""
    return root / ".llmperf" / "logs"
