"""`python -P -m pytest_llmperf.against.side --spec JSON --fd N`: a base side.

It is a pytest process that measures when it is told to, and answers the commands of `wire.messages`
as a worker does. `RunTest` runs a test of the base; when the test measures, the answer is
`Reached`, and the test waits there until `GoOn` or `LeaveTest`. Its claims on speed are not judged
here.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.util
import os
import signal
import socket
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import pytest

from pytest_llmperf.against import SIDE_PLUGIN
from pytest_llmperf.against.blocks import measure_block
from pytest_llmperf.against.desk import Desk
from pytest_llmperf.against.invocation import Invocation, taken_over
from pytest_llmperf.against.trees import drop_steering, strays
from pytest_llmperf.core.metrics.results import RunResult
from pytest_llmperf.core.side import SideFacts
from pytest_llmperf.core.verdicts.unjudged_quantity import UnjudgedQuantity
from pytest_llmperf.errors import InvalidRun, LlmperfError, WorkerError
from pytest_llmperf.processes import die_with_parent, lead_own_group
from pytest_llmperf.secrets import masked
from pytest_llmperf.session.judges import MeasuringSession
from pytest_llmperf.session.measured import Loadable, Work
from pytest_llmperf.wire.commands import (
    AnyCommand,
    Close,
    GiveBack,
    GoOn,
    LeaveTest,
    MeasureBlock,
    RunTest,
)
from pytest_llmperf.wire.frames import worker_end
from pytest_llmperf.wire.results import BlockMeasured, Closed, Ended, Reached

_UNMEASURED = "the base side gives its numbers to the session that compares"


@dataclass(frozen=True, kw_only=True)
class PendingMeasurement:
    """What the running test waits to measure."""

    session: MeasuringSession
    models: Sequence[Loadable]
    workload: Work

    def facts(self, model: Loadable) -> SideFacts:
        """Return what the record of this model would say of its work and its environment."""
        record = self.session.recorder.describe(model.load(), self.workload)
        return SideFacts(
            workload_key=record.workload_key,
            workload_text=record.workload_text,
            strategy=record.strategy,
            engine=record.engine,
            model=record.model,
            model_hash=record.model_hash,
            environment_key=record.environment_key,
            facts=record.environment.facts,
        )

    def block(self, command: MeasureBlock) -> BlockMeasured:
        """Measure one block. Raises as `measure_block`."""
        return measure_block(self.session, self.models, self.workload, command)


class BaseSide:
    """The pytest plugin of a base side.

    It collects as ever, then runs the tests that it is told to.
    """

    def __init__(self, desk: Desk, spec: Invocation) -> None:
        self.__name__ = SIDE_PLUGIN  # the plugin manager knows it by this
        self.closed = False
        self._session: MeasuringSession | None = None
        self._desk = desk
        self._spec = spec
        self._items: dict[str, pytest.Item] = {}
        self._broken: dict[str, str] = {}
        self._declared: set[str] = set()
        self._test: RunTest | None = None
        self._ended = Ended(outcome="passed")
        self._test_was_left = False

    # pytest's hooks

    @pytest.hookimpl(wrapper=True)
    def pytest_load_initial_conftests(
        self, early_config: pytest.Config
    ) -> Generator[None, object, object]:
        """Note which options exist before the project's conftest files add theirs."""
        self._declared = set(vars(early_config.known_args_namespace))
        return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Give the project's own options the values that they have at the head."""
        for name in set(vars(config.option)) - self._declared:
            if name in self._spec.options:
                setattr(config.option, name, self._spec.options[name])

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep every item: which of them run is not decided here."""
        self._items = {item.nodeid: item for item in items}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep why a file could not be collected."""
        if report.failed:
            self._broken[report.nodeid.partition("::")[0]] = _last_line(report.longreprtext)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run tests as they are asked for, until Close."""
        while not isinstance(command := self._desk.next(), Close):
            if isinstance(command, RunTest):
                self._run(session, command)
            else:
                self._desk.fail(_out_of_place(command, "whose test has ended"))
        self.closed = True
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how the test ends; the first thing that went wrong counts."""
        if self._ended.outcome == "passed" and not report.passed and not self._test_was_left:
            self._ended = Ended(outcome=report.outcome, message=_reason(report))

    # Measuring

    def join(self, session: MeasuringSession) -> None:
        """Measure in the place of this session from now on."""
        self._session = session

    def measure(self, models: Sequence[Loadable], workload: Work) -> list[RunResult]:
        """Say where the test is, measure blocks when told, and go on when told."""
        assert self._session is not None  # noqa: S101 - set before a test runs
        if not self._desk.has_open_command:
            self._leave()
        pending = PendingMeasurement(session=self._session, models=models, workload=workload)
        self._answer_reached(pending)
        command = self._measure_blocks(pending)
        if isinstance(command, LeaveTest):
            self._leave()
        if not isinstance(command, GoOn):
            self._desk.fail(_out_of_place(command, "that waits in a test"))
            self._leave()
        self._session.gpus.borrow(command.gpus)
        return [RunResult.unmeasured(_UNMEASURED, UnjudgedQuantity) for _ in models]

    def _measure_blocks(self, pending: PendingMeasurement) -> AnyCommand:
        """Measure blocks, and give memory back, until another command comes; return that one."""
        while isinstance(command := self._desk.next(), MeasureBlock | GiveBack):
            if isinstance(command, MeasureBlock):
                self._answer_block(pending, command)
            else:
                pending.session.release_except(())
                self._desk.answer(Closed())
        return command

    def _answer_reached(self, pending: PendingMeasurement) -> None:
        facts = tuple(pending.facts(model) for model in pending.models)
        stray_modules = strays(self._spec.trees, self._spec.trees.base, sys.modules)
        self._release(pending)
        self._desk.answer(Reached(sides=facts, strays=stray_modules))

    def _answer_block(self, pending: PendingMeasurement, command: MeasureBlock) -> None:
        """Measure and answer. An invalid block is an answer: another may follow.

        Any other error ends the test.
        """
        try:
            block = pending.block(command)
            self._release(pending)
        except InvalidRun as error:
            self._desk.fail(error)
        except LlmperfError as error:
            self._desk.fail(error)
            raise
        else:
            self._desk.answer(block)

    def _release(self, pending: PendingMeasurement) -> None:
        if self._test is not None and self._test.release:
            pending.session.renew(pending.models)

    def _leave(self) -> NoReturn:
        self._test_was_left = True
        pytest.skip("the comparison is over")

    # Tests

    def _run(self, session: pytest.Session, command: RunTest) -> None:
        item = self._items.get(command.nodeid) or self._items.get(_without_group(command.nodeid))
        if item is None:
            self._desk.answer(self._missing(command.nodeid))
            return
        self._test, self._ended, self._test_was_left = command, Ended(outcome="passed"), False
        if self._session is not None:
            self._session.gpus.borrow(command.gpus)
        # The test before it may have expected another to follow.
        session._setupstate.teardown_exact(item)  # noqa: SLF001
        self._run_item(item, command)
        if self._desk.has_open_command:
            self._desk.answer(self._ended)

    def _run_item(self, item: pytest.Item, command: RunTest) -> None:
        following = self._items.get(command.next_nodeid or "")
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if command.gpus and self._session is not None:
            self._session.release_except(())

    def _missing(self, nodeid: str) -> Ended:
        file = nodeid.partition("::")[0]
        if file in self._broken:
            return Ended(outcome="broken", message=self._broken[file])
        has_file = self._has(file)
        message = "it has the file, not the test" if has_file else "it has no such file"
        return Ended(outcome="missing", message=message)

    def _has(self, file: str) -> bool:
        return self._spec.trees.in_base(self._spec.rootdir / file).exists()


