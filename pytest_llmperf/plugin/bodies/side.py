"""`python -P -m pytest_llmperf.plugin.bodies.side --fd N --rank R`: one process of a test's body.

It answers `RunBody` with the reports of that one test. A process that ends without that answer has
proved nothing: whatever its exit code, the session that started it reports a failure.
"""

from __future__ import annotations

import argparse
import faulthandler
import functools
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from pytest_llmperf.errors import UsageError, WorkerError
from pytest_llmperf.plugin.bodies import HOOKS_PLUGIN, SIDE_PLUGIN
from pytest_llmperf.processes import die_with_parent, lead_own_group
from pytest_llmperf.secrets import masked
from pytest_llmperf.wire.commands import AnyCommand, Close, RunBody
from pytest_llmperf.wire.frames import Wire, worker_end
from pytest_llmperf.wire.messages import Hello, Reply
from pytest_llmperf.wire.results import BodyRan, Closed, Result
from pytest_llmperf.worker.failures import failure
from pytest_llmperf.worker.loop import Pulse, read

_STEERING = (
    "PYTEST_ADDOPTS",
    "PYTEST_CURRENT_TEST",
    "PYTEST_XDIST_WORKER",
    "PYTEST_XDIST_WORKER_COUNT",
)


class BodySide:
    """The pytest plugin of a body side, which runs the test as ever and keeps its reports."""

    def __init__(self, command: RunBody) -> None:
        self.__name__ = SIDE_PLUGIN  # the plugin manager knows it by this
        self.reports: list[dict[str, Any]] = []
        self.called = False
        self.broken = ""
        self._command = command

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Keep the one test, and note when its function is called.

        GPUs are those that the starting session holds.
        """
        items[:] = [item for item in items if item.nodeid == self._command.nodeid][:1]
        for item in items:
            if isinstance(item, pytest.Function):
                item.obj = self._noting_its_call(item.obj)
        if self._command.gpus:
            hooks: Any = config.pluginmanager.get_plugin(HOOKS_PLUGIN)
            hooks.session().core.gpus.borrow(self._command.gpus)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep why the file could not be collected."""
        if report.failed:
            self.broken = report.longreprtext

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the report in the form in which it travels."""
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self.reports.append(data)

    def pytest_configure(self, config: pytest.Config) -> None:
        """Keep the configuration, whose hooks put reports into a form that travels."""
        self._config = config

    def _noting_its_call(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def noting(*args: Any, **kwargs: Any) -> Any:
            self.called = True
            return function(*args, **kwargs)

        return noting


def run(command: RunBody) -> BodyRan:
    """Run the one test. Raises UsageError when pytest could not be brought to run it."""
    side = BodySide(command)
    code = int(pytest.main(list(command.arguments), plugins=[side]))
    if not side.reports:
        why = (
            side.broken
            or f"pytest ended with exit code {code}: pytest {masked(' '.join(command.arguments))}"
        )
        raise UsageError(f"the body of {command.nodeid} could not be run in its own process: {why}")
    return BodyRan(reports=tuple(side.reports), called=side.called)


def serve(wire: Wire[AnyCommand], rank: int) -> None:
    """Answer commands until Close."""
    commands = _received(wire, rank)
    pulse = Pulse(wire, rank)
    while True:
        command = commands.get()
        pulse.start(type(command).__name__)
        reply = _answer(command, rank)
        pulse.stop()
        wire.send(reply, timeout_s=None)
        if isinstance(command, Close):
            return


def _received(wire: Wire[AnyCommand], rank: int) -> queue.SimpleQueue[AnyCommand]:
    """Say hello, and return the queue that a thread puts commands into."""
    commands: queue.SimpleQueue[AnyCommand] = queue.SimpleQueue()
    wire.send(Hello(rank=rank, pid=os.getpid(), python=sys.version.split()[0]), timeout_s=None)
    reader = threading.Thread(
        target=read, args=(wire, commands), name="llmperf-reader", daemon=True
    )
    reader.start()
    return commands


def _answer(command: AnyCommand, rank: int) -> Reply:
    try:
        return Reply(rank=rank, result=_result(command))
    # The boundary of the process: all errors travel.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        return Reply(rank=rank, failure=failure(error))


def _result(command: AnyCommand) -> Result:
    """Carry out a command."""
    return Closed() if isinstance(command, Close) else run(_body(command))


def _body(command: AnyCommand) -> RunBody:
    if not isinstance(command, RunBody):
        raise WorkerError(f"{type(command).__name__} is not a command of a test body's process.")
    return command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pytest_llmperf.plugin.bodies.side", description=__doc__
    )
    parser.add_argument(
        "--fd", type=int, required=True, help="inherited stream socket to the session"
    )
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--world-size", type=int, default=1)
    parser.add_argument("--die-with-parent", action="store_true")
    return parser


def _show_stacks() -> None:
    """Have the stacks of a hang written into the log: pytest captures file descriptor 2."""
    log = os.dup(sys.stderr.fileno())
    faulthandler.enable(file=log)
    faulthandler.register(signal.SIGUSR1, file=log, all_threads=True)


def main(argv: list[str] | None = None) -> None:
    """Serve on the inherited socket until Close, or until the session ends."""
    options = _parser().parse_args(argv)
    _show_stacks()
    lead_own_group()
    if options.die_with_parent:
        die_with_parent()
    os.set_inheritable(options.fd, False)
    for name in _STEERING:
        os.environ.pop(name, None)
    serve(worker_end(socket.socket(fileno=options.fd)), options.rank)


if __name__ == "__main__":
    main()
