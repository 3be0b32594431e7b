"""Tests that need GPUs, llmperf or not.

They are selected by what this pool has, and each holds its devices while it runs. pytest loads this
file in every session, so it imports nothing but pytest; the rest when a test asks for a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

import pytest

from pytest_llmperf.names import GPUS_MARK
from pytest_llmperf.plugin.stash import FAILED, NEED, UNUSABLE

if TYPE_CHECKING:
    from pytest_llmperf.devices.inventory import Gpu
    from pytest_llmperf.devices.selection import Shortfall
    from pytest_llmperf.plugin.items import PytestSession

LANES = "llmperf_lanes"
LANES_HELP = (
    "the sets of arguments that tests are run with, one a line as 'NAME: [GPUS] ARGUMENTS'; "
    "read by 'llmperf audit'"
)

PROPERTY = "llmperf_gpus"
"""User property of a report that is skipped for want of GPUs.

It is JSON with `needs`, `pool` and `eligible`.
"""


class GpuTests:
    """A plugin of its own, so that the hooks of GPUs stand in one place."""

    def __init__(
        self, session: Callable[[], PytestSession], is_llmperf: Callable[[pytest.Item], bool]
    ) -> None:
        self._session = session
        self._is_llmperf = is_llmperf

    def pytest_report_header(self) -> str | None:
        """Name a simulated inventory before anything else."""
        simulated = os.environ.get("LLMPERF_SIMULATED_GPUS")
        if simulated is None:
            return None
        return f"llmperf: SIMULATED GPUs ({simulated}); no model can be loaded on them"

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Skip the tests whose needs the pool cannot meet.

        What is wrong with a marker is its test's ERROR later.
        """
        for item in items:
            if self._concerns(item):
                self._select(item)

    @pytest.hookimpl
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Lease what the test needs, before its fixtures are made.

        A declaration that cannot be used takes nothing.
        """
        if UNUSABLE in item.stash:
            # An llmperf test's error is raised with its declaration's.
            if not self._is_llmperf(item):
                pytest.fail(str(item.stash[UNUSABLE]), pytrace=False)
            return
        need = item.stash.get(NEED, None)
        if need is not None:
            self._session().runner.lease(item, need, measures=self._is_llmperf(item))
        if self._is_llmperf(item):
            self._session().runner.begin_watching(item)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        """Unload what the next test does not use, after this one's fixtures.

        See that its memory is back, and give devices back.
        """
        try:
            return (yield)
        finally:
            if self._concerns(item):
                self._session().runner.give_back(item, nextitem)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Fail other tests that were selected and skipped, too, under --llmperf-strict."""
        report = yield
        if report.failed:
            item.stash[FAILED] = True
        if (
            report.skipped
            and not hasattr(report, "wasxfail")
            and self._concerns(item)
            and not self._is_llmperf(item)
        ):
            self._session().reporter.judge_skip(report)
        return report

    @pytest.fixture
    def llmperf_devices(self, request: pytest.FixtureRequest) -> tuple[Gpu, ...]:
        """The GPUs that this test holds, by `@pytest.mark.llmperf_gpus` or its models' need.

        Each has `.torch_name` ("cuda:1"), `.uuid`, `.name`, `.total_bytes` and `.selector`, which
        is what CUDA_VISIBLE_DEVICES calls it in a process that the test starts.
        """
        need = request.node.stash.get(NEED, None)
        if need is None:
            pytest.fail(
                "llmperf_devices: this test leases no GPU. Add @pytest.mark.llmperf_gpus(1).",
                pytrace=False,
            )
        return self._session().core.gpus.held

    def _concerns(self, item: pytest.Item) -> bool:
        return item.get_closest_marker(GPUS_MARK) is not None or self._is_llmperf(item)

    def _select(self, item: pytest.Item) -> None:
        """Skip a test whose need the pool cannot meet, and note what is wrong with its marker."""
        from pytest_llmperf.errors import LlmperfError  # noqa: PLC0415

        try:
            short = self._shortfall(item)
        except LlmperfError as error:
            item.stash[UNUSABLE] = error
            if self._is_llmperf(item):
                self._session().declarations.refuse(item, error)
            return
        if short is not None:
            item.add_marker(pytest.mark.skip(reason=short.reason))
            item.user_properties.append((PROPERTY, short.as_json()))

    def _shortfall(self, item: pytest.Item) -> Shortfall | None:
        """Return why the pool cannot meet the test's need; None where it can. Raises UsageError."""
        from pytest_llmperf.plugin.gpu_needs import need_of_test, shortfall_of  # noqa: PLC0415

        session = self._session()
        plans = session.declarations.of(item).plans if self._is_llmperf(item) else ()
        need = need_of_test(item, plans)
        item.stash[NEED] = need
        core = session.core
        if need is None:
            return None
        short = shortfall_of(need, core.place.gpus if plans else core.gpus.pool, plans)
        if short is None and plans:
            core.place.require_any_gpu_meets(need)
        return short
