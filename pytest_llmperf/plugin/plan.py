"""--llmperf-plan: what would run and where, its predicted memory and minutes.

It also says what cannot run, and why. Nothing is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.record import Record
from pytest_llmperf.devices import placement
from pytest_llmperf.devices.selection import candidates
from pytest_llmperf.errors import StoreError
from pytest_llmperf.plugin.stash import NEED, UNUSABLE
from pytest_llmperf.report.plan import PlanRow, totals, write_plan
from pytest_llmperf.session.session import LlmperfSession

if TYPE_CHECKING:
    from pytest_llmperf.plugin.stash import Declared

FORMAT = 1
"""Version of the JSON document."""

_NEWEST = 20
"""Records of a test that are looked at for how long it took."""

Expected = Callable[[str], float | None]


def write(
    core: LlmperfSession,
    config: pytest.Config,
    items: Sequence[tuple[pytest.Item, Declared | None]],
) -> None:
    """Print one row a test, and write them as JSON where --llmperf-plan-json names a file."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    assert reporter is not None  # noqa: S101 - pytest always registers it
    with _history(core) as expected:
        rows = [_row(core, item, declared, expected) for item, declared in items]
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


def _row(
    core: LlmperfSession, item: pytest.Item, declared: Declared | None, expected: Expected
) -> PlanRow:
    """Return the row of one test: what it would load, or why it cannot run."""
    skipped = skip_reason(item)
    if skipped is not None:
        return PlanRow(test=item.nodeid, status="skip", reason=skipped)
    error = item.stash.get(UNUSABLE, None) if declared is None else declared.error
    if error is not None:
        return PlanRow(test=item.nodeid, status="error", reason=str(error))
    row = PlanRow(test=item.nodeid, n_gpus=_n_gpus(core, item), expected_s=expected(item.nodeid))
    if declared is None or not declared.plans:
        return msgspec.structs.replace(row, device="cuda" if row.n_gpus else "")
    return _with_plans(row, core, item, declared)


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


def _weights_bytes(plans: Sequence[LoadPlan]) -> int | None:
    needed = [placement.needed_bytes(plan) for plan in plans]
    return None if None in needed else sum(n_bytes or 0 for n_bytes in needed)


def _n_gpus(core: LlmperfSession, item: pytest.Item) -> int:
    need = item.stash.get(NEED, None)
    return 0 if need is None else candidates(need, core.place.gpus)[0]


@contextmanager
def _history(core: LlmperfSession) -> Iterator[Expected]:
    """Give how long a test took when it last ran, in s, by the history.

    It is None for all tests where there is no history. Creates nothing.
    """
    # SQLAlchemy, only for a plan.
    from pytest_llmperf.history.store import open_store  # noqa: PLC0415

    try:
        if core.settings.store == "none":
            raise StoreError("no history")  # noqa: TRY301 - one way for all that have none
        store = open_store(core.settings.store, create=False, folder=core.settings.root)
    except StoreError:
        yield lambda _test: None
        return
    with store:
        yield lambda test: _took_s(list(store.records(test=test, limit=_NEWEST)))


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
