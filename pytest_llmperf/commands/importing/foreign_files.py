"""Files of other tools: read whole, held against what the history has, and stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import structs

from pytest_llmperf.errors import UsageError

if TYPE_CHECKING:
    from pytest_llmperf.core.change import Change
    from pytest_llmperf.core.record import Fact, Record
    from pytest_llmperf.history.store import Store
    from pytest_llmperf.history.transfer import Imported

FAILED = "FAIL"
"""Outcome of a result that is worse than its limit: no later one is held against it."""


def read_files(files: Iterable[Path], label: str, facts: Sequence[str]) -> list[Record]:
    """Read all of these files before anything is stored. Raises UsageError."""
    from pytest_llmperf.history.foreign import read_file  # noqa: PLC0415

    known = parse_facts(facts)
    return [record for path in files for record in read_file(path, label=label, facts=known)]


def parse_facts(texts: Sequence[str]) -> dict[str, Fact]:
    """Return facts of the machine from NAME=VALUE. Raises UsageError."""
    facts: dict[str, Fact] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UsageError(
                f"--fact {text!r}: NAME=VALUE is needed, for example 'device_name=NVIDIA H200'."
            )
        facts[name] = value
    return facts


def store_records(
    store: Store, records: Sequence[Record], limits: Mapping[str, float] | None
) -> tuple[Imported, list[Change]]:
    """Store what is new; return the counts, and each new record against its series before it.

    Without `limits` nothing is compared; empty ones stand for the speed.
    """
    from pytest_llmperf.history.transfer import Imported  # noqa: PLC0415

    imported, changes = Imported(), []
    for record in sorted(records, key=lambda record: record.created):
        stored = store.find(record.id)
        if stored:
            imported.known += 1
            imported.finished += _taken_in(store, stored[0], limits)
            continue
        since = _since(store, record, limits) if limits is not None else []
        changes += since
        failed = any(change.outcome == FAILED for change in since)
        store.add(structs.replace(record, outcome=FAILED) if failed else record)
        imported.new += 1
    return imported, changes


def _taken_in(store: Store, record: Record, limits: Mapping[str, float] | None) -> bool:
    """Take in a result that failed before, where it is imported again and not held to a limit."""
    if record.outcome != FAILED or limits is not None:
        return False
    store.update_outcome(record.id, "RECORDED", record.claims, record.agreement)
    return True


def _since(store: Store, record: Record, limits: Mapping[str, float]) -> list[Change]:
    """Hold a record against the sessions of its series that are stored, by rule A.

    What failed is not among them.
    """
    from pytest_llmperf.gate.contrast import contrast  # noqa: PLC0415
    from pytest_llmperf.history.identity import series_key  # noqa: PLC0415

    stored = store.records(series=series_key(record), oldest_first=True)
    before = [old for old in stored if old.outcome != FAILED]
    alike = [old for old in before if old.environment_key == record.environment_key]
    return contrast(alike or before, [record], limits)
