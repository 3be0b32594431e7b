"""The ratio of two records' samples, with what their processes differ by. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmperf.core.record import Record
from pytest_llmperf.core.verdicts import processes, stats
from pytest_llmperf.core.verdicts.processes import UNKNOWN, KnownSpread, Processes


def recorded_ratio(a: Record, b: Record, name: str, *, paired: bool) -> stats.LogRatio:
    """Return the interval of log(a / b) of a metric's samples, as a claim on the runs has it.

    Raises ValueError where a side has no samples, or one that is not positive.
    """
    samples, others = a.samples.get(name, ()), b.samples.get(name, ())
    sides = processes_of(a, samples), processes_of(b, others)
    return processes.log_ratio_interval(samples, others, sides, paired=paired)


def paired_processes(a: Record, b: Record, name: str) -> Processes:
    """Return the processes of the ratios of a metric's pairs, as `recorded_ratio` takes them."""
    sides = (processes_of(side, side.samples.get(name, ())) for side in (a, b))
    return processes.of_both(*sides)


def processes_of(record: Record, samples: Sequence[float]) -> Processes:
    """Return the processes of a record's samples; those of the requests of a load are not known.

    A record of a version that did not tell them was measured in one.
    """
    facts = record.in_processes
    if facts.sizes and sum(facts.sizes) == len(samples):
        return Processes(sizes=facts.sizes)
    if facts.known is None:
        return Processes(unknown=UNKNOWN if record.processes is None else facts.note)
    known = KnownSpread(spread=facts.known, freedom=facts.known_freedom, source=facts.known_from)
    return Processes(known=known)
