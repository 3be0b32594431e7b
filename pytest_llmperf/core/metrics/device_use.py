"""How much of a device's bandwidth and arithmetic a run uses: MBU and MFU. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pytest_llmperf.core.metrics.origin import Origin, not_measurable, sampled
from pytest_llmperf.core.metrics.readings import Readings
from pytest_llmperf.core.metrics.repetitions import Repetition
from pytest_llmperf.core.metrics.results import Quantity
from pytest_llmperf.core.trace import Ceilings, StepCost
from pytest_llmperf.core.verdicts.estimate import Estimate, NotMeasurable
from pytest_llmperf.errors import BeyondCeiling

NAMES = ("mbu", "mfu", "prefill_mfu")


def device_use(
    repetitions: Sequence[Repetition], readings: Readings, origin: Origin
) -> Mapping[str, Quantity]:
    """Return MBU and MFU of the decode step, and MFU of the prompt.

    Raises BeyondCeiling for a share above 1: the time, the ceiling or the cost is wrong.
    """
    step, ceilings = readings.step, readings.ceilings
    if step is None:
        return not_measurable(NAMES, "this engine does not tell what a step moves")
    if ceilings is None:
        return not_measurable(NAMES, "the ceilings of this device were not measured")
    bandwidth = _bandwidth_use(repetitions, step, ceilings.bytes_per_s, origin)
    flop_per_s = ceilings.matmul_flop_per_s.get(step.compute_dtype)
    if flop_per_s:
        arithmetic = _arithmetic_use(repetitions, step, flop_per_s, origin)
    else:
        reason = f"the matmul rate of {step.compute_dtype} was not measured"
        arithmetic = dict(not_measurable(("mfu", "prefill_mfu"), reason))
    shares = {"mbu": bandwidth, **arithmetic}
    _require_possible(shares, ceilings)
    return shares


def _bandwidth_use(
    repetitions: Sequence[Repetition], step: StepCost, ceiling_bytes_per_s: float, origin: Origin
) -> Quantity:
    if not all(repetition.decodes for repetition in repetitions):
        return NotMeasurable("mbu", "there is no decode step")
    samples = [
        _step_bytes(repetition, step) / _step_s(repetition) / ceiling_bytes_per_s
        for repetition in repetitions
    ]
    return sampled("mbu", samples, origin)


def _arithmetic_use(
    repetitions: Sequence[Repetition], step: StepCost, flop_per_s: float, origin: Origin
) -> dict[str, Quantity]:
    """Return both MFU; that of a run without a decode step is that of its prompt."""
    prefill = [
        _prompt_flops(repetition, step) / repetition.ttft_s / flop_per_s
        for repetition in repetitions
    ]
    decode = prefill
    if all(repetition.decodes for repetition in repetitions):
        decode = [
            _step_flops(repetition, step) / repetition.tpot_s / flop_per_s
            for repetition in repetitions
        ]
    return {
        "mfu": sampled("mfu", decode, origin),
        "prefill_mfu": sampled("prefill_mfu", prefill, origin),
    }


def _step_s(repetition: Repetition) -> float:
    """Return the time of one forward pass of the measured model.

    It is the TPOT, but where a pass checks several tokens that were proposed.
    """
    if repetition.forwards is None:
        return repetition.tpot_s
    return repetition.decode_s / max(1, repetition.forwards - 1)


def _step_bytes(repetition: Repetition, step: StepCost) -> float:
    cache = sum(map(step.cache_bytes, repetition.requests))
    return step.weight_bytes_read + step.assistant_bytes_read + cache


def _step_flops(repetition: Repetition, step: StepCost) -> float:
    return sum(map(step.step_flops, repetition.requests))


def _prompt_flops(repetition: Repetition, step: StepCost) -> float:
    return sum(step.prompt_flops(request.n_prompt_tokens) for request in repetition.requests)


def _require_possible(quantities: Mapping[str, Quantity], ceilings: Ceilings) -> None:
    """Raise BeyondCeiling for a share of a ceiling that is above 1."""
    for name, share in quantities.items():
        if isinstance(share, Estimate) and share.value > 1:
            raise BeyondCeiling(_impossible_text(name, share.value, ceilings))


def _impossible_text(name: str, share: float, ceilings: Ceilings) -> str:
    rates = ", ".join(
        f"{rate / 1e12:.3g} TFLOP/s in {dtype}"
        for dtype, rate in ceilings.matmul_flop_per_s.items()
    )
    when = f" at {ceilings.measured_at}" if ceilings.measured_at else ""
    beside = f", beside others: {ceilings.disturbed}" if ceilings.disturbed else ""
    return (
        f"{name} is {share:.3g}, and no run uses more than all of a device. Its ceilings were "
        f"measured{when}{beside}: {_bandwidths_text(ceilings)}, {rates}. "
        "They are measured again by the next run. Where it is so again, the weights fit into a "
        "cache of the device: take a larger model, or assert on times."
    )


def _bandwidths_text(ceilings: Ceilings) -> str:
    copied = f"{ceilings.copy_bytes_per_s / 1e9:.3g} GB/s of a copy"
    if not ceilings.read_bytes_per_s:
        return copied
    return f"{copied}, {ceilings.read_bytes_per_s / 1e9:.3g} GB/s of a sum"