def main(argv: list[str] | None = None) -> int:
    """Serve on the inherited socket until Close, or until the session ends."""
    options = _parser().parse_args(argv)
    _show_stacks()
    lead_own_group()
    if options.die_with_parent:
        die_with_parent()
    os.set_inheritable(options.fd, False)
    drop_steering(os.environ)
    spec = taken_over(os.environ, options.spec)  # before the desk says hello
    desk = Desk(worker_end(socket.socket(fileno=options.fd)))
    return serve(desk, spec)


def serve(desk: Desk, spec: Invocation) -> int:
    """Run pytest until Close.

    A pytest that ends before is the answer to the open command, or to the first one.
    """
    side = BaseSide(desk, spec)
    arguments = spec.arguments(xdist=importlib.util.find_spec("xdist") is not None)
    code = int(pytest.main(arguments, plugins=[side]))
    if not desk.has_open_command:
        desk.next()
    if side.closed:
        desk.answer(Closed())
    else:
        command_line = masked(f"pytest {' '.join(arguments)}")
        desk.fail(WorkerError(f"pytest at the base ended with exit code {code}: {command_line}"))
    return code


def _show_stacks() -> None:
    """Have the stacks of a hang written into the log: pytest captures file descriptor 2."""
    log = os.dup(sys.stderr.fileno())
    faulthandler.enable(file=log)
    faulthandler.register(signal.SIGUSR1, file=log, all_threads=True)


def _without_group(nodeid: str) -> str:
    """Under `--dist loadgroup` pytest-xdist appends "@group" to the ids of its workers."""
    return nodeid.rpartition("@")[0]


def _out_of_place(command: AnyCommand, where: str) -> WorkerError:
    return WorkerError(f"{type(command).__name__} was sent to a base side {where}.")


def _reason(report: pytest.TestReport) -> str:
    """Return why a test was skipped or failed, in one line."""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2]
    return _last_line(report.longreprtext)


def _last_line(text: str) -> str:
    """Return what went wrong: the first line that pytest marks with E, else the last line."""
    lines = [line for line in text.splitlines() if line.strip()]
    marked = [line[1:].strip() for line in lines if line.startswith("E ")]
    if marked:
        return marked[0]
    return lines[-1].strip() if lines else "no reason was given"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pytest_llmperf.against.side", description=__doc__
    )
    parser.add_argument(
        "--spec", required=True, help="an Invocation as JSON, without what is secret"
    )
    parser.add_argument(
        "--fd", type=int, required=True, help="inherited stream socket to the session"
    )
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--world-size", type=int, default=1)
    parser.add_argument("--die-with-parent", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
