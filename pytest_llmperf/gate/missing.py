"""Tests that had an accepted history and are not there any more: removed, or renamed without saying so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from pytest_llmperf.core.record import Record
from pytest_llmperf.devices.host import project_name
from pytest_llmperf.gate.accepted import last_session
from pytest_llmperf.gate.collection import Collected

if TYPE_CHECKING:
    from pytest_llmperf.history.accept import Reviewed
    from pytest_llmperf.history.store import Store

_NEWEST = 50
_SAME = ("label", "workload_key", "strategy", "model_hash", "engine")


class Gone(Struct, frozen=True, kw_only=True):
    """A test that is missed, when it ran last, and the new tests of this session that measure the same."""

    test: str
    last: str
    likely: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = f"not comparable: {self.test} is not there any more, its last accepted session is of {self.last[:19]}"
        if self.likely:
            return (
                f"{head}. {' or '.join(self.likely)} measures the same and has no history: if that is its new name, "
                f"'llmperf accept --rename {self.test} {self.likely[0]} --reason …' lets its history go on"
            )
        return f"{head}. If that was meant: 'llmperf accept --removed {self.test} --reason …'"


def look_for_gone(
    store_url: str, root: Path, collected: Collected, made: Sequence[Record]
) -> list[Gone]:
    """The missed tests of a project. `made` is what this session recorded.

    Nothing where there is no history yet.

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
            return _gone(store, accept.reviewed(root), root, collected, made)
    except StoreMissing:
        return []


def _gone(
    store: Store, reviewed: Reviewed, root: Path, collected: Collected, made: Sequence[Record]
) -> list[Gone]:
    environments = {record.environment_key for record in made}
    sessions = {record.session_id for record in made}
    stored = store.tests()
    missed = [test for test in stored if _missed(test, reviewed, collected)]
    found = []
    for test in missed:
        last = last_session(store, reviewed, test, sessions, environments)
        if last and last[0].environment.facts.get("project") in (None, project_name(root)):
            likely = dict.fromkeys(
                new.test
                for new in made
                if any(_same(new, old) for old in last) and _new(store, new, sessions)
            )
            found.append(Gone(test=test, last=last[0].created, likely=tuple(likely)))
    return found


def _missed(test: str, reviewed: Reviewed, collected: Collected) -> bool:
    now = reviewed.name_now(test)
    return now not in collected.tests and collected.knows((now or test).partition("::")[0])


def _same(new: Record, old: Record) -> bool:
    return all(getattr(new, name) == getattr(old, name) for name in _SAME)


def _new(store: Store, record: Record, sessions: set[str]) -> bool:
    return all(
        each.session_id in sessions for each in store.records(test=record.test, limit=_NEWEST)
    )
