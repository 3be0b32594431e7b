"""Where the models of a session are loaded, as the rest of the session sees it.

This host is one implementation (`workers.this_host`), a Ray cluster the other (`cluster.cluster`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.record import Fact

if TYPE_CHECKING:
    from pytest_llmperf.devices.inventory import Gpu
    from pytest_llmperf.devices.selection import GpuPool, Need
    from pytest_llmperf.workers.group import WorkerGroup


class Place(Protocol):
    """Lends devices to models and starts their workers beside them."""

    @property
    def gpus(self) -> GpuPool:
        """The GPUs that models may be loaded on. Raises UsageError."""

    @property
    def has_our_packages(self) -> bool:
        """Whether a worker finds the packages that are installed for this process."""

    def require(self, plan: LoadPlan) -> None:
        """Raise UsageError when the plan could not be held even if nobody else used the place."""

    def require_any_gpu_meets(self, need: Need) -> None:
        """Raise UsageError where GPUs cannot be chosen, and some do not meet the need."""

    def device_text(self, plan: LoadPlan) -> str:
        """The kind of device that a plan would be loaded on, and where, in words."""

    def free_bytes(self, plan: LoadPlan, need: Need | None) -> int | None:
        """Return the memory that is free now for a plan whose test has this need of GPUs.

        None where it is known only once devices are held.
        """

    def lease(self, need: Need, *, measures: bool) -> None:
        """Hold the GPUs of a test of models before its fixtures are made.

        Does nothing where devices are lent only when a model is loaded. Raises as `Gpus.require`.
        """

    def hold(self, plan: LoadPlan) -> tuple[Gpu, ...]:
        """Hold devices for a plan, after unloading what has to make way for it.

        Returns:
            The leased GPUs of this host among them.

        Raises:
            UsageError: the place has too few. DeviceBusy: others hold them for longer than the wait
                limit. InvalidRun: a process that is not ours stays on one.
        """

    def lends(self, plan: LoadPlan) -> bool:
        """Whether a loaded model of the plan is on devices that are held until `release`."""

    def start(self, plan: LoadPlan, python: str) -> WorkerGroup:
        """Start the workers of a plan on the devices held, and wait until each has said hello.

        Raises:
            UsageError: the interpreter cannot be run. WorkerDied, WorkerHung: a worker did not come
                up.
        """

    def alone(self, plan: LoadPlan, gpus: Sequence[Gpu]) -> AbstractContextManager[None]:
        """Hold the device of a plan for one command, unless it is held anyway."""

    def facts(self, plan: LoadPlan) -> Mapping[str, Fact]:
        """Return what a record says of the devices and hosts that are held for a plan."""

    def fits(self, plans: Sequence[LoadPlan]) -> bool:
        """Whether the predicted weights of all plans fit at once.

        True where that cannot be predicted.
        """

    def room_bytes(self, plan: LoadPlan, loaded: Iterable[LoadPlan]) -> int:
        """Return the memory for a plan on each device held for it, beside what is loaded."""

    def call_before_release(self, unload: Callable[[], None]) -> None:
        """Have `unload` called whenever devices are about to be given back."""

    def wanted_since_s(self) -> float:
        """Return how long somebody else has waited for a device that is held."""

    def release(self) -> None:
        """Unload what is on the devices held and give them back. May be called again."""

    def close(self) -> None:
        """Give everything back, for good. May be called again."""
