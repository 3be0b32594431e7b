"""A place of models: this host, with leased GPUs, or its CPU, held for a command at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llmperf import engines
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.record import Fact
from pytest_llmperf.devices import placement
from pytest_llmperf.devices.held import Gpus
from pytest_llmperf.devices.inventory import Gpu
from pytest_llmperf.devices.leases import exclusive
from pytest_llmperf.devices.selection import GpuPool, Need, candidates
from pytest_llmperf.processes import CORES

if TYPE_CHECKING:
    from pytest_llmperf.workers.group import WorkerGroup


class ThisHost:
    """See `workers.place.Place`. It is also where the test's own process may have put a model."""

    has_our_packages = True

    def __init__(self, gpus: Gpus, *, wait_s: float, log_dir: Path, forks: bool = True) -> None:
        self._gpus = gpus
        self._forks = forks
        self._wait_s = wait_s
        self._log_dir = log_dir

    @property
    def gpus(self) -> GpuPool:
        """The GPUs of `--llmperf-gpus`. Raises UsageError."""
        return self._gpus.pool

    @property
    def held(self) -> tuple[Gpu, ...]:
        """The GPUs that are leased now."""
        return self._gpus.held

    def require(self, plan: LoadPlan) -> None:
        """Whether the plan's GPUs are here is seen by its test's need of them."""

    def require_any_gpu_meets(self, need: Need) -> None:
        """GPUs that meet a need are chosen here."""

    def device_text(self, plan: LoadPlan) -> str:
        """Return the kind of device."""
        return plan.device

    def free_bytes(self, plan: LoadPlan, need: Need | None) -> int:
        """Return what is free on the fullest GPU that the test may get, or on the host."""
        gpus = () if need is None else candidates(need, self.gpus)[1]
        return placement.free_bytes(plan.device, gpus)

    def lease(self, need: Need, *, measures: bool) -> None:
        """Hold the GPUs of a test. Raises as `Gpus.require`."""
        self._gpus.require(need, measures=measures)

    def hold(self, plan: LoadPlan) -> tuple[Gpu, ...]:
        """Hold one GPU for each rank; none for a plan on the CPU. Raises as `Gpus.ensure`."""
        return self._gpus.ensure(plan.ranks) if plan.device == "cuda" else ()

    def claim(self, plan: LoadPlan) -> tuple[Gpu, ...]:
        """Hold the device on which the test's own process has put a model. Raises UsageError."""
        if not self.lends(plan):
            return ()
        self._gpus.claim(plan.device)
        return self._gpus.held[:1]

    def lends(self, plan: LoadPlan) -> bool:
        """Whether the model is on a GPU."""
        return plan.device.startswith("cuda")

    def start(self, plan: LoadPlan, python: str) -> WorkerGroup:
        """Start one worker process for each rank, a fork where that can be.

        Raises as `WorkerGroup.start`.
        """
        # Sockets and processes, only when a model is loaded.
        from pytest_llmperf.workers.group import WorkerGroup  # noqa: PLC0415

        return WorkerGroup.start(
            ranks=plan.ranks,
            python=python,
            log_dir=self._log_dir,
            env=worker_environment(self._gpus, plan),
            name=f"{plan.engine}-{plan.model.name}-{plan.strategy}",
            fork_engine=plan.engine,
            not_forked=self._not_forked(plan),
        )

    def _not_forked(self, plan: LoadPlan) -> str:
        """Return why workers of a plan are not even asked of a fork server, or nothing."""
        if not self._forks:
            return "--llmperf-start-method=spawn"
        return engines.engine(plan.engine).load_capabilities().starts_afresh(plan) or ""

    def alone(self, plan: LoadPlan, gpus: Sequence[Gpu] = ()) -> AbstractContextManager[None]:
        """Hold the plan's device for one command.

        Holds nothing where GPUs are leased, or where the engine does not occupy the device.
        """
        if gpus or not occupies_device(plan):
            return nullcontext()
        return exclusive(plan.device, timeout_s=self._wait_s)

    def facts(self, plan: LoadPlan) -> dict[str, Fact]:
        """Return which of this host's GPUs a worker sees as its first, its second and so on."""
        names = [gpu.torch_name for gpu in self._gpus_of(plan)]
        return {"leased_gpus": ",".join(names)} if names else {}

    def fits(self, plans: Sequence[LoadPlan]) -> bool:
        """Whether the predicted weights of all plans fit on each GPU held, or on the host."""
        needed = sum(placement.needed_bytes(plan) or 0 for plan in plans)
        total = placement.total_bytes(plans[0].device, self.held)
        return needed <= total * placement.USABLE_SHARE

    def room_bytes(self, plan: LoadPlan, loaded: Iterable[LoadPlan]) -> int:  # noqa: ARG002 - seen
        """Return what the driver, or the system, says is free now."""
        return placement.free_bytes(plan.device, self._gpus_of(plan))

    def call_before_release(self, unload: Callable[[], None]) -> None:
        """Have `unload` called before GPUs are given back."""
        self._gpus.before_release = unload

    def wanted_since_s(self) -> float:
        """Return how long somebody else has waited for one of the GPUs held."""
        return self._gpus.wanted_since_s()

    def release(self) -> None:
        """Unload what is on the GPUs and give them back."""
        self._gpus.release()

    def close(self) -> None:
        """Give the GPUs back."""
        self._gpus.release()

    def _gpus_of(self, plan: LoadPlan) -> tuple[Gpu, ...]:
        return self.held[: plan.ranks] if self.lends(plan) else ()


