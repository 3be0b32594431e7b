"""The ranks of one model: their process group, and their grid of dp x pp x fsdp x tp."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines import rendezvous
from pytest_llmperf.engines.refusals.parallel import rows_of_a_replica
from pytest_llmperf.errors import LoadError, UsageError

AXES = ("dp", "pp", "fsdp", "tp")
"""Outermost first: the ranks that talk most are neighbours."""

COLLECTIVE_LIMIT = timedelta(hours=2)
"""Longer than any command.

The session ends a rank that hangs by the command's own deadline, with the stacks of all ranks.
"""


@dataclass(frozen=True)
class Grid:
    """One rank's place. `mesh` has a dimension for each of AXES; `device` is this rank's own."""

    mesh: DeviceMesh
    rank: int
    size: int
    device: torch.device
    backend: str

    def place(self, axis: str) -> int:
        """Return the number of this rank along an axis."""
        return int(self.mesh.get_local_rank(axis))

    def along(self, axis: str) -> int:
        """Return how many ranks there are along an axis."""
        return int(self.mesh[axis].size())

    def group(self, axis: str) -> dist.ProcessGroup:
        """Return the group of ranks that differ from this one along the axis alone."""
        return self.mesh.get_group(axis)

    @cached_property
    def neighbours(self) -> tuple[int, ...]:
        """Return the global ranks of this rank's pipeline, stage by stage."""
        return tuple(dist.get_process_group_ranks(self.group("pp")))

    def barrier(self) -> None:
        """Wait until every rank is here."""
        flag = torch.zeros(1, device=self.device)
        dist.all_reduce(flag)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def as_rank_0_says(self, answer: bool) -> bool:
        """Return rank 0's answer on every rank.

        Ranks that decide by their own clocks would part.
        """
        shared = torch.tensor([int(answer)], device=self.device)
        dist.broadcast(shared, src=0)
        return bool(shared.item())

    def sum_over_tp(self, value: Tensor) -> Tensor:
        """Return the sum of each tensor-parallel rank's value."""
        dist.all_reduce(value, group=self.group("tp"))
        return value


def join(plan: LoadPlan, device: torch.device) -> Grid | None:
    """Meet the other ranks of the plan. Returns None for a plan of one rank.

    Raises LoadError where this process was not started as one of them, and UsageError where torch
    lacks the backend.
    """
    if plan.ranks == 1:
        return None
    _require_started_for(plan)
    backend = _backend(plan, device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        meeting = rendezvous.store(dist, COLLECTIVE_LIMIT)
        dist.init_process_group(backend, timeout=COLLECTIVE_LIMIT, **meeting)
    return Grid(
        mesh=_mesh(plan, device),
        rank=dist.get_rank(),
        size=plan.ranks,
        device=device,
        backend=backend,
    )


def _require_started_for(plan: LoadPlan) -> None:
    """Raise LoadError unless this process was started as one of the plan's ranks."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != plan.ranks or plan.spread != plan.ranks:
        raise LoadError(
            f"strategy {plan.strategy!r} is for {plan.ranks} ranks, "
            f"and this worker was started as one of {world}."
        )


def _mesh(plan: LoadPlan, device: torch.device) -> DeviceMesh:
    shape = tuple(int(getattr(plan, axis)) for axis in AXES)
    assert prod(shape) == plan.ranks  # noqa: S101 - that is how a plan counts its ranks
    return init_device_mesh(device.type, shape, mesh_dim_names=AXES)


def _backend(plan: LoadPlan, device: torch.device) -> str:
    backend = "nccl" if device.type == "cuda" else "gloo"
    if not dist.is_backend_available(backend):
        raise UsageError(
            f"strategy {plan.strategy!r} on {device.type} needs torch with {backend}, "
            f"which {torch.__version__} lacks.",
        )
    return backend


def leave() -> None:
    """End the process group, where there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def own_rows(ids: Tensor, replicas: int, place: int) -> slice:
    """Return the rows of a [batch, width] tensor that a replica takes.

    Raises UsageError for a batch that cannot be divided.
    """
    rows = rows_of_a_replica(ids.shape[0], replicas)
    return slice(rows * place, rows * (place + 1))
