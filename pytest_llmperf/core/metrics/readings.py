"""What is read outside the timed repetitions of a run, and the quantities that it gives. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pytest_llmperf.core.metrics.origin import Origin, exact, sampled
from pytest_llmperf.core.metrics.results import Energy, Quantity
from pytest_llmperf.core.trace import Ceilings, EnergyReading, MemoryGauges, Startup, StepCost
from pytest_llmperf.core.verdicts.estimate import NotMeasurable
from pytest_llmperf.errors import InvalidRun

MIN_ENERGY_S = 3.0
NO_CPU_TIME = "this engine does not read the CPU time of a run"
ONE_DEVICE = "one device has nobody to communicate with"


class Readings(NamedTuple):
    """Memory from a pass of its own, energy, what a step costs, and what the device can reach.

    None stands for what was not read. `memory` holds the gauges of each rank; `load_s` is the time
    that loading took; `collectives` is their share of a run, or the reason why it is not known;
    `startup` has the phases of a server's start.
    """

    step: StepCost | None = None
    ceilings: Ceilings | None = None
    memory: tuple[MemoryGauges, ...] = ()
    energy: EnergyReading | None = None
    load_s: float | None = None
    collectives: float | str = ONE_DEVICE
    startup: Startup | None = None


NO_READINGS = Readings()


def load_time(load_s: float | None, reason: str, origin: Origin) -> Quantity:
    """Return the time of loading, NotMeasurable for `reason` where nothing was loaded."""
    if load_s is None:
        return NotMeasurable("load_time", reason)
    return exact("load_time", load_s, origin)


def cpu_time_per_token(
    runs: Sequence[tuple[float | None, int]], why_none: str, origin: Origin
) -> Quantity:
    """Return the CPU seconds of an output token, one sample a run.

    `runs` hold the CPU seconds and the output tokens of each; `why_none` says why one has no such
    seconds.
    """
    samples = [cpu_s / n_tokens for cpu_s, n_tokens in runs if cpu_s and n_tokens]
    if len(samples) < len(runs) or not samples:
        return NotMeasurable("cpu_time_per_token", why_none or NO_CPU_TIME)
    # Others on the same cores make it wait, which takes no CPU time.
    return sampled("cpu_time_per_token", samples, origin._replace(disturbed=False))


def collectives(share: float | str, origin: Origin) -> Quantity:
    """Return the share of a run in which devices communicate; a text says why it is not known."""
    if isinstance(share, str):
        return NotMeasurable("collectives", share)
    return exact("collectives", share, origin)


def energy(reading: EnergyReading | None, origin: Origin) -> Energy:
    """Return joules an output token.

    Raises InvalidRun when the counter did not go up.
    """
    if reading is None:
        return Energy(per_token=NotMeasurable("energy.per_token", "no energy was read"))
    per_token = _joules_per_token(reading, _with_source(origin, reading.source))
    return Energy(per_token=per_token, source=reading.source)


def _joules_per_token(reading: EnergyReading, origin: Origin) -> Quantity:
    reason = _why_unknown(reading)
    if reason or reading.joules is None:
        return NotMeasurable("energy.per_token", reason)
    if reading.joules <= 0:
        raise InvalidRun(
            f"the energy counter ({reading.source}) went by {reading.joules} J over "
            f"{reading.seconds:.1f} s."
        )
    return exact("energy.per_token", reading.joules / reading.n_output_tokens, origin)


def _why_unknown(reading: EnergyReading) -> str:
    if reading.joules is None:
        return reading.reason or "no energy was read"
    if reading.seconds < MIN_ENERGY_S:
        return f"the counter was read over {reading.seconds:.1f} s, {MIN_ENERGY_S:g} s are needed"
    if reading.n_output_tokens < 1:
        return "no output token came while energy was read"
    return ""


def _with_source(origin: Origin, source: str) -> Origin:
    """Numbers by different counters are not of one context."""
    if not origin.context or not source:
        return origin
    return origin._replace(context=f"{origin.context}, energy by {source}")
