"""Speed-up and efficiency of several devices against one, of two runs measured in turn. Pure."""

from __future__ import annotations

from msgspec import structs

from pytest_llmperf.core.effective import Effective
from pytest_llmperf.core.metrics.quantities import TABLE
from pytest_llmperf.core.metrics.results import Quantity, RunResult
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.verdicts.estimate import Estimate, NotMeasurable

SPREAD = ("ranks", "tp", "tp_by", "fsdp", "pp", "dp", "weights_dtype")
"""Fields of a load plan that say over how many devices it is spread, and the dtype.

What "auto" means as a dtype shows only when the model is loaded.
"""


def scales(candidate: tuple[LoadPlan, Effective], reference: tuple[LoadPlan, Effective]) -> bool:
    """Whether the candidate is the reference on more devices, and nothing else.

    Both the plans and the dtypes in effect decide.
    """
    plan, effective = candidate
    reference_plan, reference_effective = reference
    return (
        plan.ranks > reference_plan.ranks
        and _spread_like(plan, reference_plan) == reference_plan
        and _dtypes(effective) == _dtypes(reference_effective)
    )


def _spread_like(plan: LoadPlan, reference: LoadPlan) -> LoadPlan:
    """Return `plan` over the devices of `reference`."""
    spread = {name: getattr(reference, name) for name in SPREAD}
    return structs.replace(plan, strategy=reference.strategy, **spread)


def _dtypes(effective: Effective) -> tuple[object, ...]:
    return effective.compute_dtype, frozenset(effective.parameter_bytes_by_dtype)


def scaled(candidate: RunResult, reference: RunResult, devices: float) -> RunResult:
    """Return `candidate` with its speed-up over `reference`, and its efficiency.

    Efficiency is the speed-up divided by `devices`, how many times as many it runs on.
    """
    speed_up = _speed_up(candidate.throughput, reference.throughput)
    if isinstance(speed_up, NotMeasurable):
        efficiency: Quantity = NotMeasurable("efficiency", speed_up.reason)
    else:
        efficiency = structs.replace(
            speed_up * (1 / devices), name="efficiency", unit=TABLE["efficiency"].unit
        )
    return structs.replace(candidate, speed_up=speed_up, efficiency=efficiency)


def _speed_up(candidate: Quantity, reference: Quantity) -> Quantity:
    if isinstance(candidate, Estimate) and isinstance(reference, Estimate):
        return structs.replace(candidate / reference, name="speed_up")
    unknown = candidate if isinstance(candidate, NotMeasurable) else reference
    assert isinstance(unknown, NotMeasurable)  # noqa: S101 - one of the two is no Estimate
    return NotMeasurable("speed_up", unknown.reason)
