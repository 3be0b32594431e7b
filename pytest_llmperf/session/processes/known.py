"""How much processes of a measurement differ, as far as it is known without measuring it again.

It is known from stored runs of the same series in this environment, from `llmperf calibrate`, or
else from what other series showed here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import median, variance
from typing import TYPE_CHECKING

from pytest_llmperf.core.record import Record
from pytest_llmperf.core.verdicts.processes import KnownSpread, split
from pytest_llmperf.errors import StoreError
from pytest_llmperf.gate.calibration import Calibrated, read_calibrations
from pytest_llmperf.history.models import of_model
from pytest_llmperf.settings.settings import Settings

if TYPE_CHECKING:
    from pytest_llmperf.history.store import Store

SERIES_RUNS = 30
MACHINE_RUNS = 200
MIN_FREEDOM = 3.0

ANY = ""
"""The metric that stands for those that nothing is known of by name."""

Known = dict[str, KnownSpread]


def known_spreads(settings: Settings, store: Store | None, record: Record) -> Known:
    """Return how much processes differ by metric, for a run that would leave this record.

    It is empty where nothing is known.
    """
    calibrated = _calibrated(read_calibrations(settings.root), record)
    own = _larger(_stored(store, record), calibrated)
    return _with_any(own or _of_machine(store, record))


def of_series(runs: Sequence[Record]) -> Known:
    """Return what stored runs of one series show, newest first, by metric.

    Runs in several processes show it by themselves. Runs in one show it by how far each session is
    from the one before, so that a change of level counts once; of a session, the last run counts,
    since others may have been in the same process.
    """
    names = {name for run in runs for name in run.samples}
    last_runs = {run.session_id: run for run in reversed(runs)}
    sessions = [run for run in runs if last_runs[run.session_id] is run]
    spreads = {}
    for name in names:
        spread = _larger_of(
            _within_runs(_all_levels(runs, name)), _between_runs(_all_levels(sessions, name))
        )
        if spread is not None:
            spreads[name] = spread
    return spreads


def of_machine(runs: Iterable[Record]) -> Known:
    """Return the largest spread that a series showed here inside its runs, by metric."""
    by_series: dict[tuple[str, ...], list[Record]] = {}
    for run in runs:
        key = (run.test, run.model, run.strategy, run.workload_key)
        by_series.setdefault(key, []).append(run)
    spreads: Known = {}
    for series in by_series.values():
        several = [run for run in series if len(run.in_processes.sizes) > 1]
        for name, spread in of_series(several).items():
            source = "other measurements on this machine"
            other = KnownSpread(spread=spread.spread, freedom=spread.freedom, source=source)
            largest = _larger_of(spreads.get(name), other)
            assert largest is not None  # noqa: S101 - one of the two is there
            spreads[name] = largest
    return spreads


def _all_levels(runs: Sequence[Record], name: str) -> list[list[float]]:
    """Return the levels of each run that has samples of this metric."""
    return [levels for run in runs if (levels := _levels(run, name))]


def _levels(run: Record, name: str) -> list[float]:
    """Return the log of the median of each process of a run. Empty where it has none."""
    samples, sizes = run.samples.get(name, ()), run.in_processes.sizes
    if not samples or min(samples) <= 0:
        return []
    # A batch has more samples of some times than repetitions.
    groups = split(samples, sizes) if sum(sizes) == len(samples) else [samples]
    return [math.log(median(group)) for group in groups]


def _within_runs(levels: Sequence[Sequence[float]]) -> KnownSpread | None:
    """Return the pooled spread of the processes of runs that have several."""
    several = [run for run in levels if len(run) > 1]
    freedom = float(sum(len(run) - 1 for run in several))
    if freedom < MIN_FREEDOM:
        return None
    squares = math.fsum(variance(run) * (len(run) - 1) for run in several)
    source = f"{len(several)} stored runs in {sum(map(len, several))} processes"
    return KnownSpread(spread=math.sqrt(squares / freedom), freedom=freedom, source=source)


def _between_runs(levels: Sequence[Sequence[float]]) -> KnownSpread | None:
    """Return the spread of runs in one process, by the steps from each to the next.

    n steps are worth two thirds of n degrees of freedom (von Neumann et al. 1941).
    """
    single = [run[0] for run in levels if len(run) == 1]
    squares = [(after - before) ** 2 for before, after in pairwise(single)]
    if len(squares) < MIN_FREEDOM:
        return None
    spread = math.sqrt(math.fsum(squares) / 2 / len(squares))
    source = f"{len(single)} stored sessions"
    return KnownSpread(spread=spread, freedom=len(squares) * 2 / 3, source=source)


def _stored(store: Store | None, record: Record) -> Known:
    runs = list(_runs(store, record, SERIES_RUNS, of_series=True))
    return of_series(of_model(runs, record.model))


def _of_machine(store: Store | None, record: Record) -> Known:
    return of_machine(_runs(store, record, MACHINE_RUNS, of_series=False))


def _runs(store: Store | None, record: Record, limit: int, *, of_series: bool) -> Iterator[Record]:
    """Yield stored runs of this environment, newest first. None where the store fails."""
    if store is None:
        return
    # SQLAlchemy, once a test is stored.
    from pytest_llmperf.history.identity import series_key  # noqa: PLC0415

    series = series_key(record) if of_series else None
    try:
        yield from store.records(series=series, environment=record.environment_key, limit=limit)
    except StoreError:
        # A claim needs no history; what cannot be stored is said when it is written.
        return


def _calibrated(floors: Iterable[Calibrated], record: Record) -> Known:
    """Return the spreads that `llmperf calibrate` measured of this, by metric."""
    return {
        floor.metric.partition(".")[0]: KnownSpread(
            spread=floor.apart,
            freedom=floor.sessions - 1,
            source=f"llmperf calibrate, {floor.sessions} sessions",
        )
        for floor in floors
        if floor.covers(record)
    }


def _larger(a: Mapping[str, KnownSpread], b: Mapping[str, KnownSpread]) -> Known:
    larger = {name: _larger_of(a.get(name), b.get(name)) for name in {*a, *b}}
    return {name: spread for name, spread in larger.items() if spread is not None}


def _larger_of(a: KnownSpread | None, b: KnownSpread | None) -> KnownSpread | None:
    both = [spread for spread in (a, b) if spread is not None]
    return max(both, key=lambda spread: spread.spread, default=None)


def _with_any(spreads: Known) -> Known:
    """Add the largest spread, for metrics that have none of their own."""
    if not spreads:
        return {}
    return {ANY: max(spreads.values(), key=lambda spread: spread.spread), **spreads}
