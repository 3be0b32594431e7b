"""Pruning of a loaded model, in its own dtype, with statistics in float32.

Before quantization and adapters.
"""

from __future__ import annotations

import gc
import time
import weakref
from typing import Any

import torch

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.transformers.prune.blocks import Block, decoder_blocks, left_out, matrix
from pytest_llmperf.engines.transformers.prune.calibration import Calibration, calibration
from pytest_llmperf.engines.transformers.prune.measure import Watch, count, sizes
from pytest_llmperf.engines.transformers.prune.semi_structured import Backend, backend, compress
from pytest_llmperf.engines.transformers.prune.structured import remove_structures
from pytest_llmperf.engines.transformers.prune.unstructured import (
    METHODS,
    needs_calibration,
    prune_weights,
)
from pytest_llmperf.engines.transformers.quantize.plain import load_as_linear
from pytest_llmperf.strategies.pruned import Pruning, parse_pruning

__all__ = ["Watch", "prune"]


def prune(model: Any, tokenizer: Any | None, plan: LoadPlan, device: torch.device) -> Watch | None:
    """Prune `model` in place as `plan.pruning` says, calibrated on the bundled prompts.

    None where the plan says nothing.

    Raises LoadError for a model that cannot be pruned so, or whose activations are not finite.
    """
    if plan.pruning is None:
        return None
    start_ns = time.perf_counter_ns()
    asked = parse_pruning(plan.pruning)
    kind = _sparse_kernels(asked, plan, device)
    if not isinstance(kind, str):
        load_as_linear(model)
    blocks = decoder_blocks(model)
    before, others = sizes(blocks), left_out(model, blocks)
    used = (
        calibration(model, tokenizer, device, plan.seed)
        if needs_calibration(asked.method)
        else None
    )
    method = _prune(model, blocks, asked, used)
    layers = {name: layer for block in blocks for name, layer in block.linears.items()}
    first = {name: count(matrix(layer), before[name], asked) for name, layer in layers.items()}
    stored, notes = _store(blocks, asked, kind)
    _free(device)
    facts = used.facts if used is not None else {"calibration": "none"}
    seconds = {"seconds": round((time.perf_counter_ns() - start_ns) / 1e9, 3)}
    return Watch(
        asked=asked,
        layers={name: weakref.ref(layer) for name, layer in layers.items()},
        first=first,
        places={
            name: block.name if asked.structured else name
            for block in blocks
            for name in block.linears
        },
        left_out=others,
        stored=stored,
        method={**method, **facts, **seconds},
        notes=notes,
    )


@torch.no_grad()
def _prune(
    model: Any, blocks: list[Block], asked: Pruning, used: Calibration | None
) -> dict[str, str | int | float]:
    """Prune; returns the method's parameters."""
    if asked.structured and used is not None:
        return remove_structures(model, blocks, asked, used)
    prune_weights(model, blocks, asked, used)
    return METHODS[asked.method].parameters


def _sparse_kernels(asked: Pruning, plan: LoadPlan, device: torch.device) -> Backend | str:
    """What will multiply the pruned weights as sparse ones, or why nothing does."""
    if asked.pattern is None:
        return "no kernel here skips zeros that can be anywhere"
    if plan.quantization is not None:
        return f"{plan.quantization} stores the weights its own way"
    return "adapters are added to plain weights" if plan.adapters else backend(device)


def _store(blocks: list[Block], asked: Pruning, kind: Backend | str) -> tuple[str, tuple[str, ...]]:
    """How the pruned weights are stored from here on, and what a report has to say of it."""
    if asked.structured:
        return "smaller", ()
    if isinstance(kind, str):
        return "dense", (
            f"{asked} saves no memory and no time, its zeros are stored and multiplied like other weights: {kind}",
        )
    done, refused = compress(blocks, kind)
    left = (
        f"; {len(refused)} stay dense (dtype, shape or class), the first is {refused[0]}"
        if refused
        else ""
    )
    stored = "2:4 compressed" if done else "dense"
    return stored, (
        f"{asked}: {done} of {done + len(refused)} linear layers run on sparse tensor cores ({kind.BACKEND}){left}",
    )


def _free(device: torch.device) -> None:
    """Give back what calibration took: the device's memory is measured from here on."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
