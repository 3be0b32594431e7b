"""What is in effect: tensors by dtype and device, linear layers by class, and a probe forward.

The probe runs one token through the model.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from msgspec import structs

from pytest_llmperf.core.effective import (
    PLAIN_FLOATS,
    ComputeGroup,
    Effective,
    OtherMatrices,
    Quantized,
    Shard,
    TensorGroup,
)
from pytest_llmperf.engines.loading.checkpoint import quantized_by
from pytest_llmperf.engines.outputs.decoding import autocast, eager
from pytest_llmperf.engines.transformers.accounting.matrices import other_matrices
from pytest_llmperf.engines.transformers.load import ModelOnDevice
from pytest_llmperf.engines.transformers.observed.attention import attention_in_use
from pytest_llmperf.engines.transformers.observed.calls import Calls, watched_calls
from pytest_llmperf.engines.transformers.observed.compiled import Matrices, matrices_of
from pytest_llmperf.engines.transformers.observed.compute import compute_groups, most_computed
from pytest_llmperf.engines.transformers.observed.groups import (
    assistant_tensors,
    linear_groups,
    parameter_tensors,
    quantized_linears,
    tensor_groups,
)
from pytest_llmperf.engines.transformers.observed.holdings import held_tensors
from pytest_llmperf.engines.transformers.observed.idle_adapters import bypassed
from pytest_llmperf.engines.transformers.observed.surroundings import notes_on
from pytest_llmperf.engines.transformers.parallel.division import described as left_whole
from pytest_llmperf.engines.transformers.parallel.library import carrier
from pytest_llmperf.engines.transformers.parallel.offload import offloaded_bytes
from pytest_llmperf.engines.transformers.quantize.report import quantized_layers
from pytest_llmperf.errors import LoadError

__all__ = [
    "Probe",
    "RunFacts",
    "describe",
    "linear_groups",
    "parameter_tensors",
    "probe_forward",
    "tensor_groups",
]


def _not_compiled(_matrices: Matrices) -> float | None:
    return None


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What the last run used; empty before any run. The fields are those of Effective.

    `compiled_share` gives the share of the matrices' products that ran in compiled graphs.
    """

    cache: str = ""
    compile_mode: str | None = None
    compiled_graphs: int = 0
    decode_loop: str = ""
    assistance: str = ""
    batching: str = ""
    notes: tuple[str, ...] = ()
    compiled_share: Callable[[Matrices], float | None] = _not_compiled


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What one forward pass of one token did. `computes` are its products with weights."""

    calls: Calls
    computes: tuple[ComputeGroup, ...]
    autocast_dtype: str | None
    is_finite: bool


def describe(loaded: ModelOnDevice, *, last_run: RunFacts | None = None) -> Effective:
    """Describe what `loaded` holds and does now.

    Runs one forward pass of one token, eagerly, outside any compiled graph.
    """
    probe = probe_forward(loaded)
    tensors = tensor_groups(loaded.model)
    facts = last_run or RunFacts()
    described = _with_calls(_held_by(loaded, tensors, facts), loaded, probe, facts)
    seen = [
        *notes_on(loaded, tensors, is_finite=probe.is_finite),
        *(left_whole(shard.left_whole) for shard in described.shards if shard.left_whole),
    ]
    noted = structs.replace(described, notes=(*loaded.not_read, *seen, *described.notes))
    return _with_pruning(_with_adapters(noted, loaded, probe.calls), loaded)


def _held_by(
    loaded: ModelOnDevice, tensors: tuple[TensorGroup, ...], last_run: RunFacts
) -> Effective:
    """Describe what is held, and what the last run used; the calls are not known yet."""
    return Effective(
        engine=loaded.plan.engine,
        model_class=type(loaded.model).__name__,
        tensors=tensors + _tensors_of_assistant(loaded),
        linears=linear_groups(loaded.model),
        compute_dtype="",
        autocast_dtype=None,
        checkpoint_dtype=loaded.checkpoint_dtype,
        attention="",
        padding_side=_padding_side(loaded),
        device=str(loaded.device),
        ranks=loaded.plan.ranks,
        shards=_shards(loaded, tensors),
        offloaded_bytes=offloaded_bytes(loaded.model),
        quantized=_quantized(loaded),
        tensor_parallel=carrier(loaded.model),
        **vars(last_run) | {"compiled_share": None},
    )


def _with_calls(
    described: Effective, loaded: ModelOnDevice, probe: Probe, last_run: RunFacts
) -> Effective:
    """Add what a forward pass was seen to do."""
    matrices = other_matrices(loaded.model, probe.calls.multiplied)
    return structs.replace(
        described,
        compute_dtype=most_computed(probe.computes),
        computes=probe.computes,
        autocast_dtype=probe.autocast_dtype,
        attention=attention_in_use(loaded.model, probe.calls),
        offloaded_at_once_bytes=probe.calls.most_on_device_bytes,
        other_matrices=matrices,
        stored_quantized=_stored_quantized(loaded, matrices),
        compiled_share=last_run.compiled_share(matrices_of(loaded.model, probe.calls)),
    )


def _padding_side(loaded: ModelOnDevice) -> str:
    return "left" if loaded.tokenizer is None else str(loaded.tokenizer.padding_side)


def _shards(loaded: ModelOnDevice, tensors: tuple[TensorGroup, ...]) -> tuple[Shard, ...]:
    if loaded.cut is None:
        return ()
    return (loaded.cut.shard(sum(group.bytes for group in tensors)),)


def _quantized(loaded: ModelOnDevice) -> Quantized | None:
    if loaded.conversion is None:
        return None
    return quantized_layers(loaded.model, loaded.conversion)


def _stored_quantized(loaded: ModelOnDevice, matrices: tuple[OtherMatrices, ...]) -> str:
    """Return who quantized layers that nothing here did: the checkpoint, or a factory; else ""."""
    asked = loaded.plan.quantization is not None or loaded.conversion is not None
    is_packed = any(group.dtype not in PLAIN_FLOATS for group in matrices)
    if asked or not (is_packed or quantized_linears(loaded.model)):
        return ""
    return quantized_by(loaded.model.config) or "the model's factory"


def _with_adapters(described: Effective, loaded: ModelOnDevice, calls: Calls) -> Effective:
    adapters = loaded.adapters
    if adapters is None:
        return described
    groups = tuple(
        structs.replace(group, bypassed_layers=bypassed(loaded.model, group.name, calls.modules))
        for group in adapters.groups()
    )
    return structs.replace(described, adapters=adapters.in_force(), resident_adapters=groups)


def _with_pruning(described: Effective, loaded: ModelOnDevice) -> Effective:
    if loaded.pruned is None:
        return described
    pruned = loaded.pruned.report()
    notes = (*described.notes, *loaded.pruned.notes)
    return structs.replace(described, sparsity=pruned.sparsity, pruned=pruned, notes=notes)


def _tensors_of_assistant(loaded: ModelOnDevice) -> tuple[TensorGroup, ...]:
    return () if loaded.assistant is None else assistant_tensors(loaded.assistant.model)


def probe_forward(loaded: ModelOnDevice) -> Probe:
    """Run one forward pass of one token under the plan's autocast, past any compiled graph.

    Raises LoadError if it fails.
    """
    with (
        torch.no_grad(),
        autocast(loaded.device, loaded.plan.autocast_dtype),
        _watched(loaded) as calls,
    ):
        autocast_dtype = _active_autocast(loaded.device.type)
        logits = _forward_one_token(loaded)
    return Probe(
        calls=calls,
        computes=compute_groups(loaded.model, calls.products),
        autocast_dtype=autocast_dtype,
        is_finite=logits is None or bool(logits.isfinite().all()),
    )


def _watched(loaded: ModelOnDevice) -> AbstractContextManager[Calls]:
    held = held_tensors(loaded.model)
    return watched_calls(loaded.model, held, weights_move=loaded.plan.offload is not None)


def _forward_one_token(loaded: ModelOnDevice) -> torch.Tensor | None:
    """Return the logits of one token; None for a model that gives something else."""
    token = torch.zeros((1, 1), dtype=torch.long, device=loaded.device)
    try:
        output = eager(loaded.model)(input_ids=token, use_cache=False)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        raise LoadError(
            f"model {loaded.plan.model.name!r}: a forward pass of one token failed: {error}"
        ) from error
    logits = getattr(output, "logits", None)
    return logits if isinstance(logits, torch.Tensor) else None


def _active_autocast(device: str) -> str | None:
    if not torch.is_autocast_enabled(device):
        return None
    return str(torch.get_autocast_dtype(device)).removeprefix("torch.")
