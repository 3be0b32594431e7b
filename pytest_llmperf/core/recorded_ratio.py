"""The ratio of two records' samples, with what their processes differ by. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmperf.core.record import Record
from pytest_llmperf.core.verdicts import processes, stats
from pytest_llmperf.core.verdicts.processes import ALIKE, KnownSpread, Processes


def recorded_ratio(a: Record, b: Record, name: str, *, paired: bool) -> stats.LogRatio:
    """Return the interval of log(a / b) of a metric's samples, as a claim on the runs has it.

    Raises ValueError where a side has no samples, or one that is not positive.
    """
    samples, others = a.samples.get(name, ()), b.samples.get(name, ())
    sides = processes_of(a, samples), processes_of(b, others)
    return processes.log_ratio_interval(samples, others, sides, paired=paired)


def processes_of(record: Record, samples: Sequence[float]) -> Processes:
    """Return the processes of a record's samples; those of the requests of a load are not known."""
    facts = record.in_processes
    if sum(facts.sizes) == len(samples):
        return Processes(sizes=facts.sizes)
    if facts.known is None:
        return ALIKE
    known = KnownSpread(spread=facts.known, freedom=facts.known_freedom, source=facts.known_from)
    return Processes(known=known)
