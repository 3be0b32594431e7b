"""What a session has of a Ray cluster: its hosts, the bundles that it holds for its models, and the models' ranks there."""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import os
import re
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from msgspec import structs

from pytest_llmperf.cluster import placement
from pytest_llmperf.cluster.link import Link
from pytest_llmperf.cluster.messages import (
    Done,
    GiveBack,
    Launch,
    Launched,
    Look,
    Node,
    Place,
    Seen,
    Take,
    Taken,
)
from pytest_llmperf.cluster.ranks import ClusterGroup, ClusterRank
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.record import Fact
from pytest_llmperf.devices.inventory import Inventory
from pytest_llmperf.devices.placement import USABLE_SHARE, needed_bytes
from pytest_llmperf.devices.selection import GpuPool, Need, eligible, pool
from pytest_llmperf.errors import LlmperfError, UsageError, WorkerDied
from pytest_llmperf.settings.cluster_address import require_ray
from pytest_llmperf.workers.group import SILENCE_S, START_DEADLINE_S
from pytest_llmperf.workers.process import WORKER

LOOK_S = 180.0
"""For connecting, and for looking at every host: Ray may start a Python process on each."""

_TAKE_S = 300.0
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

_LEFT_HERE = frozenset(
    {"LLMPERF_WORKER_TOKEN", "LLMPERF_CORES", "LLMPERF_SIMULATED_GPUS", "LLMPERF_SIMULATED_USAGE"}
)
_numbers = itertools.count(1)


