"""A Ray cluster as the place of models: its hosts, the bundles held there, the ranks in them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import os
import re
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from msgspec import structs

from pytest_llmperf.cluster import placement
from pytest_llmperf.cluster.link import Link
from pytest_llmperf.cluster.messages import (
    Bundle,
    Done,
    HostList,
    Launch,
    Launched,
    ListHosts,
    Node,
    Reserve,
    Reserved,
    ReturnBundles,
    Slot,
)
from pytest_llmperf.cluster.ranks import ClusterGroup, ClusterRank
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.record import Fact
from pytest_llmperf.devices.inventory import Gpu, Inventory
from pytest_llmperf.devices.placement import USABLE_SHARE, needed_bytes
from pytest_llmperf.devices.selection import GpuPool, Need, eligible, pool
from pytest_llmperf.errors import LlmperfError, UsageError, WorkerDied
from pytest_llmperf.settings.cluster_address import require_ray
from pytest_llmperf.workers.group import SILENCE_S, START_DEADLINE_S, file_stem
from pytest_llmperf.workers.process import WORKER

LIST_HOSTS_S = 180.0
"""For connecting, and for looking at every host: Ray may start a Python process on each."""

_RESERVE_S = 300.0
"""For bundles to be set up or given back, beside the time that others are waited for."""

_CARRIED = (
    "LLMPERF_",
    "HF_",
    "TRANSFORMERS_",
    "TORCH",
    "PYTORCH_",
    "NCCL_",
    "GLOO_",
    "OMP_",
    "MKL_",
    "VLLM_",
    "TOKENIZERS_",
)
"""Beginnings of the names of variables that the ranks get from this session.

