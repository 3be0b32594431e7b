"""What is judged when a test's body is over.

That is a benchmark's rounds, and whether it still measures what it did.
"""

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
    """Judge a test that passed so far.

    Raises:
        Regression: a benchmark is slower than its history allows, or a run is missing and the
            session requires accepted sessions.
    """
    core.recorder.test_is_over = True
    if (
        judge_benchmark(core, item, declared)
        or core.gate is None
        or core.settings.disable
        or _is_judged_elsewhere(item)
    ):
        return
    core.gate.missing(item.nodeid, core.id, list(core.recorder.records.values()))


def _is_judged_elsewhere(item: pytest.Item) -> bool:
    """Whether what the body measured is not judged here.

    Another process that ran the body judges it, and a rank after the first need not measure
    anything.
    """
    is_body_side = item.config.pluginmanager.has_plugin(SIDE_PLUGIN)
    is_further_rank = is_body_side and os.environ.get("RANK", "0") != "0"
    return is_further_rank or item.stash.get(BODY, None) is not None
