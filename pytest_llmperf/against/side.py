"""`python -P -m pytest_llmperf.against.side --spec JSON --fd N`: a base side, a pytest process that measures when told.

It answers the commands of `wire.messages` as a worker does. `RunTest` runs a test of the base; when the test measures, the
answer is `Reached`, and the test waits there until `GoOn` or `LeaveTest`. Its claims on speed are not judged here.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.util
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, NoReturn

import pytest

from pytest_llmperf.against import SIDE_PLUGIN
from pytest_llmperf.against.blocks import measure_block
from pytest_llmperf.against.invocation import Invocation, decode
from pytest_llmperf.against.trees import drop_steering, strays
from pytest_llmperf.core.metrics.results import RunResult
from pytest_llmperf.core.side import SideFacts
from pytest_llmperf.core.verdicts.unjudged_quantity import UnjudgedQuantity
from pytest_llmperf.errors import InvalidRun, LlmperfError, WorkerError
from pytest_llmperf.processes import die_with_parent, lead_own_group
from pytest_llmperf.session.sampling import Goal
from pytest_llmperf.wire.commands import (
    AnyCommand,
    Close,
    GiveBack,
    GoOn,
    LeaveTest,
    MeasureBlock,
    RunTest,
)
from pytest_llmperf.wire.frames import Wire, worker_end
from pytest_llmperf.wire.messages import Hello, Reply
from pytest_llmperf.wire.results import Closed, Ended, Reached, Result
from pytest_llmperf.worker.failures import failure
from pytest_llmperf.worker.loop import Pulse, read
from pytest_llmperf.workloads import Workload

if TYPE_CHECKING:
    from pytest_llmperf.session.model import Model
    from pytest_llmperf.session.session import LlmperfSession

_UNMEASURED = "the base side gives its numbers to the session that compares"


class Desk:
    """Where commands arrive and answers leave.

    Each command has one answer, given by whoever finishes what it asked.
    """

    def __init__(self, wire: Wire[AnyCommand]) -> None:
        self._wire = wire
        self._commands: queue.SimpleQueue[AnyCommand] = queue.SimpleQueue()
        wire.send(Hello(rank=0, pid=os.getpid(), python=sys.version.split()[0]), timeout_s=None)
        threading.Thread(
            target=read, args=(wire, self._commands), name="llmperf-reader", daemon=True
        ).start()
        self._pulse = Pulse(wire, 0)
        self.owes = False

    def next(self) -> AnyCommand:
        """Wait for a command. It is answered by the next `answer` or `fail`."""
        command = self._commands.get()
        self.owes = True
        self._pulse.start(_describe(command))
        return command

    def answer(self, result: Result) -> None:
        """Answer the open command."""
        self._send(Reply(rank=0, result=result))

    def fail(self, error: BaseException) -> None:
        """Answer the open command with an error."""
        self._send(Reply(rank=0, failure=failure(error)))

    def _send(self, reply: Reply) -> None:
        self._pulse.stop()
        self.owes = False
        self._wire.send(reply, timeout_s=None)


class BaseSide:
    """The pytest plugin of a base side: collects as ever, then runs the tests that it is told to."""

    def __init__(self, desk: Desk, spec: Invocation) -> None:
        self.__name__ = SIDE_PLUGIN  # the plugin manager knows it by this
        self.closed = False
        self.session: LlmperfSession | None = None
        self._desk = desk
        self._spec = spec
        self._items: dict[str, pytest.Item] = {}
        self._broken: dict[str, str] = {}
        self._declared: set[str] = set()
        self._test: RunTest | None = None
        self._ended = Ended(outcome="passed")
        self._left = False

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
                self._desk.fail(
                    WorkerError(
                        f"{type(command).__name__} was sent to a base side whose test has ended."
                    )
                )
        self.closed = True
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how the test ends; the first thing that went wrong counts."""
        if self._ended.outcome == "passed" and not report.passed and not self._left:
            reason = (
                report.longrepr[2]
                if isinstance(report.longrepr, tuple)
                else _last_line(report.longreprtext)
            )
            self._ended = Ended(outcome=report.outcome, message=reason)

    # Measuring

    def measure(
        self, session: LlmperfSession, models: Sequence[Model], workload: Workload
    ) -> list[RunResult]:
        """In place of measuring: say where the test is, measure blocks when told, and go on when told."""
        if not self._desk.owes:
            self._leave()
        self._answer_reached(session, models, workload)
        while isinstance(command := self._desk.next(), MeasureBlock | GiveBack):
            if isinstance(command, MeasureBlock):
                self._block(session, models, workload, command)
            else:
                session.release_except(())
                self._desk.answer(Closed())
        if isinstance(command, LeaveTest):
            self._leave()
        if not isinstance(command, GoOn):
            self._desk.fail(
                WorkerError(
                    f"{type(command).__name__} was sent to a base side that waits in a test."
                )
            )
            self._leave()
        session.gpus.borrow(command.gpus)
        return [RunResult.unmeasured(_UNMEASURED, UnjudgedQuantity) for _ in models]

    def _answer_reached(
        self, session: LlmperfSession, models: Sequence[Model], workload: Workload
    ) -> None:
        facts = tuple(_facts(session, model, workload) for model in models)
        found = strays(self._spec.trees, self._spec.trees.base, sys.modules)
        self._release(session, models)
        self._desk.answer(Reached(sides=facts, strays=found))

    def _block(
        self,
        session: LlmperfSession,
        models: Sequence[Model],
        workload: Workload,
        command: MeasureBlock,
    ) -> None:
        """Measure and answer. An invalid block is an answer: another may follow.

        Any other error ends the test.
        """
        goal = Goal(precision=command.precision, budget_s=command.budget_s)
        load = [model.load for model in models]
        try:
            if command.fresh:
                session.renew(models)
            block = measure_block(
                load,
                workload,
                command.metrics,
                goal,
                session.progress,
                first_repetition=command.first_repetition,
            )
            self._release(session, models)
        except InvalidRun as error:
            self._desk.fail(error)
        except LlmperfError as error:
            self._desk.fail(error)
            raise
        else:
            self._desk.answer(block)

    def _release(self, session: LlmperfSession, models: Sequence[Model]) -> None:
        if self._test is not None and self._test.release:
            session.renew(models)

    def _leave(self) -> NoReturn:
        self._left = True
        pytest.skip("the comparison is over")

    # Tests

    def _run(self, session: pytest.Session, command: RunTest) -> None:
        item = self._items.get(command.nodeid) or self._items.get(_without_group(command.nodeid))
        if item is None:
            self._desk.answer(self._missing(command.nodeid))
            return
        self._test, self._ended, self._left = command, Ended(outcome="passed"), False
        if self.session is not None:
            self.session.gpus.borrow(command.gpus)
        following = self._items.get(command.next_nodeid or "")
        # The test before it may have expected another to follow.
        session._setupstate.teardown_exact(item)  # noqa: SLF001
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if command.gpus and self.session is not None:
            self.session.release_except(())
        if self._desk.owes:
            self._desk.answer(self._ended)

    def _missing(self, nodeid: str) -> Ended:
        file = nodeid.partition("::")[0]
        if file in self._broken:
            return Ended(outcome="broken", message=self._broken[file])
        return Ended(
            outcome="missing",
            message="it has the file, not the test" if self._has(file) else "it has no such file",
        )

    def _has(self, file: str) -> bool:
        return self._spec.trees.there(self._spec.rootdir / file).exists()


