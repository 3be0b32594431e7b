"""The one quantity of a test that uses pytest-benchmark's fixture: the time of a round."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmperf.core.metrics.quantities import Metric
from pytest_llmperf.core.metrics.results import metric_value
from pytest_llmperf.core.record import MetricValue
from pytest_llmperf.core.verdicts.estimate import Estimate

TIME = Metric(
    name="time",
    unit="s",
    direction="lower",
    formula="benchmark_median/1",
    summary="median time of a round",
)
BENCHMARK = "benchmark"
"""Type of the workload of such a record."""


def time_value(rounds_s: Sequence[float]) -> MetricValue:
    """The median of the rounds (seconds of one call each) with its interval.

    Raises ValueError for no round.
    """
    estimate = Estimate.of_samples(TIME.name, tuple(rounds_s), TIME.unit, direction=TIME.direction)
    return metric_value(TIME.name, TIME, estimate)
