"""Whether what the base's test is about to measure is the counterpart of what was measured here."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmperf.core.environment import differences
from pytest_llmperf.core.record import Environment, Record
from pytest_llmperf.core.side import SideFacts
from pytest_llmperf.wire.results import Ended, Reached

_SAME = ("workload_text", "workload_key", "strategy", "engine")
"""Fields of a record that both versions must agree on."""

_ENDINGS = {
    "missing": "the base has no such test",
    "broken": "its file cannot be collected at the base",
    "failed": "the base's test failed before it measured this",
    "skipped": "the base's test was skipped",
    "passed": "the base's test ended without measuring this",
}


def ended_text(ended: Ended) -> str:
    """Say how the base's test ended before it measured the same."""
    text = _ENDINGS.get(ended.outcome, ended.outcome)
    return f"{text}: {ended.message}" if ended.message else text


def difference(records: Sequence[Record], reached: Reached) -> str:
    """Say what makes the two no comparison; empty where nothing does.

    It may be another copy of the project, another number of models, other work, or another
    environment.
    """
    if reached.strays:
        modules = ", ".join(reached.strays)
        return f"the base side loaded modules of another copy of the project: {modules}"
    if len(reached.sides) != len(records):
        return f"the base measures {len(reached.sides)} models here, this test {len(records)}"
    texts = [
        _difference_of_side(record, side)
        for record, side in zip(records, reached.sides, strict=True)
    ]
    return next(filter(None, texts), "")


def _difference_of_side(record: Record, side: SideFacts) -> str:
    for name in _SAME:
        own_value, base_value = getattr(record, name), getattr(side, name)
        if own_value != base_value:
            return f"another measurement: {name} is {own_value!r}, at the base {base_value!r}"
    facts = differences(record.environment, Environment(facts=side.facts))
    if not facts:
        return ""
    texts = [
        f"{name} is {own_fact!r}, at the base {base_fact!r}" for name, own_fact, base_fact in facts
    ]
    return f"another environment: {', '.join(texts)}"
