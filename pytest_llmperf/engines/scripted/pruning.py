"""What a scripted model says of its pruning: as much as the plan that it claims to follow asks."""

from __future__ import annotations

from typing import Any

from pytest_llmperf.core.effective import Pruned
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.strategies.pruned import Pruning, parse_pruning


def fields(plan: LoadPlan, weights: int, layers: int) -> dict[str, Any]:
    """Return the fields of Effective for a plan with a pruning part.

    Every one of `layers` lacks the same share of `weights`.
    """
    if plan.pruning is None:
        return {}
    pruning = parse_pruning(plan.pruning)
    pruned = _pruned(pruning, weights, layers)
    notes = (f"{pruning} saves no memory and no time: the script says so",)
    return {
        "pruned": pruned,
        "sparsity": pruned.sparsity,
        "notes": () if pruning.structured else notes,
    }


def _pruned(pruning: Pruning, weights: int, layers: int) -> Pruned:
    n_pruned = round(weights * pruning.sparsity)
    structured, pattern = pruning.structured, pruning.pattern
    return Pruned(
        asked=str(pruning),
        layers=layers,
        weights_before=weights,
        weights=weights - n_pruned if structured else weights,
        zeros=0 if structured else n_pruned,
        lowest=n_pruned / weights,
        lowest_layer="layer.0",
        highest=n_pruned / weights,
        highest_layer="layer.0",
        pattern=":".join(map(str, pattern)) if pattern else None,
        groups=weights // pattern[1] if pattern else 0,
        stored="smaller" if structured else "dense",
        method={"calibration": "none"},
    )
