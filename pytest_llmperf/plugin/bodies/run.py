"""Start the processes of one test's body and wait for their reports.

Nothing of them is left afterwards.
"""

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
    {"json-append", "plan", "plan-json", "only", "skip", "against"}
    | {option.name for option in OPTIONS if option.report}
)
"""Options that say which tests run, or what is printed of all of them.

They are applied here, before a body is started.
"""


def run_body(item: pytest.Function, body: Body, session: LlmperfSession) -> Outcome:
    """Run the body of `item` in `body.ranks` processes and put together what they report.

    A process that dies, hangs or leaves without a report fails the test, with its log or the stacks
    of every rank.
    """
    deadline_s = body.timeout_s or session.settings.timeout_s
    held_gpus = tuple(gpu.uuid for gpu in session.gpus.held)
    command = RunBody(arguments=arguments(item), nodeid=item.nodeid, gpus=held_gpus)
    try:
        with _start(item, body, session) as group:
            results = group.call_all(command, deadline_s=deadline_s)
        ranks = [rank_outcome(rank, result, item.config) for rank, result in enumerate(results)]
    except (WorkerError, OutOfMemory) as error:
        return Outcome(outcome="failed", longrepr=f"{type(error).__name__}: {error}")
    return merged(ranks)


def arguments(item: pytest.Function) -> tuple[str, ...]:
    """Return the command line of a body's pytest: this session's configuration, and one test."""
    config = item.config
    words = ["-q", "--color=no", f"--rootdir={config.rootpath}"]
    words += [f"--import-mode={config.option.importmode}"]
    words += ["-c", str(config.inipath)] if config.inipath else []
    words += _inherited(config)
    words += ["-p", "no:cacheprovider", "-W", ALREADY_IMPORTED]
    words += ["-n0"] if _has_xdist(config) else []
    # The file of --llmperf-json has the records of tests before this one.
    words += ["--llmperf-json-append"]
    return (*words, *_options(config), f"{item.path}::{item.nodeid.partition('::')[2]}")


def _inherited(config: pytest.Config) -> list[str]:
    """Return the plugins, ini overrides and warning filters of this session's command line."""
    option = config.option
    plugins = [name for name in option.plugins if not name.startswith("no:terminal")]
    words = [word for name in plugins for word in ("-p", name)]
    words += [word for override in option.override_ini or () for word in ("-o", override)]
    words += [word for rule in option.pythonwarnings or () for word in ("-W", rule)]
    return words


def _has_xdist(config: pytest.Config) -> bool:
    is_installed = importlib.util.find_spec("xdist") is not None
    return is_installed and config.pluginmanager.has_plugin("xdist")


def _options(config: pytest.Config) -> list[str]:
    """Return our own options as they were given on the command line."""
    words: list[str] = []
    for option in OPTIONS:
        value = config.getoption(option.dest)
        if value in (None, False, []) or option.name in _NOT_INHERITED:
            continue
        if option.flag:
            words.append(option.flag_name)
            continue
        values = value if isinstance(value, list) else [value]
        words += [f"{option.flag_name}={text}" for text in values]
    return words


def _start(item: pytest.Function, body: Body, session: LlmperfSession) -> WorkerGroup:
    gpus = session.gpus
    return WorkerGroup.start(
        ranks=body.ranks,
        python=sys.executable,
        log_dir=worker_logs(session.settings.root),
        env=dict(gpus.environment(len(gpus.held))) if gpus.held else {},
        name=f"body-{item.name}",
        start_deadline_s=_START_S,
        program=_SIDE,
        cwd=item.config.invocation_params.dir,
    )
