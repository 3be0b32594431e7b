"""--llmperf-plan: what would run and where, its predicted memory and minutes.

It also says what cannot run, and why. Nothing is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec
import pytest

from pytest_llmperf.against.spending import BLOCK_SHARE, takes_at_most_s
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.record import Record
from pytest_llmperf.devices import placement
from pytest_llmperf.devices.selection import candidates
from pytest_llmperf.errors import StoreError
from pytest_llmperf.plugin.stash import NEED, UNUSABLE
from pytest_llmperf.report.plan import PlanRow, totals, write_plan
from pytest_llmperf.session.session import LlmperfSession

if TYPE_CHECKING:
    from pytest_llmperf.history.store import Store
    from pytest_llmperf.plugin.stash import Declared

FORMAT = 1
"""Version of the JSON document."""

_NEWEST = 20
"""Records of a test that are looked at for how long it took."""

_NEWEST_OF_ALL = 200
"""Records of all tests that are looked at for how long models load."""

_REPEATED = frozenset({"attempt", "rerun"})
"""What the extra of a record that a gate or a plugin had measured again has."""

WARM_UP_SHARE = 0.5
"""Of the budget: what a warm-up takes at most, the first repetition apart."""

READING_S = 3.0
"""What is read of each model after its samples: energy over so long, and memory."""


class Past(Protocol):
    """What the history knows of tests and models. It is asked, and made nothing in."""

    def took_s(self, test: str) -> float | None:
        """Return how long a test took when it last ran, in s."""

    def processes(self, test: str) -> int | None:
        """Return how many processes its last run was measured in."""

    def measurements(self, test: str) -> int:
        """Return how many runs and comparisons its last session made; one if it is not known."""

    def load_s(self, plan: LoadPlan) -> float | None:
        """Return how long the model took to load and to compile when it last was."""


def write(
    core: LlmperfSession,
    config: pytest.Config,
    items: Sequence[tuple[pytest.Item, Declared | None]],
) -> None:
    """Print one row a test, and write them as JSON where --llmperf-plan-json names a file."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    assert reporter is not None  # noqa: S101 - pytest always registers it
    with _history(core) as past:
        rows = [_row(core, item, declared, past) for item, declared in items]
    write_plan(reporter, rows)
    if core.settings.plan_json is not None:
        _write_json(core.settings.plan_json, rows)


def _write_json(file: Path, rows: Sequence[PlanRow]) -> None:
    try:
        file.write_bytes(as_json(rows))
    except OSError as error:
        raise pytest.UsageError(
            f"--llmperf-plan-json: {file} cannot be written: {error}. Give a writable place."
        ) from error


def as_json(rows: Sequence[PlanRow]) -> bytes:
    """Return the rows, their totals in one sentence, and the device seconds of those that run."""
    running = [row for row in rows if row.status == "run"]
    device_s = sum(row.device_s or 0.0 for row in running)
    tests = [
        {**msgspec.to_builtins(row), "fits": row.fits, "device_s": row.device_s} for row in rows
    ]
    document = {"format": FORMAT, "tests": tests, "device_s": device_s, "totals": totals(rows)}
    return msgspec.json.format(msgspec.json.encode(document), indent=2)


def skip_reason(item: pytest.Item) -> str | None:
    """Return why a test is skipped whatever happens.

    Its marks `skip` count, and `skipif` where the condition is a plain value.
    """
    for mark in item.iter_markers("skip"):
        return str(mark.kwargs.get("reason", mark.args[0] if mark.args else "unconditional skip"))
    for mark in item.iter_markers("skipif"):
        if any(condition and not isinstance(condition, str) for condition in mark.args):
            return str(mark.kwargs.get("reason", "skipif"))
    return None


def _row(core: LlmperfSession, item: pytest.Item, declared: Declared | None, past: Past) -> PlanRow:
    """Return the row of one test: what it would load, or why it cannot run."""
    skipped = skip_reason(item)
    if skipped is not None:
        return PlanRow(test=item.nodeid, status="skip", reason=skipped)
    error = item.stash.get(UNUSABLE, None) if declared is None else declared.error
    if error is not None:
        return PlanRow(test=item.nodeid, status="error", reason=str(error))
    row = PlanRow(test=item.nodeid, n_gpus=_n_gpus(core, item), expected_s=past.took_s(item.nodeid))
    if declared is None or not declared.plans:
        return msgspec.structs.replace(row, device="cuda" if row.n_gpus else "")
    return _with_times(_with_plans(row, core, item, declared), core, declared, past)


def _with_plans(
    row: PlanRow, core: LlmperfSession, item: pytest.Item, declared: Declared
) -> PlanRow:
    """Add what the test loads; the first of its plans stands for all."""
    plan = declared.plans[0]
    return msgspec.structs.replace(
        row,
        model=plan.model.name,
        engine=plan.engine,
        device=core.place.device_text(plan),
        strategy=plan.strategy,
        ranks=max(other.ranks for other in declared.plans),
        weights_bytes=_weights_bytes(declared.plans),
        available_bytes=core.place.free_bytes(plan, item.stash.get(NEED, None)),
        planned_s=float(declared.declaration.budget or core.settings.budget_s),
        load_key=str(hash(plan)),
    )


