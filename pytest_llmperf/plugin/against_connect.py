"""Where a session becomes one that compares (`--llmperf-against`), or the base side of one that does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llmperf.against import SIDE_PLUGIN

if TYPE_CHECKING:
    from pytest_llmperf.session.session import LlmperfSession


def connect(session: LlmperfSession, config: pytest.Config) -> None:
    """Give the session its comparison, or its base side. A base side compares nothing itself."""
    session.base_side = config.pluginmanager.get_plugin(SIDE_PLUGIN)
    if session.base_side is not None:
        session.base_side.session = session
    target = session.settings.against
    if target is None or session.base_side is not None:
        return
    from pytest_llmperf.against.base import Base  # noqa: PLC0415 - only where something is compared
    from pytest_llmperf.against.comparison import Comparison  # noqa: PLC0415
    from pytest_llmperf.workers.pool import worker_logs  # noqa: PLC0415

    session.comparison = Comparison(
        Base(target, config, session.settings, worker_logs(session.settings.root))
    )
