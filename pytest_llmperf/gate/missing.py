"""Tests that had accepted sessions and are not there any more: removed, or renamed in silence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from pytest_llmperf.core.record import Record
from pytest_llmperf.devices.host import project_name
from pytest_llmperf.gate.accepted import last_session
from pytest_llmperf.gate.collection import Collected
from pytest_llmperf.gate.lineage import Lineage, lineage_of
from pytest_llmperf.names import NAMED_MODEL

if TYPE_CHECKING:
    from pytest_llmperf.history.accept import Reviewed
    from pytest_llmperf.history.store import Store

_NEWEST = 50
_SAME = ("label", "workload_key", "strategy", "model_hash", "engine")


class Gone(Struct, frozen=True, kw_only=True):
    """A test that is missed, when it ran last, and the new tests that measure the same."""

    test: str
    last: str
    likely: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = (
            f"not comparable: {self.test} is not there any more, "
            f"its last accepted session is of {self.last[:19]}"
        )
        return f"{head}. {self._advice()}"

    def _advice(self) -> str:
        return self._if_renamed() if self.likely else self._if_removed()

    def _if_removed(self) -> str:
        return f"If that was meant: 'llmperf accept --removed {self.test} --reason …'"

    def _if_renamed(self) -> str:
        accept = f"'llmperf accept --rename {self.test} {self.likely[0]} --reason …'"
        return (
            f"{' or '.join(self.likely)} measures the same and has no history: "
            f"if that is its new name, {accept} lets its history go on"
        )


def look_for_gone(
    store_url: str,
    root: Path,
    collected: Collected,
    recorded: Sequence[Record],
    *,
    any_tree: bool = False,
) -> list[Gone]:
    """The missed tests of a project. `recorded` is what this session measured.

    There are none where there is no history yet. With `any_tree`, sessions of other branches and
    with uncommitted changes had the tests, too.

    Raises:
        StoreError: the history cannot be read.
    """
    # SQLAlchemy, only where something is gated.
    from pytest_llmperf.history import accept  # noqa: PLC0415
    from pytest_llmperf.history.problems import StoreMissing  # noqa: PLC0415
    from pytest_llmperf.history.store import open_store  # noqa: PLC0415

    if store_url == "none":
        return []
    try:
        with open_store(store_url, create=False, folder=root) as store:
            lineage = lineage_of(root, any_tree=any_tree)
            return list(_gone(store, accept.reviewed(root), collected, recorded, lineage))
    except StoreMissing:
        return []


def _gone(
    store: Store,
    reviewed: Reviewed,
    collected: Collected,
    recorded: Sequence[Record],
    lineage: Lineage | None,
) -> Iterator[Gone]:
    sessions = {record.session_id for record in recorded}
    environments = {record.environment_key for record in recorded}
    projects = (None, project_name(collected.root))
    for test in store.tests():
        if not _is_missed(test, reviewed, collected):
            continue
        last = last_session(store, reviewed, test, sessions, environments, lineage=lineage)
        if last and last[0].environment.facts.get("project") in projects:
            likely = _successors(store, last, recorded, sessions)
            yield Gone(test=test, last=last[0].created, likely=likely)


def _is_missed(test: str, reviewed: Reviewed, collected: Collected) -> bool:
    """Whether all of the file was collected that the test would be in, and it was not."""
    present_name = reviewed.name_now(test)
    if test.startswith(f"{NAMED_MODEL} "):
        return False
    file = (present_name or test).partition("::")[0]
    return present_name not in collected.tests and collected.knows(file)


def _successors(
    store: Store, last: Sequence[Record], recorded: Sequence[Record], sessions: set[str]
) -> tuple[str, ...]:
    """The tests of this session that measure the same, and that no earlier session had."""
    tests = _tests_alike(last, recorded)
    return tuple(test for test in tests if _is_new(store, test, sessions))


def _tests_alike(last: Sequence[Record], recorded: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(new.test for new in recorded if _has_counterpart(new, last)))


def _has_counterpart(new: Record, last: Sequence[Record]) -> bool:
    return any(_measures_the_same(new, old) for old in last)


def _measures_the_same(new: Record, old: Record) -> bool:
    return all(getattr(new, name) == getattr(old, name) for name in _SAME)


def _is_new(store: Store, test: str, sessions: set[str]) -> bool:
    records = store.records(test=test, limit=_NEWEST)
    return all(record.session_id in sessions for record in records)