def occupies_device(plan: LoadPlan) -> bool:
    """Whether commands of the plan's engine keep others off the device.

    A test that measures in its own process does, and every engine that does not say otherwise.
    """
    return (
        plan.engine not in engines.TABLE
        or engines.engine(plan.engine).load_capabilities().occupies_device
    )


def worker_environment(gpus: Gpus, plan: LoadPlan) -> Mapping[str, str]:
    """Return the variables that show the workers of a plan their GPUs and their part of the cores.

    None on a CPU, where one worker is at work at a time.
    """
    if not plan.device.startswith("cuda") or not gpus.held:
        return {}
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    cores = share_of_cores(usable, gpus.held, gpus.pool.gpus, os.environ)
    return {**gpus.environment(plan.ranks), CORES: ",".join(map(str, cores))}


def share_of_cores(
    cores: Sequence[int], held: Sequence[Gpu], pool: Sequence[Gpu], environ: Mapping[str, str]
) -> tuple[int, ...]:
    """Return the cores of a worker that holds `held`.

    These are all cores where nobody else of this session can be at work.

    No more workers are at work at once than pytest-xdist has processes, nor than the pool has
    devices: the cores are cut in so many equal, adjacent parts. Each process has a part, or each
    device where there are fewer of these.
    """
    n_processes = int(environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    n_parts = min(n_processes, len(pool))
    if n_parts <= 1 or not held:
        return tuple(cores)
    parts = (
        [_xdist_number(environ) % n_parts] if n_processes <= len(pool) else _places_in(pool, held)
    )
    return tuple(sorted({core for part in parts for core in _part(cores, part, n_parts)}))


def _places_in(pool: Sequence[Gpu], held: Sequence[Gpu]) -> list[int]:
    uuids = [gpu.uuid for gpu in pool]
    return [uuids.index(gpu.uuid) for gpu in held]


def _part(cores: Sequence[int], part: int, n_parts: int) -> Sequence[int]:
    """Return at least one core, shared where there are fewer cores than parts."""
    if len(cores) < n_parts:
        return [cores[part % len(cores)]]
    first, end = len(cores) * part // n_parts, len(cores) * (part + 1) // n_parts
    return cores[first:end]


def _xdist_number(environ: Mapping[str, str]) -> int:
    """Return the number of this process among pytest-xdist's workers ("gw3")."""
    digits = re.search(r"\d+$", environ.get("PYTEST_XDIST_WORKER", "gw0"))
    return int(digits.group()) if digits else 0
