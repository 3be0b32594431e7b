"""What is judged when a test's body is over: a benchmark's rounds, and what it did not measure any more."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from pytest_llmperf.plugin.benchmark_fixture import judge_benchmark
from pytest_llmperf.plugin.bodies import SIDE_PLUGIN
from pytest_llmperf.plugin.stash import BODY

if TYPE_CHECKING:
    from pytest_llmperf.session.declare import Declaration
    from pytest_llmperf.session.session import LlmperfSession


def judge_end(core: LlmperfSession, item: pytest.Item, declared: Declaration) -> None:
    """For a test that passed so far.

    Raises:
        Regression: a benchmark is slower than its history allows, or a run is missing and the
            session requires a baseline.
    """
    core.recorder.test_is_over = True
    if (
        judge_benchmark(core, item, declared)
        or core.gate is None
        or core.settings.disable
        or _elsewhere(item)
    ):
        return
    core.gate.missing(item.nodeid, core.id, list(core.recorder.records.values()))


def _elsewhere(item: pytest.Item) -> bool:
    """Whether the body ran in another process, which judges it, or is that of a rank that need not measure anything."""
    further_rank = (
        item.config.pluginmanager.has_plugin(SIDE_PLUGIN) and os.environ.get("RANK", "0") != "0"
    )
    return further_rank or item.stash.get(BODY, None) is not None
