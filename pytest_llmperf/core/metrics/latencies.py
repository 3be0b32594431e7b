"""A distribution of times, whose percentiles are Estimates where there are enough samples."""

from __future__ import annotations

import math
import statistics
from typing import NoReturn

from msgspec.structs import replace

from pytest_llmperf.core.misspelt import Suggests
from pytest_llmperf.core.verdicts import stats
from pytest_llmperf.core.verdicts.estimate import Estimate, NotMeasurable, Refuses
from pytest_llmperf.core.verdicts.processes import ALIKE, Processes, widened
from pytest_llmperf.errors import UsageError


class Latencies(Suggests, Refuses):
    """Times of one kind (TTFT, TPOT, ITL, end-to-end), in seconds.

    Its percentiles are Estimates; the distribution itself is not a number.
    """

    def __init__(
        self,
        name: str,
        samples: tuple[float, ...],
        *,
        pair: str | None = None,
        subject: str = "",
        context: str = "",
        disturbed: bool = False,
        processes: Processes = ALIKE,
    ) -> None:
        if not samples:
            raise ValueError(f"{name}: no samples; what was not seen is NotMeasurable")
        self.name, self.samples = name, samples
        self._pair, self._subject, self._context = pair, subject, context
        self._disturbed = disturbed
        self._processes = processes

    def refuse(self) -> NoReturn:
        """Raise UsageError: a percentile is needed."""
        raise UsageError(
            f"{self.name} is a distribution, not a number: compare a percentile, "
            "e.g. .p95 (.p50 .p90 .p95 .p99 .mean .max).",
        )

    def __repr__(self) -> str:
        return f"<{self.name}: {self.p50}>"

    @property
    def p50(self) -> Estimate | NotMeasurable:
        """The median, from 4 samples on."""
        if len(self.samples) < stats.min_samples(0.5):
            return self._too_few(0.5)
        return self._median()

    @property
    def p90(self) -> Estimate | NotMeasurable:
        """The 90th percentile, from 20 samples on."""
        return self._percentile(0.90)

    @property
    def p95(self) -> Estimate | NotMeasurable:
        """The 95th percentile, from 40 samples on."""
        return self._percentile(0.95)

    @property
    def p99(self) -> Estimate | NotMeasurable:
        """The 99th percentile, from 200 samples on."""
        return self._percentile(0.99)

    @property
    def mean(self) -> Estimate:
        """The arithmetic mean, with Student's interval."""
        value = statistics.fmean(self.samples)
        interval = stats.mean_interval(self.samples) or (0.0, math.inf)
        return self._over_processes("mean", value, interval)

    @property
    def max(self) -> Estimate:
        """The largest time seen.

        A sample bounds the largest time that can happen from below only: no `<=` on it can pass.
        """
        largest = max(self.samples)
        return self._estimate("max", largest, largest, math.inf)

    def _median(self) -> Estimate:
        return Estimate.of_samples(
            f"{self.name}.p50",
            self.samples,
            "s",
            direction="lower",
            pair=self._pair,
            subject=self._subject,
            context=self._context,
            disturbed=self._disturbed,
            processes=self._processes,
        )

    def _percentile(self, q: float) -> Estimate | NotMeasurable:
        if len(self.samples) < stats.min_samples(q):
            return self._too_few(q)
        value = stats.quantile(self.samples, q)
        interval = stats.quantile_interval(self.samples, q)
        estimate = self._over_processes(_name(q), value, interval)
        return replace(estimate, at_least=stats.samples_for_both_ends(self.samples, q))

    def _over_processes(self, statistic: str, value: float, interval: stats.Interval) -> Estimate:
        """Return a statistic whose interval contains what processes differ by."""
        holding = max(0.0, min(interval[0], value)), max(interval[1], value)
        low, high = widened(value, holding, self.samples, self._processes)
        return self._estimate(statistic, value, low, high)

    def _too_few(self, q: float) -> NotMeasurable:
        reason = (
            f"{len(self.samples)} samples, percentile {100 * q:g} needs at least "
            f"{stats.min_samples(q)}; give a larger budget or fewer tokens"
        )
        return NotMeasurable(f"{self.name}.{_name(q)}", reason)

    def _estimate(self, statistic: str, value: float, low: float, high: float) -> Estimate:
        return Estimate(
            name=f"{self.name}.{statistic}",
            value=value,
            low=low,
            high=high,
            n=len(self.samples),
            unit="s",
            direction="lower",
            subject=self._subject,
            context=self._context,
            disturbed=self._disturbed,
            statistic=statistic,
            processes=self._processes,
        )


def _name(q: float) -> str:
    """Return the name of a percentile: 'p95'."""
    return f"p{100 * q:.0f}"
