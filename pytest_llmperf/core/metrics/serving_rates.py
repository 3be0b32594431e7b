"""Rates of a run on a server: amounts over its wall time, with the interval of its blocks. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from pytest_llmperf.core.metrics.origin import Origin, sampled
from pytest_llmperf.core.metrics.quantities import TABLE
from pytest_llmperf.core.metrics.results import Quantity
from pytest_llmperf.core.verdicts import stats
from pytest_llmperf.core.verdicts.estimate import Estimate, NotMeasurable
from pytest_llmperf.core.verdicts.processes import widened

BLOCKS = 10
"""Equal parts of a run whose rates give the interval of its own (the method of batch means).

Requests follow one another and are not independent, blocks of many nearly are.
"""

NO_WALL_TIME = "one message in all: there is no time between the first send and the last completion"
_NS = 1e9


class Counted(NamedTuple):
    """Amounts of one run, each with the time in ns at which it counts, and the run's bounds."""

    amounts: Sequence[tuple[int, float]]
    start_ns: int
    end_ns: int

    @property
    def per_s(self) -> float:
        """The whole amount a second."""
        return sum(amount for _, amount in self.amounts) / ((self.end_ns - self.start_ns) / _NS)

    def block_rates(self) -> list[float]:
        """Return the amount a second in each of the equal blocks between start and end.

        Their mean is the rate of the whole.
        """
        length_ns = (self.end_ns - self.start_ns) / BLOCKS
        sums = [0.0] * BLOCKS
        for t_ns, amount in self.amounts:
            block = int((t_ns - self.start_ns) / length_ns)
            sums[min(BLOCKS - 1, max(0, block))] += amount
        return [amount * _NS / length_ns for amount in sums]


def rate(name: str, runs: Sequence[Counted], origin: Origin) -> Quantity:
    """Return amount over wall time.

    One run has the interval of its blocks' mean; several give the median of their rates.
    """
    if any(run.end_ns <= run.start_ns for run in runs):
        return NotMeasurable(name, NO_WALL_TIME)
    if len(runs) > 1:
        return sampled(name, (run.per_s for run in runs), origin)
    return _rate_of_blocks(name, runs[0], origin)


def _rate_of_blocks(name: str, run: Counted, origin: Origin) -> Estimate:
    row = TABLE[name]
    value = run.per_s
    blocks, processes = run.block_rates(), origin.processes_of(name)
    interval = stats.mean_interval(blocks) or (0.0, math.inf)
    holding = max(0.0, min(interval[0], value)), max(interval[1], value)
    low, high = widened(value, holding, blocks, processes)
    return Estimate(
        name=name,
        value=value,
        low=low,
        high=high,
        n=BLOCKS,
        unit=row.unit,
        statistic="mean",
        counted="block",
        direction=row.direction,
        processes=processes,
        **origin.texts,
    )
