"""What a scripted model says of its pruning: as much as its plan asks for, or as much as the plan of its lies."""

from __future__ import annotations

from typing import Any

from pytest_llmperf.core.effective import Pruned
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.strategies.pruned import parse_pruning


def fields(plan: LoadPlan, weights: int, layers: int) -> dict[str, Any]:
    """The fields of Effective for a plan with a pruning part: every one of `layers` lacks the same share of `weights`."""
    if plan.pruning is None:
        return {}
    asked = parse_pruning(plan.pruning)
    gone = round(weights * asked.sparsity)
    pruned = Pruned(
        asked=str(asked),
        layers=layers,
        weights_before=weights,
        weights=weights - gone if asked.structured else weights,
        zeros=0 if asked.structured else gone,
        lowest=gone / weights,
        lowest_layer="layer.0",
        highest=gone / weights,
        highest_layer="layer.0",
        pattern=":".join(map(str, asked.pattern)) if asked.pattern else None,
        groups=weights // asked.pattern[1] if asked.pattern else 0,
        stored="smaller" if asked.structured else "dense",
        method={"calibration": "none"},
    )
    notes = (
        () if asked.structured else (f"{asked} saves no memory and no time: the script says so",)
    )
    return {"pruned": pruned, "sparsity": pruned.sparsity, "notes": notes}
