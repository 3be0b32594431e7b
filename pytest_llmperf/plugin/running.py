"""Around each test: what it leases, what is released after it, and what it must give back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, NoReturn

import pytest

from pytest_llmperf.devices.selection import Need
from pytest_llmperf.errors import LlmperfError, MemoryNotReturned
from pytest_llmperf.plugin.declarations import Declarations, known_plans
from pytest_llmperf.plugin.ours import our_fixtures
from pytest_llmperf.plugin.stash import ATTEMPTS, DECLARED, FAILED, FINDINGS
from pytest_llmperf.report.live import LiveLine
from pytest_llmperf.session.session import LlmperfSession
from pytest_llmperf.workers.memory_check import held_by_fixture

if TYPE_CHECKING:
    from pytest_llmperf.against.comparison import Comparison


class Runner:
    """Runs tests with the session's models and GPUs."""

    def __init__(
        self,
        core: LlmperfSession,
        declarations: Declarations,
        comparison: Comparison | None,
        live: LiveLine,
    ) -> None:
        self._core = core
        self._declarations = declarations
        self._comparison = comparison
        self._live = live

    def collected(self, items: Sequence[pytest.Item]) -> None:
        """Take in the llmperf tests that may run."""
        if self._core.settings.skip:
            for item in items:
                item.add_marker(pytest.mark.skip(reason="--llmperf-skip"))
        if self._core.gate is not None:
            self._core.gate.planned_tests = len(items)
        if self._comparison is not None:
            self._comparison.collected([item.nodeid for item in items])

    def open_store(self) -> None:
        """Open the store before anything is measured. Raises StoreError."""
        self._core.recorder.open()

    @contextmanager
    def running(self, item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
        """Run one test. Models that the next test does not use are released at its end."""
        declared = self._declarations.of(item).declaration
        with (
            self._beside_base(item, nextitem),
            self._core.test(item.nodeid, declared) as findings,
        ):
            item.stash[FINDINGS] = findings
            item.stash[ATTEMPTS] = 0
            try:
                yield
            finally:
                self._live.clear()
                self._core.release_except(known_plans(nextitem))

    def begin_attempt(self, item: pytest.Item) -> None:
        """Start a test's run, or its next where a plugin reruns it.

        What the one before measured and claimed stays as that one ended.
        """
        item.stash[ATTEMPTS] += 1
        if item.stash[ATTEMPTS] > 1:
            item.stash[FINDINGS].clear()
            self._core.recorder.begin_rerun(item.stash[ATTEMPTS])

    def lease(self, item: pytest.Item, need: Need, *, measures: bool) -> None:
        """Hold the GPUs of a test. Raises as `Gpus.require`."""
        if DECLARED in item.stash and self._declarations.of(item).error is not None:
            return
        if known_plans(item):
            self._core.place.lease(need, measures=measures)
        else:
            self._core.gpus.require(need, measures=measures)

    def begin_watching(self, item: pytest.Item) -> None:
        """Watch what the test's own process holds, where it may measure a model of its own."""
        if "llmperf" in our_fixtures(item):
            self._core.own.begin(getattr(item, "module", None))

    def give_back(self, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        """Unload and give back what the next test does not use.

        Raises MemoryNotReturned for what this one has kept.
        """
        self._core.release_except(known_plans(nextitem))
        # The traceback of a failed test keeps what its frames hold.
        if FAILED in item.stash or not self._core.own.models:
            return
        getattr(item, "funcargs", {}).clear()  # pytest lets go of them after this hook
        leftovers = self._core.own.kept(lambda model: held_by_fixture(item, model))
        if leftovers:
            raise MemoryNotReturned(
                f"{'; '.join(leftovers)}. Let go of it, "
                "or make the model in a fixture of a wider scope."
            )

    def make_room(self) -> None:
        """Unload everything: what runs next loads in processes of its own."""
        self._core.release_except(())

    def close(self) -> None:
        """End every worker and close the store. Raises StoreError for what was lost."""
        try:
            self._core.close()
        finally:
            if self._comparison is not None:
                self._comparison.close()

    @contextmanager
    def _beside_base(self, item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
        """Begin and end the test at the base, too, where the session compares."""
        if self._comparison is None:
            yield
            return
        self._comparison.begin(item.nodeid, nextitem.nodeid if nextitem is not None else None)
        try:
            yield
        finally:
            self._comparison.end()


class IdleRunner:
    """Runs nothing: the session's options cannot be used, and `error` says why."""

    def __init__(self, error: LlmperfError) -> None:
        self._error = error

    def collected(self, items: Sequence[pytest.Item]) -> None:
        """Leave the tests as they are: each is an ERROR when it is set up."""

    def open_store(self) -> NoReturn:
        """Raise the error."""
        raise self._error

    def running(
        self,
        item: pytest.Item,  # noqa: ARG002 - as Runner
        nextitem: pytest.Item | None,  # noqa: ARG002
    ) -> AbstractContextManager[None]:
        """Let pytest set the test up, which fails."""
        return nullcontext()

    def begin_attempt(self, item: pytest.Item) -> None:
        """Begin nothing."""

    def lease(self, item: pytest.Item, need: Need, *, measures: bool) -> NoReturn:  # noqa: ARG002
        """Raise the error."""
        raise self._error

    def begin_watching(self, item: pytest.Item) -> None:
        """Watch nothing."""

    def give_back(self, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        """Give nothing back: nothing was leased."""

    def make_room(self) -> None:
        """Unload nothing: nothing was loaded."""

    def close(self) -> None:
        """End nothing: nothing was started."""
