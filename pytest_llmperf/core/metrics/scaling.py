"""What several devices give against one: speed-up and efficiency, from a pair of runs measured in turn. Pure."""

from __future__ import annotations

from msgspec import structs

from pytest_llmperf.core.effective import Effective
from pytest_llmperf.core.metrics.quantities import TABLE
from pytest_llmperf.core.metrics.results import Quantity, RunResult
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.verdicts.estimate import Estimate, NotMeasurable

SPREAD = ("ranks", "tp", "fsdp", "pp", "dp", "weights_dtype")
"""Fields of a load plan that say over how many devices it is spread; and the dtype: what "auto" is shows when it is loaded."""


def scales(candidate: tuple[LoadPlan, Effective], reference: tuple[LoadPlan, Effective]) -> bool:
    """Whether the candidate is the reference on more devices, and nothing else: by the plans, and by the dtypes in effect."""
    (ours, ours_in_effect), (theirs, theirs_in_effect) = candidate, reference
    alike = {name: getattr(theirs, name) for name in SPREAD}
    same_plan = structs.replace(ours, strategy=theirs.strategy, **alike) == theirs
    return (
        ours.ranks > theirs.ranks
        and same_plan
        and _dtypes(ours_in_effect) == _dtypes(theirs_in_effect)
    )


def _dtypes(effective: Effective) -> tuple[object, ...]:
    return effective.compute_dtype, frozenset(effective.parameter_bytes_by_dtype)


def scaled(candidate: RunResult, reference: RunResult, devices: float) -> RunResult:
    """`candidate` with its speed-up over `reference`, and its efficiency: the speed-up over how many times the `devices`."""
    speed_up = _speed_up(candidate.throughput, reference.throughput)
    if isinstance(speed_up, NotMeasurable):
        return structs.replace(
            candidate, speed_up=speed_up, efficiency=NotMeasurable("efficiency", speed_up.reason)
        )
    efficiency = structs.replace(
        speed_up * (1 / devices), name="efficiency", unit=TABLE["efficiency"].unit
    )
    return structs.replace(candidate, speed_up=speed_up, efficiency=efficiency)


def _speed_up(ours: Quantity, theirs: Quantity) -> Quantity:
    for side in (ours, theirs):
        if isinstance(side, NotMeasurable):
            return NotMeasurable("speed_up", side.reason)
    assert isinstance(ours, Estimate)  # noqa: S101 - the loop above has seen to it
    return structs.replace(ours / theirs, name="speed_up")
