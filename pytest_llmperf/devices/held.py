"""The GPUs that this process holds now: leased for one test, kept while models stay loaded, given back when others wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from pytest_llmperf.devices import drivers
from pytest_llmperf.devices.foreign_processes import foreign_processes
from pytest_llmperf.devices.inventory import Gpu, environment_of
from pytest_llmperf.devices.lease_queue import WHOLE
from pytest_llmperf.devices.leases import Lease, lease
from pytest_llmperf.devices.selection import GpuPool, Need, candidates, pool, shortfall
from pytest_llmperf.errors import InvalidRun, LlmperfError, UsageError

GIVE_WAY_S = 30.0
"""How long somebody must have waited before models that the next test needs are unloaded for their sake."""

FOREIGN_WAIT_S = 60.0
"""How long a process that is not ours may take to leave a device that a test has leased to measure on."""

_FOREIGN_POLL_S = 0.25


@cache
def session_pool(asked: str) -> GpuPool:
    """The pool that `--llmperf-gpus` names, out of what the drivers show. Raises UsageError."""
    return pool(asked, drivers.inventory())


class Gpus:
    """What this process holds.

    It never waits for devices while it holds some: `before_release` unloads what is on them.
    """

    def __init__(
        self,
        asked: str,
        *,
        wait_s: float,
        directory: Path | None = None,
        on_wait: Callable[[str], None] | None = None,
    ) -> None:
        self.held: tuple[Gpu, ...] = ()
        self.before_release: Callable[[], None] = lambda: None
        self._asked = asked
        self._wait_s = wait_s
        self._directory = directory
        self._on_wait = on_wait
        self._lease: Lease | None = None
        self._shared = False
        self._borrowed = False
        self._stayed: dict[str, set[int]] = {}

    @property
    def pool(self) -> GpuPool:
        """The GPUs that may be leased. Raises UsageError for an option that cannot be met."""
        return session_pool(self._asked)

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
            return self._of_borrowed(need.least)
        n, able = candidates(need, self.pool)
        shared = not measures and need.memory is not None
        if len(self.held) == n and set(self.held) <= set(able) and not shared and not self._shared:
            return self.held
        self.release()
        self._take(
            {g: min(WHOLE, (need.memory or 0) / g.total_bytes) if shared else WHOLE for g in able},
            n,
        )
        self._shared = shared
        if measures:
            self._require_alone()
        return self.held

    def ensure(self, n: int) -> tuple[Gpu, ...]:
        """The first `n` devices held, to measure on.

        Fewer are given back, with what is loaded on them, and `n` taken anew.
        """
        if self._borrowed:
            return self._of_borrowed(n)[:n]
        if len(self.held) < n or self._shared:
            self.require(Need(least=n, most=n), measures=True)
        return self.held[:n]

    def borrow(self, uuids: Sequence[str]) -> None:
        """Use these devices under the lease of the session that this process works for, which holds them all along."""
        by_uuid = {gpu.uuid: gpu for gpu in self.pool.gpus} if uuids else {}
        self.held = tuple(by_uuid[uuid] for uuid in uuids if uuid in by_uuid)
        self._borrowed = True

    def claim(self, torch_name: str) -> None:
        """Hold the device of this name, on which the test's own process has put a model ("cuda" is the first)."""
        index = int(torch_name.partition(":")[2] or 0)
        if any(gpu.index == index for gpu in self.held):
            return
        named = next((gpu for gpu in self.pool.gpus if gpu.index == index), None)
        if named is None:
            raise UsageError(
                f"a model was put on {torch_name!r}, which the pool does not have: {self.pool}."
            )
        if self._borrowed:
            raise UsageError(
                f"a model was put on {torch_name!r}, which the session that compares does not hold."
            )
        self.release()
        self._take({named: WHOLE}, 1)

    def wanted_since_s(self) -> float:
        """How long somebody else has waited for one of the devices that are held."""
        return self._lease.wanted_since_s() if self._lease is not None else 0.0

    def environment(self, n: int) -> Mapping[str, str]:
        """The variables that show a worker the first `n` devices held and no other."""
        return environment_of(self.held[:n])

    def free_bytes(self, n: int) -> int | None:
        """Memory that is free now on each of the first `n` devices held (the least of them).

        None where it is not known.
        """
        seen = [drivers.usage(gpu) for gpu in self.held[:n]]
        return (
            None if not seen or None in seen else min(u.free_bytes for u in seen if u is not None)
        )

    def release(self) -> None:
        """Unload what is on the devices and give them back.

        May be called again; what unloading raises comes last.
        """
        held, self._lease = self._lease, None
        if held is None:
            return
        try:
            self.before_release()
        finally:
            self.held, self._shared = (), False
            held.release()

    def _of_borrowed(self, n: int) -> tuple[Gpu, ...]:
        if len(self.held) < n:
            raise UsageError(
                f"{n} GPUs are needed, and the session that compares holds {len(self.held)}."
            )
        return self.held

    def _take(self, wants: Mapping[Gpu, float], n: int) -> None:
        by_uuid = {gpu.uuid: gpu for gpu in wants}
        self._lease = lease(
            {gpu.uuid: share for gpu, share in wants.items()},
            n,
            timeout_s=self._wait_s,
            directory=self._directory,
            on_wait=self._on_wait,
            names={gpu.uuid: gpu.torch_name for gpu in self.pool.inventory.gpus},
        )
        self.held = tuple(by_uuid[uuid] for uuid in self._lease.devices)

    def _require_alone(self) -> None:
        """Wait until no foreign process is on a device.

        Raise InvalidRun when one stays, at once if it stayed before.
        """
        try:
            for gpu in self.held:
                self._wait_alone(gpu, time.monotonic() + min(FOREIGN_WAIT_S, self._wait_s))
        except LlmperfError:
            self.release()
            raise

    def _wait_alone(self, gpu: Gpu, end_s: float) -> None:
        while foreign := foreign_processes(gpu):
            if set(foreign) <= self._stayed.get(gpu.uuid, set()) or time.monotonic() >= end_s:
                self._stayed[gpu.uuid] = set(foreign)
                limit_s = min(FOREIGN_WAIT_S, self._wait_s)
                raise InvalidRun(
                    f"{gpu.torch_name} is used by {'; '.join(foreign.values())}: not of this session, and not gone "
                    f"within {limit_s:g} s. End it, or leave the device out with --llmperf-gpus.",
                )
            time.sleep(_FOREIGN_POLL_S)