def _with_times(row: PlanRow, core: LlmperfSession, declared: Declared, past: Past) -> PlanRow:
    """Add what the test costs: its first loads, its processes, and what it takes at most."""
    loads_s = [past.load_s(plan) for plan in declared.plans]
    known_s = [seconds for seconds in loads_s if seconds is not None]
    row = msgspec.structs.replace(
        row,
        processes=core.settings.processes or past.processes(row.test),
        pairs_s=_pairs_s(core, row, sum(known_s), past),
    )
    if len(known_s) < len(loads_s):
        return row
    budget_s = row.planned_s or 0.0
    around_s = budget_s * WARM_UP_SHARE + READING_S * len(loads_s)
    load_s = sum(known_s)
    return msgspec.structs.replace(row, load_s=load_s, predicted_s=load_s + budget_s + around_s)


def _pairs_s(core: LlmperfSession, row: PlanRow, load_s: float, past: Past) -> float | None:
    """Return what --llmperf-against takes at most for the test's measurements, without it None."""
    settings = core.settings
    if settings.against is None:
        return None
    block_s = (row.planned_s or 0.0) * BLOCK_SHARE
    return past.measurements(row.test) * takes_at_most_s(settings.against_budget_s, load_s, block_s)


def _weights_bytes(plans: Sequence[LoadPlan]) -> int | None:
    needed = [placement.needed_bytes(plan) for plan in plans]
    return None if None in needed else sum(n_bytes or 0 for n_bytes in needed)


def _n_gpus(core: LlmperfSession, item: pytest.Item) -> int:
    need = item.stash.get(NEED, None)
    return 0 if need is None else candidates(need, core.place.gpus)[0]


@contextmanager
def _history(core: LlmperfSession) -> Iterator[Past]:
    """Give what the history knows; nothing where there is none. Creates nothing."""
    # SQLAlchemy, only for a plan.
    from pytest_llmperf.history.store import open_store  # noqa: PLC0415

    try:
        if core.settings.store == "none":
            raise StoreError("no history")  # noqa: TRY301 - one way for all that have none
        store = open_store(core.settings.store, create=False, folder=core.settings.root)
    except StoreError:
        yield _Nothing()
        return
    with store:
        yield _Stored(store)


class _Nothing:
    """No history."""

    def took_s(self, _test: str) -> None:
        """Return None."""

    def processes(self, _test: str) -> None:
        """Return None."""

    def measurements(self, _test: str) -> int:
        """Return one."""
        return 1

    def load_s(self, _plan: LoadPlan) -> None:
        """Return None."""


class _Stored:
    """What a store's newest records say."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def took_s(self, test: str) -> float | None:
        """Return the seconds into the test at which its last record was written."""
        return _took_s(self._newest(test))

    def processes(self, test: str) -> int | None:
        """Return the processes of its last run that was spread over some."""
        spread = (record.processes for record in self._newest(test))
        return next((processes.count for processes in spread if processes is not None), None)

    def measurements(self, test: str) -> int:
        """Return how many runs and comparisons its newest session recorded; at least 1."""
        newest = self._newest(test)
        of_session = [record for record in newest if record.session_id == newest[0].session_id]
        first = [record for record in of_session if _REPEATED.isdisjoint(record.extra)]
        return max(1, len({record.paired_with or record.id for record in first}))

    def load_s(self, plan: LoadPlan) -> float | None:
        """Return the newest load time of this model, strategy and engine, in any test.

        With it goes what the model then did before its first timed repetition: it compiled.
        """
        return self._load_times.get((plan.model.name, plan.strategy, plan.engine))

    def _newest(self, test: str) -> list[Record]:
        return list(self._store.records(test=test, limit=_NEWEST))

    @cached_property
    def _load_times(self) -> dict[tuple[str, str, str], float]:
        times: dict[tuple[str, str, str], float] = {}
        for record in self._store.records(limit=_NEWEST_OF_ALL):
            for metric in record.metrics:
                if metric.name == "load_time" and metric.value is not None:
                    key = record.model, record.strategy, record.engine
                    untimed_s = float(record.warm_up.get("untimed_s", 0.0))
                    times.setdefault(key, metric.value + untimed_s)
        return times


def _took_s(newest_first: Sequence[Record]) -> float | None:
    """Return the seconds into the test at which its last record was written.

    The newest session that says so counts.
    """
    known = [
        (record.session_id, float(record.extra["test_s"]))
        for record in newest_first
        if "test_s" in record.extra
    ]
    return max((took_s for session, took_s in known if session == known[0][0]), default=None)