class Cluster:
    """The cluster of `--llmperf-cluster`.

    Nothing is asked of it before the first test of a model is planned.

    It holds one set of bundles at a time, taken when a model is loaded and kept while models stay
    loaded: models that a test compares run on the same devices.
    """

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
        self.before_release: Callable[[], None] = lambda: None
        self._asked_gpus = gpus
        self._wait_s = wait_s
        self._log_dir = log_dir
        self._on_wait = on_wait
        self._link: Link | None = None
        self._seen: Seen | LlmperfError | None = None
        self._places: tuple[Place, ...] = ()
        self._held: LoadPlan | None = None
        self._meet: dict[LoadPlan, str] = {}

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Its hosts, as they were when they were first asked for.

        Raises UsageError, WorkerError; again each time.
        """
        if self._seen is None:
            try:
                require_ray(self.address)
                self._seen = self._connected().ask(Look(), Seen, deadline_s=LOOK_S)
            except LlmperfError as error:
                self._seen = error
        if isinstance(self._seen, LlmperfError):
            raise self._seen
        return self._seen.nodes

    @property
    def gpus(self) -> GpuPool:
        """The GPUs of its hosts, of which `--llmperf-gpus` may take a number. Raises UsageError."""
        found = [gpu for node in self.nodes for gpu in node.devices[: int(node.gpus)]]
        numbered = tuple(structs.replace(gpu, index=index) for index, gpu in enumerate(found))
        if not re.fullmatch(r"all|\d+", self._asked_gpus.strip()):
            raise UsageError(
                f"--llmperf-gpus={self._asked_gpus!r} with --llmperf-cluster={self.address!r}: Ray chooses among its GPUs; a "
                "count or 'all' is needed.",
            )
        why = f"--llmperf-cluster={self.address!r} lends none: {placement.described(self.nodes)}"
        return pool(self._asked_gpus, Inventory(gpus=numbered, notes=(why,)))

    def require(self, plan: LoadPlan) -> None:
        """Raise UsageError when the cluster could not hold the plan's ranks even if nobody else used it."""
        placement.bundles(plan, self.nodes, self.address)

    def require_alike(self, need: Need) -> None:
        """Raise UsageError where a test needs some of the GPUs and not others: Ray chooses among all of them."""
        gpus = self.gpus.gpus
        able = eligible(need, gpus)
        if len(able) < len(gpus):
            raise UsageError(
                f"needs {need}, which {len(able)} of the {len(gpus)} GPUs of --llmperf-cluster={self.address!r} meet, and Ray "
                "chooses among all. Run it on a cluster of GPUs that are alike, or leave the condition out.",
            )

    def where(self, plan: LoadPlan) -> tuple[Node, ...]:
        """Hosts that a plan would take while nobody else holds anything. Raises UsageError."""
        wanted = placement.bundles(plan, self.nodes, self.address)
        return placement.hosts(wanted, self.nodes, close=placement.together(plan))

    def hold(self, plan: LoadPlan) -> None:
        """Hold bundles for the plan: those held already where they will do, else others, after unloading what is there.

        Raises:
            UsageError: the cluster lends too little. DeviceBusy: others hold it for longer than the wait limit.

        """
        alive = self._link is not None and self._link.alive
        if (
            alive
            and self._held is not None
            and self._held.device == plan.device
            and len(self._places) >= plan.ranks
        ):
            return
        wanted = placement.bundles(plan, self.nodes, self.address)
        self.release()
        self._on_wait(f"{plan.ranks} on {self.address}")
        request = Take(bundles=wanted, together=placement.together(plan), wait_s=self._wait_s)
        self._places = (
            self._connected().ask(request, Taken, deadline_s=self._wait_s + _TAKE_S).places
        )
        self._held = plan
        self._require_same_version()

    def start(self, plan: LoadPlan, python: str) -> ClusterGroup:
        """Start the ranks of a plan in the bundles held, and wait until each has said hello.

        Raises:
            UsageError: the interpreter cannot be run there. WorkerDied, WorkerHung: a rank did not
                come up.
        """
        link, model = self._link, f"{os.getpid()}-{next(_numbers)}"
        if link is None or not self._places:
            raise WorkerDied(
                f"the connection to {self.address!r} ended before the ranks of {plan.strategy!r} were started."
            )
        order = Launch(
            model=model,
            ranks=plan.ranks,
            python="" if python == sys.executable else python,
            program=WORKER,
            cwd=str(Path.cwd()),
            env=carried(os.environ),
            deadline_s=START_DEADLINE_S,
        )
        pairs = [socket.socketpair() for _ in range(plan.ranks)]
        try:
            launched = link.ask(
                order,
                Launched,
                deadline_s=2 * START_DEADLINE_S,
                sockets=[theirs for _, theirs in pairs],
            )
        except BaseException:
            for ours, _ in pairs:
                ours.close()
            raise
        finally:
            for _, theirs in pairs:
                theirs.close()
        self._meet[plan] = launched.meet.rpartition(":")[0]
        stem = re.sub(
            r"[^A-Za-z0-9._+-]+", "-", f"{plan.engine}-{plan.model.name}-{plan.strategy}"
        )[:100]
        ranks = tuple(
            ClusterRank(
                link,
                pairs[rank][0],
                model=model,
                rank=rank,
                pid=pid,
                place=place,
                log=self._log(stem, model, rank),
            )
            for rank, (pid, place) in enumerate(zip(launched.pids, self._places, strict=False))
        )
        group = ClusterGroup(ranks, name=stem, silence_s=SILENCE_S)
        group.greet(python or "Ray's Python there", START_DEADLINE_S)
        return group

    def facts(self, plan: LoadPlan) -> dict[str, Fact]:
        """What a record says of the hosts: the first rank's own facts, how many they are, and each rank's."""
        places = self._places[: plan.ranks]
        names = "; ".join(f"rank {rank}: {place}" for rank, place in enumerate(places))
        n_hosts, meet = len({place.node for place in places}), self._meet.get(plan) or None
        return {
            **places[0].facts,
            "cluster": "ray",
            "n_hosts": n_hosts,
            "rank_hosts": names,
            "rendezvous": meet,
        }

    def room_bytes(self, plan: LoadPlan) -> int:
        """Memory of the smallest device (or host) held, whatever is on it."""
        if plan.device.startswith("cuda"):
            return min((gpu.total_bytes for gpu in self.gpus.gpus), default=0)
        return min((place.memory_bytes for place in self._places), default=0)

    def fits(self, plans: Sequence[LoadPlan]) -> bool:
        """Whether models of these plans can be loaded at once: on one kind of device, in its memory by what is predicted."""
        if len({plan.device for plan in plans}) > 1:
            return False
        needed = sum(needed_bytes(plan) or 0 for plan in plans)
        return not self._places or needed <= self.room_bytes(plans[0]) * USABLE_SHARE

    def release(self) -> None:
        """Unload what is in the bundles and give them back. May be called again."""
        held, self._held = self._held, None
        if held is None:
            return
        try:
            self.before_release()
        finally:
            self._places = ()
            if self._link is not None and self._link.alive:
                with contextlib.suppress(WorkerDied):  # Ray gives back what a lost connection held
                    self._link.ask(GiveBack(), Done, deadline_s=_TAKE_S)

    def close(self) -> None:
        """Give everything back and leave the cluster. May be called again."""
        link, self._link = self._link, None
        self._held, self._places = None, ()
        if link is not None:
            link.close()

    def _connected(self) -> Link:
        if self._link is None or not self._link.alive:
            if self._link is not None:
                self._link.kill()
            self._held, self._places = None, ()
            self._link = Link.open(self.address, self._log_dir)
        return self._link

    def _require_same_version(self) -> None:
        """Raise UsageError, with everything given back, where a host's messages may mean something else."""
        ours = importlib.metadata.version("pytest-llmperf")
        others = "; ".join(
            dict.fromkeys(
                f"{place.version} on {place}" for place in self._places if place.version != ours
            )
        )
        if others:
            self.release()
            raise UsageError(
                f"--llmperf-cluster={self.address!r}: pytest-llmperf is {ours} here and {others}. Install the same version.",
            )

    def _log(self, stem: str, model: str, rank: int) -> Path:
        return self._log_dir / f"{stem}-{model}-rank{rank}.log"


def carried(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of this session that its ranks get on other hosts."""
    return {
        name: value
        for name, value in environ.items()
        if name.startswith(_CARRIED) and name not in _LEFT_HERE
    }
