"""What a report is made of: records, tests that were not measured, histories. Values only."""

from __future__ import annotations

from msgspec import Struct

from pytest_llmperf.core.change import Change
from pytest_llmperf.core.record import Record
from pytest_llmperf.history.sessions import SessionValue


class Unmeasured(Struct, frozen=True, kw_only=True):
    """A test that left no number: SKIPPED, INVALID, ERROR, or FAIL without a record.

    Sessions know them, stores do not. `kind` is the name of the error's class, empty where the
    reason is no error of ours.
    """

    test: str
    outcome: str
    reason: str
    kind: str = ""

    @property
    def stated_reason(self) -> str:
        """The reason after the name of its error."""
        return f"{self.kind}: {self.reason}" if self.kind else self.reason


class Step(Struct, frozen=True, kw_only=True):
    """A change of level. `at` is the first session of the new one."""

    at: str
    before: float
    after: float
    accepted: bool


class Level(Struct, frozen=True, kw_only=True):
    """A change that somebody accepted: from `at` on the series has a new level."""

    at: str
    who: str
    why: str


class History(Struct, frozen=True, kw_only=True):
    """One metric of a series: a value a session, oldest first, and what happened to its level.

    `drift` is the latest level over the anchor's where that is significant.
    """

    key: str
    test: str
    label: str
    workload: str
    strategy: str
    model: str
    metric: str
    unit: str
    sessions: tuple[SessionValue, ...]
    steps: tuple[Step, ...] = ()
    levels: tuple[Level, ...] = ()
    drift: float | None = None


class Content(Struct, frozen=True, kw_only=True):
    """Everything that one report shows.

    `scope` says in words what was chosen; `created` is UTC, ISO 8601.

    `places` are the facts of each environment by its key. `unmeasured` is None where nobody knows:
    the report is made from a store, and tests that were skipped or could not be measured leave no
    record there. `changes` are what a gate compared, `judged` says what judged them.
    """

    created: str
    scope: str
    store: str
    records: tuple[Record, ...]
    unmeasured: tuple[Unmeasured, ...] | None = None
    histories: tuple[History, ...] = ()
    places: dict[str, dict[str, str | int | float | bool | None]] = {}
    comparable: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    judged: str = ""
