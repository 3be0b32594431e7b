"""What one rank of vLLM holds of a model that several share.

These are its bytes, and what the split gives it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from vllm import __version__
from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed
from vllm.distributed.parallel_state import get_tensor_model_parallel_world_size, get_world_group
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from pytest_llmperf.core.effective import Shard
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.vllm.inspection import (
    distinct_linears,
    library_weight,
    own_tensors,
    shape_of,
    tensors,
)
from pytest_llmperf.instruments.layers import identity
from pytest_llmperf.instruments.ranks import device_identity


def shards(model: nn.Module, plan: LoadPlan, device: torch.device) -> tuple[Shard, ...]:
    """Return one row, of this rank; nothing for a model on one device."""
    if plan.ranks == 1:
        return ()
    own_bytes = sum(group.bytes for group in tensors(model))
    kept_bytes, whole_bytes = _split(model, own_bytes)
    world = get_world_group()
    shard = Shard(
        rank=world.rank,
        device=device_identity(device),
        backend=str(dist.get_backend(world.device_group)),
        bytes=own_bytes,
        whole_bytes=whole_bytes,
        stage_bytes=whole_bytes,
        kept_bytes=kept_bytes,
        holds=f"part {world.rank + 1} of {plan.tp} of each layer",
    )
    return (shard,)


def carrier() -> str:
    """Return who carries out tensor parallelism in this process: vLLM; empty on one device."""
    ranks = get_tensor_model_parallel_world_size()
    return f"vllm {__version__}" if ranks > 1 else ""


def own_shared_memory() -> None:
    """Give the shared memory through which CPU ranks reduce a name of this run's own.

    vLLM 0.32 names it alike in every run that a launcher started, and one that was killed leaves it
    behind: the next one fails.
    """
    original = _CPUSHMDistributed.make_group_name
    if not getattr(original, "of_this_run", False):

        def make_group_name(communicator: Any) -> str:
            return f"/{_run_name()}-{original(communicator).strip('/')}"

        make_group_name.of_this_run = True  # type: ignore[attr-defined]
        _CPUSHMDistributed.make_group_name = staticmethod(make_group_name)


def leave_shared_memory() -> None:
    """Remove what this run's ranks have there; whoever comes first does it."""
    if "MASTER_PORT" not in os.environ:
        return
    for file in Path("/dev/shm").glob(f"*{_run_name()}*cpushm*"):  # noqa: S108 - where it lies
        file.unlink(missing_ok=True)


def _run_name() -> str:
    return f"llmperf-{os.environ['MASTER_PORT']}"


def _split(model: nn.Module, own_bytes: int) -> tuple[int, int]:
    """Return the bytes that every rank keeps in full, and those of the whole model.

    Each layer says how it is divided.
    """
    divided_bytes, whole_of_divided = 0, 0.0
    counted: set[tuple[object, ...]] = set()
    for layer in _divided_layers(model):
        own = [tensor for tensor in own_tensors(layer) if identity(tensor) not in counted]
        counted.update(map(identity, own))
        size = sum(tensor.nbytes for tensor in own) + _library_bytes(layer)
        divided_bytes += size
        whole_of_divided += size * _times(layer)
    kept_bytes = own_bytes - divided_bytes
    return kept_bytes, kept_bytes + round(whole_of_divided)


def _divided_layers(model: nn.Module) -> list[Any]:
    """Return the linear layers and embeddings, each once."""
    layers = {id(layer): layer for layer in distinct_linears(model)}
    for module in model.modules():
        if isinstance(module, VocabParallelEmbedding):
            layers[id(module)] = module
    return list(layers.values())


def _library_bytes(layer: Any) -> int:
    weight = library_weight(layer)
    return weight.bytes if weight is not None else 0


def _times(layer: Any) -> float:
    """Return how many times this rank's part the whole layer is."""
    outputs, inputs = shape_of(layer)
    if isinstance(layer, VocabParallelEmbedding):
        return float(layer.num_embeddings_padded / outputs)
    return float(layer.output_size * layer.input_size / (outputs * inputs))