All else is their host's own.
"""

_NOT_CARRIED = frozenset(
    {"LLMPERF_WORKER_TOKEN", "LLMPERF_CORES", "LLMPERF_SIMULATED_GPUS", "LLMPERF_SIMULATED_USAGE"}
)
_numbers = itertools.count(1)


class Cluster:
    """The cluster of `--llmperf-cluster`. See `workers.place.Place`.

    Nothing is asked of it before the first test of a model is planned.

    It holds one set of bundles at a time, taken when a model is loaded and kept while models stay
    loaded: models that a test compares run on the same devices.
    """

    has_our_packages = False

    def __init__(
        self,
        address: str,
        *,
        gpus: str,
        wait_s: float,
        log_dir: Path,
        on_wait: Callable[[str], None],
    ) -> None:
        self.address = address
        self._unload: Callable[[], None] = lambda: None
        self._gpus_option = gpus
        self._wait_s = wait_s
        self._log_dir = log_dir
        self._on_wait = on_wait
        self._link: Link | None = None
        self._host_list: HostList | LlmperfError | None = None
        self._slots: tuple[Slot, ...] = ()
        self._reserved_for: LoadPlan | None = None
        self._meeting_hosts: dict[LoadPlan, str] = {}

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Its hosts, as they were when they were first asked for.

        Raises UsageError, WorkerError; again each time.
        """
        if self._host_list is None:
            self._host_list = self._listed_hosts()
        if isinstance(self._host_list, LlmperfError):
            raise self._host_list
        return self._host_list.nodes

    @property
    def gpus(self) -> GpuPool:
        """The GPUs of its hosts, of which `--llmperf-gpus` may take a number. Raises UsageError."""
        if not re.fullmatch(r"all|\d+", self._gpus_option.strip()):
            raise UsageError(
                f"--llmperf-gpus={self._gpus_option!r} with --llmperf-cluster={self.address!r}: "
                "Ray chooses among its GPUs; a count or 'all' is needed.",
            )
        why = f"--llmperf-cluster={self.address!r} lends none: {placement.described(self.nodes)}"
        return pool(self._gpus_option, Inventory(gpus=_numbered_gpus(self.nodes), notes=(why,)))

    def require(self, plan: LoadPlan) -> None:
        """Raise UsageError when it could not hold the plan's ranks even if nobody else used it."""
        placement.bundles(plan, self.nodes, self.address)

    def require_any_gpu_meets(self, need: Need) -> None:
        """Raise UsageError where only some GPUs meet a test's need: Ray chooses among all."""
        gpus = self.gpus.gpus
        able = eligible(need, gpus)
        if len(able) < len(gpus):
            raise UsageError(
                f"needs {need}, which {len(able)} of the {len(gpus)} GPUs of "
                f"--llmperf-cluster={self.address!r} meet, and Ray chooses among all. "
                "Run it on a cluster of GPUs that are alike, or leave the condition out.",
            )

    def device_text(self, plan: LoadPlan) -> str:
        """Return the kind of device, and on how many hosts. Raises UsageError."""
        n_hosts = len(self.hosts_for(plan))
        return f"{plan.device} on {n_hosts} host{'' if n_hosts == 1 else 's'} of {self.address}"

    def hosts_for(self, plan: LoadPlan) -> tuple[Node, ...]:
        """Return the hosts that a plan takes while nobody else holds any. Raises UsageError."""
        bundles = placement.bundles(plan, self.nodes, self.address)
        return placement.hosts(bundles, self.nodes, close=placement.together(plan))

    def free_bytes(self, plan: LoadPlan, need: Need | None) -> None:
        """What is free on the hosts is seen when they are held."""

    def lease(self, need: Need, *, measures: bool) -> None:
        """The GPUs of a test are held when its models are loaded."""

    def hold(self, plan: LoadPlan) -> tuple[Gpu, ...]:
        """Hold bundles for the plan: those held already where they will do, else others.

        Before others are taken, what is loaded in those held is unloaded.

        Raises:
            UsageError: the cluster lends too little. DeviceBusy: others hold it for longer than the
                wait limit.

        """
        if not self._reserved_will_do(plan):
            bundles = placement.bundles(plan, self.nodes, self.address)
            self.release()
            self._on_wait(f"{plan.ranks} on {self.address}")
            self._slots = self._reserved_slots(bundles, together=placement.together(plan))
            self._reserved_for = plan
            self._require_same_version()
        return ()

    def lends(self, plan: LoadPlan) -> bool:  # noqa: ARG002 - the same for every plan
        """Whether models are on bundles: all are."""
        return True

    def start(self, plan: LoadPlan, python: str) -> ClusterGroup:
        """Start the ranks of a plan in the bundles held, and wait until each has said hello.

        Raises:
            UsageError: the interpreter cannot be run there. WorkerDied, WorkerHung: a rank did not
                come up.
        """
        link = self._link_to_slots(plan)
        name = file_stem(f"{plan.engine}-{plan.model.name}-{plan.strategy}")
        order = _launch_order(plan, f"{os.getpid()}-{next(_numbers)}", python)
        launched, sockets = _launched(link, order)
        self._meeting_hosts[plan] = launched.meet.rpartition(":")[0]
        ranks = self._ranks(link, order, launched, sockets, name)
        group = ClusterGroup(ranks, name=name, silence_s=SILENCE_S)
        group.greet(python or "Ray's Python there", START_DEADLINE_S)
        return group

    def _ranks(
        self,
        link: Link,
        order: Launch,
        launched: Launched,
        sockets: Sequence[socket.socket],
        name: str,
    ) -> tuple[ClusterRank, ...]:
        return tuple(
            ClusterRank(
                link,
                sockets[rank],
                model=order.model,
                rank=rank,
                pid=pid,
                slot=self._slots[rank],
                log=self._log_dir / f"{name}-{order.model}-rank{rank}.log",
            )
            for rank, pid in enumerate(launched.pids)
        )

    def alone(self, *_: object) -> AbstractContextManager[None]:
        """Hold nothing: bundles are held anyway."""
        return nullcontext()

    def facts(self, plan: LoadPlan) -> dict[str, Fact]:
        """Return the first rank's host facts, how many hosts there are, and each rank's host."""
        slots = self._slots[: plan.ranks]
        return {
            **slots[0].facts,
            "cluster": "ray",
            "n_hosts": len({slot.node for slot in slots}),
            "rank_hosts": "; ".join(f"rank {rank}: {slot}" for rank, slot in enumerate(slots)),
            "rendezvous": self._meeting_hosts.get(plan) or None,
        }

    def room_bytes(self, plan: LoadPlan, loaded: Iterable[LoadPlan]) -> int:
        """Return the memory of the smallest device (or host) held, beside what is loaded."""
        loaded_bytes = sum(needed_bytes(model) or 0 for model in loaded)
        return self._smallest_bytes(plan.device) - loaded_bytes

    def fits(self, plans: Sequence[LoadPlan]) -> bool:
        """Whether models of these plans can be loaded at once.

        They have to be on one kind of device, and in its memory by what is predicted.
        """
        devices = {plan.device for plan in plans}
        if len(devices) > 1:
            return False
        needed = sum(needed_bytes(plan) or 0 for plan in plans)
        return not self._slots or needed <= self._smallest_bytes(*devices) * USABLE_SHARE

    def call_before_release(self, unload: Callable[[], None]) -> None:
        """Have `unload` called before bundles are given back."""
        self._unload = unload

    def wanted_since_s(self) -> float:
        """Return 0: Ray does not say who waits for a bundle."""
        return 0.0

    def release(self) -> None:
        """Unload what is in the bundles and give them back. May be called again."""
        if self._reserved_for is None:
            return
        self._reserved_for = None
        try:
            self._unload()
        finally:
            self._slots = ()
            if self._link is not None and self._link.alive:
                with contextlib.suppress(WorkerDied):  # Ray gives back what a lost connection held
                    self._link.ask(ReturnBundles(), Done, deadline_s=_RESERVE_S)

    def close(self) -> None:
        """Give everything back and leave the cluster. May be called again."""
        link, self._link = self._link, None
        self._reserved_for, self._slots = None, ()
        if link is not None:
            link.close()

    def _listed_hosts(self) -> HostList | LlmperfError:
        try:
            require_ray(self.address)
            return self._connected().ask(ListHosts(), HostList, deadline_s=LIST_HOSTS_S)
        except LlmperfError as error:
            return error

    def _reserved_will_do(self, plan: LoadPlan) -> bool:
        """Whether there are enough bundles on the kind of device, over a connection that stands."""
        return (
            self._link is not None
            and self._link.alive
            and self._reserved_for is not None
            and self._reserved_for.device == plan.device
            and len(self._slots) >= plan.ranks
        )

    def _reserved_slots(self, bundles: tuple[Bundle, ...], *, together: bool) -> tuple[Slot, ...]:
        request = Reserve(bundles=bundles, together=together, wait_s=self._wait_s)
        deadline_s = self._wait_s + _RESERVE_S
        return self._connected().ask(request, Reserved, deadline_s=deadline_s).slots

    def _link_to_slots(self, plan: LoadPlan) -> Link:
        """Return the connection over which bundles are held. Raises WorkerDied where it ended."""
        if self._link is None or not self._slots:
            raise WorkerDied(
                f"the connection to {self.address!r} ended before the ranks of "
                f"{plan.strategy!r} were started."
            )
        return self._link

    def _smallest_bytes(self, device: str) -> int:
        """Return the memory of the smallest device (or host) held, whatever is on it."""
        if device.startswith("cuda"):
            return min((gpu.total_bytes for gpu in self.gpus.gpus), default=0)
        return min((slot.memory_bytes for slot in self._slots), default=0)

    def _connected(self) -> Link:
        if self._link is None or not self._link.alive:
            if self._link is not None:
                self._link.kill()
            self._reserved_for, self._slots = None, ()
            self._link = Link.open(self.address, self._log_dir)
        return self._link

    def _require_same_version(self) -> None:
        """Raise UsageError, with everything given back, where a host's messages may differ."""
        version = importlib.metadata.version("pytest-llmperf")
        others = [f"{slot.version} on {slot}" for slot in self._slots if slot.version != version]
        if others:
            self.release()
            raise UsageError(
                f"--llmperf-cluster={self.address!r}: pytest-llmperf is {version} here and "
                f"{'; '.join(dict.fromkeys(others))}. Install the same version.",
            )


