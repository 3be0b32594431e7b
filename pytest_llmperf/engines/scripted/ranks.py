"""What a rank of the scripted engine says of its part of a spread model."""

from __future__ import annotations

import os

from pytest_llmperf.core.effective import OWN_TENSOR_PARALLEL, Shard
from pytest_llmperf.core.plan import LoadPlan

_BACKENDS = {"cpu": "gloo", "cuda": "nccl"}


def cut(plan: LoadPlan) -> int:
    """Return the number of ranks that a script's weights are divided over."""
    return plan.tp * plan.fsdp * plan.pp


def carrier(plan: LoadPlan) -> str:
    """Return who carries out tensor parallelism, as asked; empty for a plan without it."""
    if plan.tp == 1:
        return ""
    return OWN_TENSOR_PARALLEL if plan.tp_by == "own" else "scripted"


def shards(plan: LoadPlan, shard_bytes: int) -> tuple[Shard, ...]:
    """Return the row of this rank; none for a plan without parallel parts."""
    if plan.spread == 1:
        return ()
    rank = int(os.environ.get("RANK", "0"))
    kind = plan.device.partition(":")[0]
    return (
        Shard(
            rank=rank,
            device=f"scripted {kind} {rank}",
            backend=_BACKENDS.get(kind, "gloo"),
            bytes=shard_bytes,
            whole_bytes=shard_bytes * cut(plan),
            stage_bytes=shard_bytes * plan.tp * plan.fsdp,
            kept_bytes=0,
            holds=f"part {rank + 1} of {plan.ranks}",
        ),
    )
