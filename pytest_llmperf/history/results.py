"""What the store answers with. Values only: nothing of the database is loaded for them."""

from __future__ import annotations

from msgspec import Struct

MEASURED = frozenset({"PASS", "RECORDED", "UNDECIDED", "NOT COMPARABLE", "FAIL", "WAIVED"})
"""Outcomes of runs that were measured validly, whatever was thought of the result."""


class Point(Struct, frozen=True, kw_only=True):
    """One metric of one record. `value` None: not measurable then. `created` is UTC ISO 8601."""

    record_id: str
    session_id: str
    created: str
    environment_key: str
    outcome: str
    unit: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    formula: str
    model: str = ""


class Series(Struct, frozen=True, kw_only=True):
    """A series, how many records it has, and its newest one."""

    key: str
    test: str
    label: str
    workload_text: str
    strategy: str
    engine: str
    model: str
    n: int
    last_id: str
    last_created: str
    last_outcome: str
    last_environment_key: str


class MeasuredMetric(Struct, frozen=True, kw_only=True):
    """One metric of one record, with what tells apart what may be compared."""

    series_key: str
    created: str
    workload_key: str
    workload_text: str
    strategy: str
    engine: str
    model: str
    environment_key: str
    name: str
    value: float | None
    low: float | None
    high: float | None
    formula: str = ""
