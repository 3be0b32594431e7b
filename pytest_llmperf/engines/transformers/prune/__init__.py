"""Prunes a loaded model in its own dtype, with statistics in float32.

It comes before quantization and adapters.
"""

from __future__ import annotations

import gc
import time
import weakref
from typing import Any

import torch
from torch import nn

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.transformers.prune.blocks import (
    Block,
    decoder_blocks,
    left_out,
    linears,
    matrix,
)
from pytest_llmperf.engines.transformers.prune.calibration import Calibration, calibration
from pytest_llmperf.engines.transformers.prune.measure import Count, PrunedLayers, count, sizes
from pytest_llmperf.engines.transformers.prune.semi_structured import Backend, backend, compress
from pytest_llmperf.engines.transformers.prune.structured import remove_structures
from pytest_llmperf.engines.transformers.prune.unstructured import (
    METHODS,
    needs_calibration,
    prune_weights,
)
from pytest_llmperf.engines.transformers.quantize.plain import load_as_linear
from pytest_llmperf.strategies.pruned import Pruning, parse_pruning

__all__ = ["PrunedLayers", "prune"]


def prune(
    model: Any, tokenizer: Any | None, plan: LoadPlan, device: torch.device
) -> PrunedLayers | None:
    """Prune `model` in place as `plan.pruning` says, calibrated on the bundled prompts.

    Returns None where the plan has no pruning. Raises LoadError for a model that cannot be pruned
    so, or whose activations are not finite.
    """
    if plan.pruning is None:
        return None
    start_ns = time.perf_counter_ns()
    pruning = parse_pruning(plan.pruning)
    kernels = _sparse_kernels(pruning, plan, device)
    if not isinstance(kernels, str):
        load_as_linear(model)
    blocks = decoder_blocks(model)
    unpruned = left_out(model, blocks)
    weights_before = sizes(blocks)
    needs_text = needs_calibration(pruning.method)
    text = calibration(model, tokenizer, device, plan.seed) if needs_text else None
    method = _prune(model, blocks, pruning, text)
    counts = _counts(blocks, weights_before, pruning)
    stored, notes = _store(blocks, pruning, kernels)
    _free_memory(device)
    seconds = round((time.perf_counter_ns() - start_ns) / 1e9, 3)
    return PrunedLayers(
        pruning=pruning,
        layers=_weak_references(blocks),
        counts=counts,
        places=_places(blocks, pruning),
        left_out=unpruned,
        stored=stored,
        method={**method, "seconds": seconds},
        notes=notes,
    )


@torch.no_grad()
def _prune(
    model: Any, blocks: list[Block], pruning: Pruning, text: Calibration | None
) -> dict[str, str | int | float]:
    """Prune the blocks. Returns the method's parameters and the facts of its calibration."""
    if pruning.structured and text is not None:
        return remove_structures(model, blocks, pruning, text) | text.facts
    prune_weights(model, blocks, pruning, text)
    return METHODS[pruning.method].parameters | _facts(text)


def _facts(text: Calibration | None) -> dict[str, str | int | float]:
    return text.facts if text is not None else {"calibration": "none"}


def _counts(
    blocks: list[Block], weights_before: dict[str, int], pruning: Pruning
) -> dict[str, Count]:
    return {
        name: count(matrix(layer), weights_before[name], pruning)
        for name, layer in linears(blocks).items()
    }


def _weak_references(blocks: list[Block]) -> dict[str, weakref.ref[nn.Module]]:
    return {name: weakref.ref(layer) for name, layer in linears(blocks).items()}


def _places(blocks: list[Block], pruning: Pruning) -> dict[str, str]:
    """Return for each layer where its share is counted: by itself, or with its block."""
    return {
        name: block.name if pruning.structured else name
        for block in blocks
        for name in block.linears
    }


def _sparse_kernels(pruning: Pruning, plan: LoadPlan, device: torch.device) -> Backend | str:
    """Return what will multiply the pruned weights as sparse ones, or why nothing does."""
    if pruning.pattern is None:
        return "no kernel here skips zeros that can be anywhere"
    if plan.quantization is not None:
        return f"{plan.quantization} stores the weights its own way"
    return "adapters are added to plain weights" if plan.adapters else backend(device)


def _store(
    blocks: list[Block], pruning: Pruning, kernels: Backend | str
) -> tuple[str, tuple[str, ...]]:
    """Store the pruned weights. Returns how they are stored, and what a report has to say of it."""
    if pruning.structured:
        return "smaller", ()
    if isinstance(kernels, str):
        note = (
            f"{pruning} saves no memory and no time, "
            f"its zeros are stored and multiplied like other weights: {kernels}"
        )
        return "dense", (note,)
    compressed, dense = compress(blocks, kernels)
    note = (
        f"{pruning}: {_compressed_note(compressed, dense)} ({kernels.BACKEND}){_dense_note(dense)}"
    )
    return "2:4 compressed" if compressed else "dense", (note,)


def _compressed_note(compressed: int, dense: tuple[str, ...]) -> str:
    return f"{compressed} of {compressed + len(dense)} linear layers run on sparse tensor cores"


def _dense_note(dense: tuple[str, ...]) -> str:
    if not dense:
        return ""
    return f"; {len(dense)} stay dense (dtype, shape or class), the first is {dense[0]}"


def _free_memory(device: torch.device) -> None:
    """Give back what calibration took: the device's memory is measured from here on."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
