"""The GPUs that this process holds now.

They are leased for one test, kept while models stay loaded, and given back when others wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from pytest_llmperf.devices import drivers
from pytest_llmperf.devices.drivers import foreign_processes
from pytest_llmperf.devices.inventory import Gpu, environment_of
from pytest_llmperf.devices.lease_queue import WHOLE
from pytest_llmperf.devices.leases import Lease, lease
from pytest_llmperf.devices.selection import GpuPool, Need, candidates, pool, shortfall
from pytest_llmperf.errors import InvalidRun, LlmperfError, UsageError

GIVE_WAY_S = 30.0
"""How long others must have waited before models that the next test needs are unloaded for them."""

FOREIGN_WAIT_S = 60.0
"""How long a process that is not ours may take to leave a device that a test has leased."""

_FOREIGN_POLL_S = 0.25


@cache
def session_pool(option: str) -> GpuPool:
    """Return the pool that `--llmperf-gpus` names, out of what the drivers show.

    Raises UsageError.
    """
    return pool(option, drivers.inventory())


class Gpus:
    """The leased GPUs of this process.

    It never waits for devices while it holds some: `before_release` unloads what is on them.
    """

    def __init__(
        self,
        option: str,
        *,
        wait_s: float,
        directory: Path | None = None,
        on_wait: Callable[[str], None] | None = None,
    ) -> None:
        self.held: tuple[Gpu, ...] = ()
        self.before_release: Callable[[], None] = lambda: None
        self._option = option
        self._wait_s = wait_s
        self._directory = directory
        self._on_wait = on_wait
        self._lease: Lease | None = None
        self._shared = False
        self._borrowed = False
        self._foreign_pids_before: dict[str, set[int]] = {}

    @property
    def pool(self) -> GpuPool:
        """The GPUs that may be leased. Raises UsageError for an option that cannot be met."""
        return session_pool(self._option)

    def require(self, need: Need, *, measures: bool) -> tuple[Gpu, ...]:
        """Hold what the need asks for; what is held already is kept where it will do.

        A test that does not measure and says how much memory it takes gets that share of a device,
        every other test has its devices alone.

        Raises:
            UsageError: the pool cannot meet the need. DeviceBusy: not within the wait limit.
            InvalidRun: a process that is not ours stays on a device that is to be measured on.
        """
        short = shortfall(need, self.pool)
        if short is not None:
            raise UsageError(short.text)
        if self._borrowed:
            return self._require_borrowed(need.least)
        self._lease_for(need, shared_bytes=None if measures else need.memory)
        if measures:
            self._require_no_foreign_process()
        return self.held

    def ensure(self, n: int) -> tuple[Gpu, ...]:
        """Return the first `n` devices held, to measure on.

        Where fewer are held, they are given back with what is loaded on them, and `n` are leased.
        """
        if self._borrowed:
            return self._require_borrowed(n)[:n]
        if len(self.held) < n or self._shared:
            self.require(Need(least=n, most=n), measures=True)
        return self.held[:n]

    def borrow(self, uuids: Sequence[str]) -> None:
        """Use these devices under the lease of the session that this process works for.

        That session holds them all along.
        """
        self.held = self._in_pool(uuids) if uuids else ()
        self._borrowed = True

    def _in_pool(self, uuids: Sequence[str]) -> tuple[Gpu, ...]:
        """Return the devices of these ids; ids that the pool does not have are left out."""
        by_uuid = _by_uuid(self.pool.gpus)
        return tuple(by_uuid[uuid] for uuid in uuids if uuid in by_uuid)

    def claim(self, torch_name: str) -> None:
        """Hold the device of this name, on which the test's own process has put a model.

        "cuda" is the first. Raises UsageError where the device cannot be leased.
        """
        index = int(torch_name.partition(":")[2] or 0)
        if any(gpu.index == index for gpu in self.held):
            return
        gpus = [gpu for gpu in self.pool.gpus if gpu.index == index]
        subject = f"a model was put on {torch_name!r}, which"
        if not gpus:
            raise UsageError(f"{subject} the pool does not have: {self.pool}.")
        if self._borrowed:
            raise UsageError(f"{subject} the session that compares does not hold.")
        self.release()
        self._lease_out_of(dict.fromkeys(gpus, WHOLE), 1)

    def wanted_since_s(self) -> float:
        """Return how long somebody else has waited for one of the devices that are held."""
        return self._lease.wanted_since_s() if self._lease is not None else 0.0

    def environment(self, n: int) -> Mapping[str, str]:
        """Return the variables that show a worker the first `n` devices held and no other."""
        return environment_of(self.held[:n])

    def release(self) -> None:
        """Unload what is on the devices and give them back.

        May be called again; what unloading raises comes last.
        """
        current, self._lease = self._lease, None
        if current is None:
            return
        try:
            self.before_release()
        finally:
            self.held, self._shared = (), False
            current.release()

    def _lease_for(self, need: Need, *, shared_bytes: int | None) -> None:
        n, able = candidates(need, self.pool)
        if shared_bytes is None and self._holds_alone(n, able):
            return
        self.release()
        self._lease_out_of({gpu: _share(gpu, shared_bytes) for gpu in able}, n)
        self._shared = shared_bytes is not None

    def _holds_alone(self, n: int, able: Sequence[Gpu]) -> bool:
        """Whether `n` of the able devices are held already, and nobody shares them."""
        return len(self.held) == n and set(self.held) <= set(able) and not self._shared

    def _require_borrowed(self, n: int) -> tuple[Gpu, ...]:
        if len(self.held) < n:
            raise UsageError(
                f"{n} GPUs are needed, and the session that compares holds {len(self.held)}."
            )
        return self.held

    def _lease_out_of(self, shares: Mapping[Gpu, float], n: int) -> None:
        by_uuid = _by_uuid(shares)
        self._lease = lease(
            {gpu.uuid: share for gpu, share in shares.items()},
            n,
            timeout_s=self._wait_s,
            directory=self._directory,
            on_wait=self._on_wait,
            names={gpu.uuid: gpu.torch_name for gpu in self.pool.inventory.gpus},
        )
        self.held = tuple(by_uuid[uuid] for uuid in self._lease.devices)

    def _require_no_foreign_process(self) -> None:
        """Wait until no foreign process is on a device held.

        Raises InvalidRun when one stays; at once if it stayed before.
        """
        try:
            for gpu in self.held:
                self._wait_for_foreign_processes(gpu)
        except LlmperfError:
            self.release()
            raise

    def _wait_for_foreign_processes(self, gpu: Gpu) -> None:
        limit_s = min(FOREIGN_WAIT_S, self._wait_s)
        end_s = time.monotonic() + limit_s
        while processes := foreign_processes(gpu):
            pids = set(processes)
            stayed_before = pids <= self._foreign_pids_before.get(gpu.uuid, set())
            if stayed_before or time.monotonic() >= end_s:
                self._foreign_pids_before[gpu.uuid] = pids
                raise _used_by_others(gpu, processes.values(), limit_s)
            time.sleep(_FOREIGN_POLL_S)


def _used_by_others(gpu: Gpu, processes: Iterable[str], limit_s: float) -> InvalidRun:
    return InvalidRun(
        f"{gpu.torch_name} is used by {'; '.join(processes)}: not of this session, and not gone "
        f"within {limit_s:g} s. End it, or leave the device out with --llmperf-gpus.",
    )


def _by_uuid(gpus: Iterable[Gpu]) -> dict[str, Gpu]:
    return {gpu.uuid: gpu for gpu in gpus}


def _share(gpu: Gpu, shared_bytes: int | None) -> float:
    """Return the part of a device that a test leases, from the memory it says it takes."""
    return WHOLE if shared_bytes is None else min(WHOLE, shared_bytes / gpu.total_bytes)
