"""Where pytest meets tests whose body runs elsewhere.

No fixture is made here, and the body's own report takes the call's place. pytest loads this file in
every session, so it imports nothing but pytest; the rest when such a test is set up.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmperf.plugin.bodies import SIDE_PLUGIN
from pytest_llmperf.plugin.stash import BODY, RAN

if TYPE_CHECKING:
    from pytest_llmperf.plugin.bodies.rank import Rank
    from pytest_llmperf.plugin.items import PytestSession

MARKS = ("llmperf_isolated", "llmperf_ranks")


class Bodies:
    """A plugin of its own. In a body side it does nothing: the body runs where it is."""

    def __init__(self, session: Callable[[], PytestSession]) -> None:
        self.session = session

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Take the test's fixtures away: they are made where the body runs.

        What the last test left loaded is unloaded.
        """
        if not _elsewhere(item):
            return
        _stash_body(item)
        item.fixturenames = []  # type: ignore[attr-defined]  # a Function has them
        self.session().runner.make_room()

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> bool | None:
        """Run the body where it belongs."""
        body = pyfuncitem.stash.get(BODY, None)
        if body is None:
            return None
        from pytest_llmperf.plugin.bodies.run import run_body  # noqa: PLC0415

        pyfuncitem.stash[RAN] = run_body(pyfuncitem, body, self.session().core)
        return True

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self,
        item: pytest.Item,
        call: pytest.CallInfo[None],
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Have the call's report say what the body's process said."""
        report = yield
        ran = item.stash.get(RAN, None)
        if call.when == "call" and call.excinfo is None and ran is not None:
            _replace(report, ran)
        return report

    @pytest.fixture
    def llmperf_rank(self, request: pytest.FixtureRequest) -> Rank:
        """A process of `@pytest.mark.llmperf_ranks(n)`.

        It has `.rank`, `.world_size`, and `.init()`, which starts torch.distributed.
        """
        from pytest_llmperf.plugin.bodies.rank import Rank  # noqa: PLC0415

        if request.node.get_closest_marker("llmperf_ranks") is None:
            pytest.fail(
                "llmperf_rank: this test has no ranks. Add @pytest.mark.llmperf_ranks(2).",
                pytrace=False,
            )
        return Rank.of_environment()


def _elsewhere(item: pytest.Item) -> bool:
    marked = any(item.get_closest_marker(name) is not None for name in MARKS)
    return marked and not item.config.pluginmanager.has_plugin(SIDE_PLUGIN)


def _replace(report: pytest.TestReport, ran: Any) -> None:
    """Say of the call what the body's process reported."""
    report.outcome, report.longrepr = ran.outcome, ran.longrepr
    report.sections = [*ran.sections]
    known = report.user_properties
    new_properties = [entry for entry in ran.user_properties if entry not in known]
    report.user_properties = [*known, *new_properties]
    report.llmperf_error = ran.error  # type: ignore[attr-defined]
    if hasattr(report, "wasxfail"):
        del report.wasxfail
    if ran.wasxfail is not None:
        report.wasxfail = ran.wasxfail
    if ran.carried is not None:
        report.llmperf = ran.carried  # type: ignore[attr-defined]
    elif hasattr(report, "llmperf"):
        del report.llmperf


def _stash_body(item: pytest.Item) -> None:
    """Note what the test's marker asks for. A marker that cannot be used fails the test."""
    from pytest_llmperf.errors import UsageError  # noqa: PLC0415
    from pytest_llmperf.plugin.bodies.marks import body_of  # noqa: PLC0415

    try:
        item.stash[BODY] = body_of(item)
    except UsageError as error:
        pytest.fail(str(error), pytrace=False)
