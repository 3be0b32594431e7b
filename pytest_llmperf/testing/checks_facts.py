"""Checks of what a model says of itself and its device: description, memory, energy, ceilings."""

from __future__ import annotations

import math

from pytest_llmperf.core.effective import Effective
from pytest_llmperf.core.loaded import ModelFacts
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.trace import Ceilings, MemoryGauges, StepCost
from pytest_llmperf.engines.base import LoadedModel
from pytest_llmperf.testing.bench import DECODE, Bench, Findings

DTYPES = ("float32",)


def describes_itself(model: LoadedModel, bench: Bench) -> Findings:
    """Yield where the description is incomplete, changes, or is not what the plan asks."""
    facts, before = model.opened(), model.describe().effective
    yield from _complete(facts)
    if facts.effective != before:
        differences = _differences(facts.effective, before)
        yield f"opened() and describe() differ before any run: {differences}"
    model.run(DECODE, 0)
    after = model.describe().effective
    yield from _same_after_a_run(before, after)
    yield from _follows_plan(after, bench.plan)


def _complete(facts: ModelFacts) -> Findings:
    if not _has_all_facts(facts):
        yield f"opened() lacks facts: {facts.content_hash=}, {facts.vocab_size=}, {facts.load_s=}"


def _has_all_facts(facts: ModelFacts) -> bool:
    return bool(facts.content_hash) and facts.vocab_size >= 1 and facts.load_s >= 0


def _same_after_a_run(before: Effective, after: Effective) -> Findings:
    if after.tensors != before.tensors or after.linears != before.linears:
        yield "a run changed the weights that describe() reports"
    if not after.cache:
        yield "describe() names no cache after a run"


def _follows_plan(effective: Effective, plan: LoadPlan) -> Findings:
    if effective.padding_side != "left":
        yield f"padding is on the {effective.padding_side}; a decoder needs it on the left"
    if _kind(effective.device) != _kind(plan.device) or effective.ranks != plan.ranks:
        yield (
            f"describe() says {effective.ranks} ranks on {effective.device}, "
            f"the plan {plan.ranks} on {plan.device}"
        )
    yield from _stored_as_asked(effective, plan.weights_dtype)


def _stored_as_asked(effective: Effective, dtype: str) -> Findings:
    stored = _stored_dtypes(effective)
    if dtype != "auto" and stored != {dtype}:
        yield f"linear layers are stored in {sorted(stored)}, the plan says {dtype}"


def _stored_dtypes(effective: Effective) -> set[str]:
    """Return the dtypes of the linear layers that are not quantized."""
    return {group.dtype for group in effective.linears if not group.quantized}


def _kind(device: str) -> str:
    return device.partition(":")[0]


def _differences(before: Effective, after: Effective) -> str:
    fields = Effective.__struct_fields__
    pairs = [(name, getattr(before, name), getattr(after, name)) for name in fields]
    return ", ".join(f"{name} {old!r} / {new!r}" for name, old, new in pairs if old != new)


def sane_memory(model: LoadedModel, _bench: Bench) -> Findings:
    """Yield gauges that do not hold the weights described, and unknown ones without a reason."""
    facts = model.opened()
    weights = facts.effective.weights_bytes
    measured = model.read_memory(DECODE, 0)
    readings = {
        "opened": facts.memory,
        "describe": model.describe().memory,
        "read_memory": measured,
    }
    for where, gauges in readings.items():
        yield from _weights_are(weights, where, gauges)
    if measured is not None:
        yield from _sane_gauges(measured)


def _weights_are(weights: int, where: str, gauges: MemoryGauges | None) -> Findings:
    if gauges is None:
        yield f"{where}: no memory gauges; an engine that loads models knows at least its weights"
    elif gauges.weights != weights:
        yield (
            f"{where}: memory.weights is {gauges.weights} B, the tensors described hold {weights} B"
        )


def _sane_gauges(gauges: MemoryGauges) -> Findings:
    for name in ("peak", "reserved", "process", "device", "kv_cache"):
        value = getattr(gauges, name)
        if value is None and not gauges.reasons.get(name):
            yield f"read_memory: memory.{name} is None without a reason"
        if value is not None and value <= 0:
            yield (
                f"read_memory: memory.{name} is {value} B; "
                "what is unknown is None with a reason, never 0"
            )


def sane_energy(model: LoadedModel, _bench: Bench) -> Findings:
    """Yield a reading that lacks its source, or its reason where there are no joules."""
    energy = model.read_energy(DECODE, 0, 0.0)
    if energy.joules is None:
        if not energy.reason:
            yield "read_energy: joules is None without a reason"
        return
    amounts = (energy.joules, energy.seconds, energy.n_output_tokens)
    if not energy.source or min(amounts) <= 0:
        yield (
            "read_energy: a reading needs joules, seconds and tokens above 0 and a source: "
            f"{energy}"
        )


def sane_ceilings(model: LoadedModel, _bench: Bench) -> Findings:
    """Yield ceilings that are missing, not finite, or not above 0."""
    ceilings = model.ceilings(DTYPES)
    rates = [] if ceilings is None else _rates(ceilings)
    if not rates or not all(math.isfinite(rate) and rate > 0 for rate in rates):
        yield (
            "ceilings: a copy bandwidth above 0 and a matmul rate above 0 "
            f"for each of {DTYPES} are needed: {ceilings}"
        )


def _rates(ceilings: Ceilings) -> list[float]:
    matmul = [ceilings.matmul_flop_per_s.get(dtype, 0.0) for dtype in DTYPES]
    return [ceilings.copy_bytes_per_s, *matmul]


def _holds_a_past(step: StepCost) -> bool:
    """Whether a step reads keys and values, or the states of a model without attention."""
    in_windows = sum(window.kv_bytes_per_token for window in step.windows)
    return step.kv_bytes_per_token + in_windows + step.state_bytes > 0


def sane_cost(model: LoadedModel, _bench: Bench) -> Findings:
    """Yield a cost of a step that is missing or impossible."""
    step, weights = model.run(DECODE, 0).step, model.opened().effective.weights_bytes
    if step is None:
        yield "TimedRun.step is None; MBU and MFU need what a step moves and computes"
    elif not 0 < step.weight_bytes_read <= weights:
        yield (
            f"a step reads {step.weight_bytes_read} B of weights; "
            f"it must be above 0 and at most the {weights} B there are"
        )
    elif step.flops_per_token <= 0 or not _holds_a_past(step):
        yield f"the cost of a step is impossible: {step}"
