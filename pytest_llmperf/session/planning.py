"""--llmperf-plan: what would run, its predicted memory and seconds, and what cannot run and why. Nothing is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

from pytest_llmperf.engines.models import predict
from pytest_llmperf.report.plan import PlanRow, write_plan
from pytest_llmperf.session import devices
from pytest_llmperf.session.state import LlmperfSession

if TYPE_CHECKING:
    from pytest_llmperf.session.pytest_session import Declared


def write(core: LlmperfSession, config: pytest.Config, declared: Sequence[tuple[pytest.Item, Declared]]) -> None:
    """Print one row a test."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    assert reporter is not None  # noqa: S101 - pytest always registers it
    write_plan(reporter, [_row(core, item, each) for item, each in declared])


def _row(core: LlmperfSession, item: pytest.Item, each: Declared) -> PlanRow:
    if each.error is not None:
        return PlanRow(test=item.nodeid, status="error", reason=str(each.error))
    needed = [predict(plan) for plan in each.plans]
    first = each.plans[0] if each.plans else None
    skips = list(item.iter_markers("skip"))
    return PlanRow(
        test=item.nodeid,
        status="skip" if skips else "run",
        reason=str(skips[0].kwargs.get("reason", "")) if skips else "",
        model=first.model.name if first else "",
        engine=first.engine if first else "",
        device=first.device if first else "",
        strategy=first.strategy if first else "",
        weights_bytes=None if not needed or None in needed else sum(n or 0 for n in needed),
        available_bytes=devices.free_bytes(first.device) if first else None,
        planned_s=float(each.declaration.budget or core.settings.budget_s),
        load_key=str(hash(first)) if first else "",
    )
