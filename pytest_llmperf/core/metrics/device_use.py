"""How much of a device's bandwidth and arithmetic a run uses: MBU and MFU. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pytest_llmperf.core.metrics.origin import Origin, not_measurable, sampled
from pytest_llmperf.core.metrics.readings import Readings
from pytest_llmperf.core.metrics.repetitions import Repetition
from pytest_llmperf.core.metrics.results import Quantity
from pytest_llmperf.core.trace import RequestTrace, StepCost
from pytest_llmperf.core.verdicts.estimate import NotMeasurable

NAMES = ("mbu", "mfu", "prefill_mfu")


def device_use(
    repetitions: Sequence[Repetition], readings: Readings, origin: Origin
) -> Mapping[str, Quantity]:
    """Return MBU and MFU of the decode step, and MFU of the prompt."""
    step, ceilings = readings.step, readings.ceilings
    if step is None:
        return not_measurable(NAMES, "this engine does not tell what a step moves")
    if ceilings is None:
        return not_measurable(NAMES, "the ceilings of this device were not measured")
    bandwidth = _bandwidth_use(repetitions, step, ceilings.copy_bytes_per_s, origin)
    flop_per_s = ceilings.matmul_flop_per_s.get(step.compute_dtype)
    if not flop_per_s:
        reason = f"the matmul rate of {step.compute_dtype} was not measured"
        return {"mbu": bandwidth, **not_measurable(("mfu", "prefill_mfu"), reason)}
    return {"mbu": bandwidth, **_arithmetic_use(repetitions, step, flop_per_s, origin)}


def _bandwidth_use(
    repetitions: Sequence[Repetition], step: StepCost, copy_bytes_per_s: float, origin: Origin
) -> Quantity:
    if not all(repetition.decodes for repetition in repetitions):
        return NotMeasurable("mbu", "there is no decode step")
    samples = [
        _step_bytes(repetition, step) / _step_s(repetition) / copy_bytes_per_s
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


def _positions(request: RequestTrace) -> float:
    """Return the positions that a decode step attends to, on average.

    Step i of n - 1 sees the prompt and i generated tokens.
    """
    return request.n_prompt_tokens + request.n_output_tokens / 2


def _step_s(repetition: Repetition) -> float:
    """Return the time of one forward pass of the measured model.

    It is the TPOT, but where a pass checks several tokens that were proposed.
    """
    if repetition.forwards is None:
        return repetition.tpot_s
    return repetition.decode_s / max(1, repetition.forwards - 1)


def _step_bytes(repetition: Repetition, step: StepCost) -> float:
    cache = step.kv_bytes_per_token * sum(map(_positions, repetition.requests))
    return step.weight_bytes_read + step.assistant_bytes_read + cache


def _step_flops(repetition: Repetition, step: StepCost) -> float:
    return sum(
        step.flops_per_token + step.attention_flops_per_token_per_position * _positions(request)
        for request in repetition.requests
    )


def _prompt_flops(repetition: Repetition, step: StepCost) -> float:
    """Return the FLOPs of all prompts: token i of one attends to i positions (causal).

    The output head counts once a prompt, where its last position alone has logits.
    """
    return sum(
        n * step.flops_per_token
        - (n - 1) * step.head_flops
        + step.attention_flops_per_token_per_position * n * (n + 1) / 2
        for n in (request.n_prompt_tokens for request in repetition.requests)
    )
