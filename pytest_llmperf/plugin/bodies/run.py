"""Start the processes of one test's body, wait for their reports, and see that nothing of them is left."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING

import pytest

from pytest_llmperf.errors import OutOfMemory, WorkerError
from pytest_llmperf.plugin.bodies.marks import Body
from pytest_llmperf.plugin.bodies.merge import Outcome, merged, rank_outcome
from pytest_llmperf.settings.options import ALREADY_IMPORTED, OPTIONS
from pytest_llmperf.wire.commands import RunBody
from pytest_llmperf.workers.group import WorkerGroup
from pytest_llmperf.workers.pool import worker_logs

if TYPE_CHECKING:
    from pytest_llmperf.session.session import LlmperfSession

_SIDE = ("-P", "-m", "pytest_llmperf.plugin.bodies.side")
_START_S = 120.0
_NOT_INHERITED = frozenset(
    {"plan", "plan-json", "only", "skip", "against"}
    | {each.name for each in OPTIONS if each.report}
)
"""Options that say which tests run or what is printed of all of them: decided here, before a body is started."""


def run_body(item: pytest.Function, body: Body, session: LlmperfSession) -> Outcome:
    """Run the body of `item` in `body.ranks` processes and put together what they report.

    A process that dies, hangs or leaves without a report fails the test, with its log or the stacks
    of every rank.
    """
    deadline_s = body.timeout_s or session.settings.timeout_s
    command = RunBody(
        arguments=arguments(item),
        nodeid=item.nodeid,
        gpus=tuple(gpu.uuid for gpu in session.gpus.held),
    )
    try:
        with _start(item, body, session) as group:
            results = group.call_all(command, deadline_s=deadline_s)
            ranks = [rank_outcome(rank, result, item.config) for rank, result in enumerate(results)]
    except (WorkerError, OutOfMemory) as error:
        return Outcome(outcome="failed", longrepr=f"{type(error).__name__}: {error}")
    return merged(ranks)


def arguments(item: pytest.Function) -> tuple[str, ...]:
    """The command line of a body's pytest: this session's configuration, and this one test."""
    config, option = item.config, item.config.option
    words = [
        "-q",
        "--color=no",
        f"--rootdir={config.rootpath}",
        f"--import-mode={option.importmode}",
    ]
    words += ["-c", str(config.inipath)] if config.inipath else []
    words += [
        word
        for name in option.plugins
        if not name.startswith("no:terminal")
        for word in ("-p", name)
    ]
    words += [word for each in option.override_ini or () for word in ("-o", each)]
    words += [word for each in option.pythonwarnings or () for word in ("-W", each)]
    words += ["-p", "no:cacheprovider", "-W", ALREADY_IMPORTED]
    words += (
        ["-n0"]
        if importlib.util.find_spec("xdist") is not None
        and config.pluginmanager.has_plugin("xdist")
        else []
    )
    place = str(item.path) + "::" + item.nodeid.partition("::")[2]
    return (*words, *_options(config), place)


def _options(config: pytest.Config) -> list[str]:
    words: list[str] = []
    for option in OPTIONS:
        value = config.getoption(option.dest)
        if value in (None, False, []) or option.name in _NOT_INHERITED:
            continue
        if option.flag:
            words.append(option.flag_name)
        else:
            words += [
                f"{option.flag_name}={each}"
                for each in (value if isinstance(value, list) else [value])
            ]
    return words


def _start(item: pytest.Function, body: Body, session: LlmperfSession) -> WorkerGroup:
    return WorkerGroup.start(
        ranks=body.ranks,
        python=sys.executable,
        log_dir=worker_logs(session.settings.root),
        env=dict(session.gpus.environment(len(session.gpus.held))) if session.gpus.held else {},
        name=f"body-{item.name}",
        start_deadline_s=_START_S,
        program=_SIDE,
        cwd=item.config.invocation_params.dir,
    )