def main(argv: list[str] | None = None) -> int:
    """Serve on the inherited socket until Close, or until the session ends."""
    options = _parser().parse_args(argv)
    # pytest captures file descriptor 2, and the stacks of a hang belong in the log.
    log = os.dup(sys.stderr.fileno())
    faulthandler.enable(file=log)
    faulthandler.register(signal.SIGUSR1, file=log, all_threads=True)
    lead_own_group()
    if options.die_with_parent:
        die_with_parent()
    os.set_inheritable(options.fd, False)
    drop_steering(os.environ)
    desk = Desk(worker_end(socket.socket(fileno=options.fd)))
    return serve(desk, decode(options.spec))


def serve(desk: Desk, spec: Invocation) -> int:
    """Run pytest until Close.

    A pytest that ends before is the answer to the open command, or to the first one.
    """
    side = BaseSide(desk, spec)
    arguments = spec.arguments(xdist=importlib.util.find_spec("xdist") is not None)
    code = int(pytest.main(arguments, plugins=[side]))
    if not desk.owes:
        desk.next()
    if side.closed:
        desk.answer(Closed())
    else:
        desk.fail(
            WorkerError(
                f"pytest at the base ended with exit code {code}: pytest {' '.join(arguments)}"
            )
        )
    return code


def _facts(session: LlmperfSession, model: Model, workload: Workload) -> SideFacts:
    record = session.recorder.describe(model.load(), workload)
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


def _without_group(nodeid: str) -> str:
    """Under `--dist loadgroup` pytest-xdist appends "@group" to the ids of its workers."""
    return nodeid.rpartition("@")[0]


def _describe(command: AnyCommand) -> str:
    return f"RunTest {command.nodeid}" if isinstance(command, RunTest) else type(command).__name__


def _last_line(text: str) -> str:
    """What went wrong, of a report: the first of the lines that pytest marks with E, else the last line."""
    lines = [line for line in text.splitlines() if line.strip()]
    marked = [line[1:].strip() for line in lines if line.startswith("E ")]
    return next(iter(marked), lines[-1].strip() if lines else "no reason was given")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pytest_llmperf.against.side", description=__doc__
    )
    parser.add_argument("--spec", required=True, help="an Invocation as JSON")
    parser.add_argument(
        "--fd", type=int, required=True, help="inherited stream socket to the session"
    )
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--world-size", type=int, default=1)
    parser.add_argument("--die-with-parent", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
