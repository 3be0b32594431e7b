"""What is read from an open store: records, series, points, facts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_llmperf.core.record import Record
from pytest_llmperf.history import queries
from pytest_llmperf.history.database import Database
from pytest_llmperf.history.results import MeasuredMetric, Point, Series


class Reader:
    """The part of a store that only reads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def records(
        self,
        *,
        test: str | None = None,
        series: str | None = None,
        environment: str | None = None,
        limit: int | None = None,
        since: str | None = None,
        oldest_first: bool = False,
    ) -> Iterator[Record]:
        """Records, newest first unless `oldest_first`.

        Those of the same moment in the order in which they were added.

        `test` is a node id, `series` a series key, `environment` an environment key, `since` an ISO
        8601 time (inclusive).

        No transaction is held while the caller works. Raises StoreError for a record of a newer
        schema.
        """
        query = queries.matching(test=test, series=series, environment=environment, since=since)
        return queries.records(self._database, query, limit, oldest_first=oldest_first)

    def find(self, start: str) -> list[Record]:
        """Records whose id begins with `start`, else those whose session id or series key does.

        Oldest first.
        """
        for query in (
            queries.beginning_with(record=start),
            queries.beginning_with(session=start),
            queries.beginning_with(series=start),
        ):
            matches = list(queries.records(self._database, query, None, oldest_first=True))
            if matches:
                return matches
        return []

    def find_commit(self, start: str) -> list[Record]:
        """Records of a project whose commit began with `start` and had no uncommitted changes.

        Oldest first. Reads all.
        """
        every = self.records(oldest_first=True)
        return [record for record in every if _is_of_commit(record.environment.facts, start)]

    def tests(self) -> list[str]:
        """The node ids of all tests that have a record, sorted. Quick also in a large store."""
        return queries.tests(self._database)

    def series(self, *, test: str | None = None) -> list[Series]:
        """Every series with its count and its newest record, most recent first."""
        return queries.all_series(self._database, test=test)

    def points(
        self, series: str, metric: str, *, environment: str | None = None, limit: int | None = None
    ) -> list[Point]:
        """One metric over a series, newest first, without reading whole records.

        `environment` is an environment key.
        """
        return queries.points(self._database, series, metric, limit, environment=environment)

    def facts(self, record_ids: Sequence[str]) -> dict[str, queries.Facts]:
        """The facts of the environments of these records, without reading whole records."""
        return queries.facts(self._database, record_ids)

    def measured(self, names: Sequence[str]) -> list[MeasuredMetric]:
        """What advice is made of, over all series, newest first (see `history.advice`)."""
        return queries.measured(self._database, names)

    def metric_names(self) -> list[str]:
        """Names of the metrics that the newest records have, sorted."""
        return queries.metric_names(self._database)


def _is_of_commit(facts: Mapping[str, Any], commit: str) -> bool:
    return str(facts.get("git_commit") or "").startswith(commit) and not facts.get("git_dirty")
