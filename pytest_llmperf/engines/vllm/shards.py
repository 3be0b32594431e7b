"""What one rank of vLLM holds of a model that several share: its bytes, and what the split gives it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed
from vllm.distributed.parallel_state import get_world_group
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from pytest_llmperf.core.effective import Shard
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.vllm.inspection import (
    held_aside,
    linears,
    own_tensors,
    shape_of,
    tensors,
)
from pytest_llmperf.instruments.layers import identity
from pytest_llmperf.instruments.ranks import device_identity


def shards(model: nn.Module, plan: LoadPlan, device: torch.device) -> tuple[Shard, ...]:
    """One row, of this rank; nothing for a model on one device."""
    if plan.ranks == 1:
        return ()
    own = sum(group.bytes for group in tensors(model))
    kept, whole = _split(model, own)
    world = get_world_group()
    shard = Shard(
        rank=world.rank,
        device=device_identity(device),
        backend=str(dist.get_backend(world.device_group)),
        bytes=own,
        whole_bytes=whole,
        stage_bytes=whole,
        kept_bytes=kept,
        holds=f"part {world.rank + 1} of {plan.tp} of each layer",
    )
    return (shard,)


def own_shared_memory() -> None:
    """Give the shared memory through which CPU ranks reduce a name of this run's own.

    vLLM 0.32 names it alike in every run that a launcher started, and one that was killed leaves it
    behind: the next one fails.
    """
    named = _CPUSHMDistributed.make_group_name
    if not getattr(named, "of_this_run", False):

        def make_group_name(communicator: Any) -> str:
            return f"/{_run()}-{named(communicator).strip('/')}"

        make_group_name.of_this_run = True  # type: ignore[attr-defined]
        _CPUSHMDistributed.make_group_name = staticmethod(make_group_name)


def leave_shared_memory() -> None:
    """Remove what this run's ranks have there; whoever comes first does it."""
    # Where it is.
    for file in Path("/dev/shm").glob(f"*{_run()}*cpushm*") if "MASTER_PORT" in os.environ else ():  # noqa: S108
        file.unlink(missing_ok=True)


def _run() -> str:
    return f"llmperf-{os.environ['MASTER_PORT']}"


def _split(model: nn.Module, own: int) -> tuple[int, int]:
    """Bytes that every rank keeps in full, and those of the whole model, from how each layer says it is divided."""
    cut, divided = 0, 0.0
    seen: set[tuple[object, ...]] = set()
    layers: dict[int, Any] = {id(layer): layer for _, layer in linears(model)}
    layers |= {
        id(module): module
        for module in model.modules()
        if isinstance(module, VocabParallelEmbedding)
    }
    for layer in layers.values():
        held = held_aside(layer)
        fresh = [tensor for tensor in own_tensors(layer) if identity(tensor) not in seen]
        seen.update(map(identity, fresh))
        size = sum(tensor.nbytes for tensor in fresh) + (held.bytes if held is not None else 0)
        cut += size
        divided += size * _times(layer)
    return own - cut, own - cut + round(divided)


def _times(layer: Any) -> float:
    """How many times this rank's part the whole layer is."""
    outputs, inputs = shape_of(layer)
    if isinstance(layer, VocabParallelEmbedding):
        return float(layer.num_embeddings_padded / outputs)
    return float(layer.output_size * layer.input_size / (outputs * inputs))
