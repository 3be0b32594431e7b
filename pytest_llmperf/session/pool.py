"""The models that are loaded now. Equal plans share one; what the next test does not need is released before it loads its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pytest_llmperf.core.effective import Promise
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models import predict
from pytest_llmperf.errors import LoadError, OutOfMemory, UsageError, WorkerError
from pytest_llmperf.session import devices
from pytest_llmperf.session.leases import exclusive
from pytest_llmperf.strategies import parse, require_in_effect
from pytest_llmperf.worker.messages import Close, Command, Heartbeat, Open, Opened, Result


class Channel(Protocol):
    """Whatever answers commands: a group of worker processes, or a host in this process."""

    def call(self, command: Command, *, deadline_s: float, on_beat: Callable[[Heartbeat], None] | None = None) -> Result:
        """Rank 0's result."""

    def close(self) -> object:
        """End it and give everything back."""

    @property
    def alive(self) -> bool:
        """Whether it can take another command."""


@dataclass(frozen=True, eq=False)
class OpenModel:
    """A loaded model: its plan, the channel to its worker, and what the worker said of it."""

    plan: LoadPlan
    channel: Channel
    opened: Opened
    promises: tuple[Promise, ...]
    timeout_s: float

    def call(self, command: Command) -> Result:
        """Send a command while holding the device, so that no other session measures on it at the same time."""
        with exclusive(self.plan.device, timeout_s=self.timeout_s):
            return self.channel.call(command, deadline_s=self.timeout_s)


class Pool:
    """Opens load plans in workers made by `start`, and closes them."""

    def __init__(
        self, start: Callable[[LoadPlan], Channel], *, timeout_s: float, progress: Callable[[str, str, float | None], None]
    ) -> None:
        self._start = start
        self._timeout_s = timeout_s
        self._progress = progress
        self._open: dict[LoadPlan, OpenModel] = {}
        self._failed: dict[LoadPlan, LoadError | UsageError] = {}
        self._adopted: set[LoadPlan] = set()

    def open(self, plan: LoadPlan) -> OpenModel:
        """The loaded model of `plan`; loads it when it is not, after making room.

        Raises:
            LoadError, UsageError, OutOfMemory, WorkerError: it cannot be loaded.
            NotInEffect: it loaded as something else than its strategy promised.
        """
        if plan in self._failed:
            raise self._failed[plan]
        known = self._open.get(plan)
        if known is not None and known.channel.alive:
            return known
        self._make_room(plan)
        return self._load(plan)

    def adopt(self, plan: LoadPlan, channel: Channel) -> None:
        """Take in a model that the test itself holds; nothing was promised of it."""
        opened = channel.call(Open(plan=plan), deadline_s=self._timeout_s)
        assert isinstance(opened, Opened)  # noqa: S101 - narrows the union
        self._open[plan] = OpenModel(plan, channel, opened, (), self._timeout_s)
        self._adopted.add(plan)

    def renew(self, plan: LoadPlan) -> None:
        """Close a model, so that its next use loads it in a fresh worker. One that the test itself holds stays."""
        if plan in self._open and plan not in self._adopted:
            self._close(plan)

    def keep_only(self, plans: Iterable[LoadPlan]) -> None:
        """Close every model that is not among `plans`, or whose worker is gone."""
        wanted = set(plans)
        for plan, model in reversed(list(self._open.items())):  # a model taken in twice is put back as it was first found
            if plan not in wanted or not model.channel.alive:
                self._close(plan)

    def fits_together(self, *plans: LoadPlan) -> bool:
        """Whether the predicted weights of all plans fit at once; True where that cannot be predicted."""
        return sum(predict(plan) or 0 for plan in plans) <= devices.total_bytes(plans[0].device) * devices.USABLE_SHARE

    def close(self) -> None:
        """Close every model."""
        self.keep_only(())

    def _load(self, plan: LoadPlan) -> OpenModel:
        self._show_load(plan)
        channel = self._start(plan)
        try:
            with exclusive(plan.device, timeout_s=self._timeout_s):
                opened = channel.call(Open(plan=plan), deadline_s=self._timeout_s, on_beat=lambda _beat: self._show_load(plan))
            assert isinstance(opened, Opened)  # noqa: S101 - narrows the union; the wire checked the type
            promises = parse(plan.strategy).promises(plan)
            require_in_effect(opened.effective, promises, when="loaded")
        except BaseException as error:
            channel.close()
            if isinstance(error, LoadError | UsageError):
                self._failed[plan] = error
            raise
        self._open[plan] = OpenModel(plan, channel, opened, promises, self._timeout_s)
        return self._open[plan]

    def _show_load(self, plan: LoadPlan) -> None:
        self._progress("loading", f"{plan.model.name} {plan.strategy}", None)

    def _make_room(self, plan: LoadPlan) -> None:
        needed = predict(plan)
        if needed is None:
            return
        if needed > devices.free_bytes(plan.device):
            self.keep_only(())
        free = devices.free_bytes(plan.device)
        if needed > free:
            raise OutOfMemory(
                f"{plan.model.name} as {plan.strategy} needs {needed / 1e9:.1f} GB for its weights alone; {plan.device} has "
                f"{free / 1e9:.1f} GB free. Predicted, nothing was loaded. "
                "A 16-bit strategy halves fp32; 'llmperf doctor' lists the devices."
            )

    def _close(self, plan: LoadPlan) -> None:
        model = self._open.pop(plan)
        try:
            if model.channel.alive:
                model.channel.call(Close(), deadline_s=30)
        except WorkerError:
            pass  # it is being ended anyway; close() below kills what is left
        finally:
            model.channel.close()


def worker_logs(root: Path) -> Path:
    """Where workers' logs of a project are kept."""
    return root / ".llmperf" / "logs"