def carried(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of this session that its ranks get on other hosts."""
    return {
        name: value
        for name, value in environ.items()
        if name.startswith(_CARRIED) and name not in _NOT_CARRIED
    }


def _numbered_gpus(nodes: Sequence[Node]) -> tuple[Gpu, ...]:
    gpus = [gpu for node in nodes for gpu in node.devices[: int(node.gpus)]]
    return tuple(structs.replace(gpu, index=index) for index, gpu in enumerate(gpus))


def _launch_order(plan: LoadPlan, model: str, python: str) -> Launch:
    return Launch(
        model=model,
        ranks=plan.ranks,
        python="" if python == sys.executable else python,
        program=WORKER,
        cwd=str(Path.cwd()),
        env=carried(os.environ),
        deadline_s=START_DEADLINE_S,
    )


def _launched(link: Link, order: Launch) -> tuple[Launched, list[socket.socket]]:
    """Have ranks started, and return the session's end of each rank's stream, in rank order."""
    pairs = [socket.socketpair() for _ in range(order.ranks)]
    session_ends = [session_end for session_end, _ in pairs]
    rank_ends = [rank_end for _, rank_end in pairs]
    try:
        launched = link.ask(order, Launched, deadline_s=2 * START_DEADLINE_S, sockets=rank_ends)
    except BaseException:
        for session_end in session_ends:
            session_end.close()
        raise
    finally:
        for rank_end in rank_ends:
            rank_end.close()
    return launched, session_ends
