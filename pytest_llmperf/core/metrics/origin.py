"""What a number is about, and quantities that carry it with the unit of their row. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from msgspec.structs import replace

from pytest_llmperf.core.metrics.latencies import Latencies
from pytest_llmperf.core.metrics.quantities import TABLE
from pytest_llmperf.core.verdicts.estimate import Estimate, NotMeasurable
from pytest_llmperf.core.verdicts.processes import ALIKE, KnownSpread, Processes


class Origin(NamedTuple):
    """The strategy that was measured (`subject`), and the workload and device (`context`).

    `pair` is shared by the results of an interleaved comparison, whose repetitions are then pairs.
    `disturbed`: other programs worked beside it, which makes times longer.
    `processes` are those of the repetitions, and `known` how much processes differ by metric, where
    there is one process; "" stands for any other metric.
    """

    subject: str = ""
    context: str = ""
    pair: str | None = None
    disturbed: bool = False
    processes: Processes = ALIKE
    known: Mapping[str, KnownSpread] = {}

    @property
    def texts(self) -> dict[str, Any]:
        """`subject`, `context` and `disturbed`, as an Estimate takes them."""
        return {"subject": self.subject, "context": self.context, "disturbed": self.disturbed}

    def processes_of(self, metric: str) -> Processes:
        """Return the processes of one metric, with what is known of their spread."""
        return replace(self.processes, known=self.known.get(metric, self.known.get("")))

    def of_counts(self, counts: Sequence[int]) -> Origin:
        """Return the origin of so many samples of each repetition."""
        edges = (0, *accumulate(self.processes.sizes))
        sizes = [sum(counts[start:end]) for start, end in pairwise(edges)]
        processes = replace(self.processes, sizes=tuple(filter(None, sizes)))
        return self._replace(processes=processes)


NO_ORIGIN = Origin()


def exact(name: str, value: float, origin: Origin = NO_ORIGIN) -> Estimate:
    """Return an exact quantity with the unit, direction and tolerance of its row."""
    row = TABLE[name]
    return Estimate.exact(
        name,
        value,
        row.unit,
        direction=row.direction,
        tolerance=row.tolerance,
        **origin.texts,
    )


def sampled(name: str, samples: Iterable[float], origin: Origin) -> Estimate:
    """Return the median of one sample a repetition, with the unit and direction of its row."""
    row = TABLE[name]
    return Estimate.of_samples(
        name,
        tuple(samples),
        row.unit,
        direction=row.direction,
        pair=origin.pair,
        processes=origin.processes_of(name),
        **origin.texts,
    )


def distribution(name: str, samples_s: Sequence[float], origin: Origin) -> Latencies:
    """Return the distribution of these times."""
    return Latencies(
        name,
        tuple(samples_s),
        pair=origin.pair,
        processes=origin.processes_of(name),
        **origin.texts,
    )


def not_measurable(names: Iterable[str], reason: str) -> dict[str, NotMeasurable]:
    """Return these quantities by name, none of which could be measured for one reason."""
    return {name: NotMeasurable(name, reason) for name in names}
