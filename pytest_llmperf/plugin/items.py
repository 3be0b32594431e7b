"""Between pytest and a session of llmperf: its parts, put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmperf.against import SIDE_PLUGIN
from pytest_llmperf.errors import StoreError, UsageError
from pytest_llmperf.plugin.declarations import Declarations, declared_by, refused_for
from pytest_llmperf.plugin.fixtures import Fixtures
from pytest_llmperf.plugin.reporting import Reporter, SessionReporter
from pytest_llmperf.plugin.running import IdleRunner, Runner
from pytest_llmperf.plugin.stash import DECLARED, NEED, UNUSABLE
from pytest_llmperf.report.live import open_live
from pytest_llmperf.session.session import LlmperfSession
from pytest_llmperf.settings.options import Option
from pytest_llmperf.settings.settings import read

if TYPE_CHECKING:
    from pytest_llmperf.against.comparison import Comparison
    from pytest_llmperf.settings.against_target import Target


class PytestSession:
    """Made when the first llmperf test is collected; closed when pytest is done.

    Where an option cannot be used nothing runs, and every llmperf test is an ERROR that says why.
    """

    declarations: Declarations
    runner: Runner | IdleRunner
    reporter: Reporter

    def __init__(self, config: pytest.Config, raw: Callable[[Option], Any]) -> None:
        self._config = config
        self._live = open_live(config)
        try:
            core = LlmperfSession(read(raw, config.rootpath), self._live.update)
        except UsageError as error:
            self._idle(error)
        else:
            self._run(core)

    @property
    def core(self) -> LlmperfSession:
        """The session proper. Raises the UsageError of an option that cannot be used."""
        if isinstance(self._core, UsageError):
            raise self._core
        return self._core

    @property
    def fixtures(self) -> Fixtures:
        """What makes the values of fixtures. Raises as `core`."""
        return Fixtures(self.core, self.declarations)

    def collected(self, llmperf_items: list[pytest.Item], items: list[pytest.Item]) -> None:
        """Declare the llmperf tests, and put those with equal loads side by side."""
        self.declarations.group(llmperf_items, items)
        self.runner.collected(llmperf_items)

    def require_usable(self, item: pytest.Item) -> None:
        """Begin a run of the test. Raise what was wrong with its declaration, or with the store."""
        self.runner.begin_attempt(item)
        error = self.declarations.of(item).error
        if error is not None:
            raise error
        self.runner.open_store()

    def write_plan(self, session: pytest.Session) -> None:
        """Print what would run: llmperf tests, and others that need GPUs."""
        from pytest_llmperf.plugin.plan import write  # noqa: PLC0415

        items = [item for item in session.items if _is_planned(item)]
        rows = [(item, item.stash.get(DECLARED, None)) for item in items]
        write(self.core, self._config, rows)

    def close(self) -> str:
        """End every worker and close the store. May be called again.

        Returns what was lost, if anything was.
        """
        self._live.clear()
        try:
            self.runner.close()
        except StoreError as error:
            return str(error)
        return ""

    def _run(self, core: LlmperfSession) -> None:
        comparison = _connect(core, self._config)
        self._core: LlmperfSession | UsageError = core
        self.declarations = Declarations(declared_by(core))
        self.runner = Runner(core, self.declarations, comparison, self._live)
        self.reporter = SessionReporter(core, self.declarations, comparison, self._live)

    def _idle(self, error: UsageError) -> None:
        self._core = error
        self.declarations = Declarations(refused_for(error))
        self.runner = IdleRunner(error)
        self.reporter = Reporter(self._live)


def _connect(core: LlmperfSession, config: pytest.Config) -> Comparison | None:
    """Add a comparison to the session's judges, or let a base side measure in its place.

    A base side compares nothing itself. Returns the comparison, if there is one.
    """
    base_side = config.pluginmanager.get_plugin(SIDE_PLUGIN)
    if base_side is not None:
        base_side.join(core)
        core.stand_in = base_side
        return None
    target = core.settings.against
    if target is None:
        return None
    comparison = _comparison(target, core, config)
    core.judges.append(comparison)
    return comparison


def _comparison(target: Target, core: LlmperfSession, config: pytest.Config) -> Comparison:
    from pytest_llmperf.against.base import Base  # noqa: PLC0415 - only where something is compared
    from pytest_llmperf.against.comparison import Comparison  # noqa: PLC0415
    from pytest_llmperf.workers.pool import worker_logs  # noqa: PLC0415

    logs = worker_logs(core.settings.root)
    return Comparison(Base(target, config, core.settings, logs), core)


def _is_planned(item: pytest.Item) -> bool:
    """Whether an item is an llmperf test, or one that needs GPUs, as far as it can be used."""
    is_declared = DECLARED in item.stash or UNUSABLE in item.stash
    return is_declared or item.stash.get(NEED, None) is not None
