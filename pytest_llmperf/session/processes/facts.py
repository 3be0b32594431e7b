"""What a record keeps of the processes of its run. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from pytest_llmperf.core.metrics.results import RunResult
from pytest_llmperf.core.record import ProcessFacts
from pytest_llmperf.core.verdicts.estimate import Estimate
from pytest_llmperf.core.verdicts.processes import KnownSpread, Processes, apart, components


def process_facts(
    result: RunResult, processes: Processes, known: Mapping[str, KnownSpread]
) -> ProcessFacts:
    """Return the number of processes, and how much they and their repetitions differ.

    The spreads are those of the output throughput, which every run has.
    """
    rate = result.throughput
    facts = ProcessFacts(count=processes.count, sizes=processes.sizes, note=processes.unknown)
    if not isinstance(rate, Estimate):
        return facts
    return _with_spreads(facts, rate, known)


def _with_spreads(
    facts: ProcessFacts, rate: Estimate, known: Mapping[str, KnownSpread]
) -> ProcessFacts:
    spreads = components(rate.samples, facts.sizes)
    stand_in = known.get(rate.name, known.get(""))
    return replace(
        facts,
        between=None if spreads is None else spreads.between,
        within=None if spreads is None else spreads.within,
        apart=apart(rate.samples, facts.sizes),
        known=None if stand_in is None else stand_in.spread,
        known_freedom=1.0 if stand_in is None else stand_in.freedom,
        known_from="" if stand_in is None else stand_in.source,
    )
