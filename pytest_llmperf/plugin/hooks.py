"""pytest hooks and fixtures.

Everything behind them is imported when the first llmperf test is collected, never before.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmperf.names import (
    GPUS_MARKER,
    ISOLATED_MARKER,
    MARKER,
    NAMED_FIXTURES,
    RANKS_MARKER,
)
from pytest_llmperf.plain_text import shown
from pytest_llmperf.plugin.bodies import HOOKS_PLUGIN
from pytest_llmperf.plugin.bodies.hooks import Bodies
from pytest_llmperf.plugin.files.ci import FILES, open_ci, say_of_session
from pytest_llmperf.plugin.gpu_tests import LANES, LANES_HELP, GpuTests
from pytest_llmperf.plugin.options import check_options, option_value, value_of
from pytest_llmperf.plugin.ours import is_llmperf, our_fixtures
from pytest_llmperf.plugin.stash import LOST, SESSION
from pytest_llmperf.settings.former_names import adopt_former_names
from pytest_llmperf.settings.options import FORMER_OPTIONS, OPTIONS, Option
from pytest_llmperf.settings.paths import resolve_command_line

if TYPE_CHECKING:
    from pytest_llmperf.plugin.files.ci_pages import Pages
    from pytest_llmperf.plugin.items import PytestSession
    from pytest_llmperf.session.handle import Handle
    from pytest_llmperf.session.model import Model


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add each option to the command line, and its twin to the ini file."""
    group = parser.getgroup("llmperf", "performance tests of language models")
    for option in (*OPTIONS, *(former for _, former in FORMER_OPTIONS)):
        default = f" (default: {option.default})" if option.default else ""
        group.addoption(
            option.flag_name,
            dest=option.dest,
            default=None,
            help=option.help + default,
            **_action(option),
        )
        ini_help = option.help.replace("%%", "%")
        parser.addini(option.ini_name, ini_help, type=option.ini_type, default=None)
    parser.addini(LANES, LANES_HELP, type="linelist", default=[])


def _action(option: Option) -> dict[str, Any]:
    """Return what argparse does with the option."""
    action: dict[str, Any] = (
        {"action": "store_true"} if option.flag else {"metavar": option.metavar}
    )
    if option.many:
        action["action"] = "append"
    if option.bare:
        action |= {"nargs": "?", "const": option.bare}
    return action


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """--llmperf-record=N: run N sessions, and nothing here."""
    if value_of(config)("record") in ("", "1") or config.option.collectonly:
        return None
    from pytest_llmperf.plugin.recording import record_as_configured  # noqa: PLC0415 - if asked for

    return record_as_configured(config, value_of(config)("record"))


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers and our plugins, and those that an option asks for."""
    for marker in (MARKER, GPUS_MARKER, ISOLATED_MARKER, RANKS_MARKER):
        config.addinivalue_line("markers", marker)
    adopt_former_names(config)
    resolve_command_line(config)
    check_options(config)
    config.pluginmanager.register(GpuTests(lambda: _session(config), is_llmperf), "llmperf-gpus")
    config.pluginmanager.register(Bodies(lambda: _session(config)), HOOKS_PLUGIN)
    _register_watches(config)
    if _only_plans(config):
        config.option.llmperf_plan = True
        # pytest-xdist's controller collects nothing, and a plan needs no workers.
        config.option.dist = "no"
    if not hasattr(config, "workerinput"):
        _register_files(config)
        _open_ci(config)


def _register_watches(config: pytest.Config) -> None:
    """Register what watches that something is judged, where something is to be judged."""
    value = value_of(config)
    if value("gate"):
        from pytest_llmperf.plugin.registration import watch_gate  # noqa: PLC0415

        watch_gate(config, value, is_llmperf)
    if value("against"):
        from pytest_llmperf.plugin.registration import watch_against  # noqa: PLC0415

        watch_against(config, value)


def _register_files(config: pytest.Config) -> None:
    """Register what writes files at the end of the main process."""
    value = value_of(config)
    if file := value("benchmark-json"):
        from pytest_llmperf.plugin.registration import write_benchmark_file  # noqa: PLC0415

        write_benchmark_file(config, file)
    if (file := value("json")) and not (value("json-append") or _measures_nothing(config)):
        from pytest_llmperf.plugin.registration import start_json_file  # noqa: PLC0415

        start_json_file(config, file)
    if file := value("html"):
        from pytest_llmperf.plugin.registration import write_html_file  # noqa: PLC0415

        write_html_file(config, file, value)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise `llm` from the marker's `strategies=[…]`, or from --llmperf-strategy."""
    if "llm" not in our_fixtures(metafunc.definition):
        return
    # Only for tests that use a model.
    from pytest_llmperf.plugin.parametrize import is_parametrized, strategies_of  # noqa: PLC0415

    if is_parametrized(metafunc.definition):
        return
    strategies = strategies_of(metafunc.definition, value_of(metafunc.config)("strategy"))
    if strategies:
        metafunc.parametrize("llm", strategies, indirect=True)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Declare llmperf tests and put equal loads side by side.

    Apply --llmperf-only and --llmperf-skip.
    """
    llmperf_items = [item for item in items if is_llmperf(item)]
    if llmperf_items:
        _session(config).collected(llmperf_items, items)
    if value_of(config)("only"):
        others = [item for item in items if item not in set(llmperf_items)]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in set(others)]


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """--llmperf-plan: print what would run, and stop."""
    if session.config.option.collectonly or not _only_plans(session.config):
        return None
    _session(session.config).write_plan(session)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    """Keep a test's records and claims together.

    Models that the next test does not use are released.
    """
    if not is_llmperf(item):
        return (yield)
    with _session(item.config).runner.running(item, nextitem):
        return (yield)


# Not tryfirst: a skip mark comes first, for example one that skips `device="cuda"` where there is
# no GPU.
@pytest.hookimpl
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Make a declaration that cannot be used its test's ERROR, unless the test is skipped."""
    if is_llmperf(item):
        _session(item.config).require_usable(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Warn of what could not be decided.

    It is a warning of the test, so that a filter that makes warnings errors fails this test alone.
    """
    yield
    if is_llmperf(item):
        _session(item.config).reporter.end_body(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report what could not be measured as an ERROR.

    The report carries the records to whoever prints the summary.
    """
    if not is_llmperf(item):
        return (yield)
    reporter = _session(item.config).reporter
    reporter.before_report(item, call)
    _shorten_notes(item.config, call)
    report = yield
    if call.excinfo is not None and not item.config.getoption("fulltrace"):
        # Where something went wrong.
        from pytest_llmperf.plugin.shown_errors import show  # noqa: PLC0415

        show(report, call.excinfo, str(item.path))
    reporter.after_report(item, call, report)
    return report


def _shorten_notes(config: pytest.Config, call: pytest.CallInfo[None]) -> None:
    """Leave out the worker's traceback of a model that could not be loaded."""
    if call.excinfo is None or config.get_verbosity() > 1 or config.getoption("tbstyle") == "long":
        return
    # Where something went wrong.
    from pytest_llmperf.plugin.shown_errors import shorten_notes  # noqa: PLC0415

    shorten_notes(call.excinfo.value)


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Count and print a test that could not be measured as an error, whatever phase showed it."""
    if getattr(report, "llmperf_error", False) and report.when == "call" and report.failed:
        return "error", "E", "ERROR"
    return None


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Tell the whole story of a failed claim in two lines."""
    modules = {type(left).__module__, type(right).__module__}
    if "pytest_llmperf.core.verdicts.estimate" not in modules:
        return None
    from pytest_llmperf.core.verdicts.judge import explain  # noqa: PLC0415

    return explain(op, left, right)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print one line a run."""
    all_reports = [report for group in terminalreporter.stats.values() for report in group]
    reports = [report for report in all_reports if hasattr(report, "llmperf")]
    if reports:
        from pytest_llmperf.plugin.summary import write  # noqa: PLC0415

        write(terminalreporter, config, reports, disabled=value_of(config)("disable"))
    for lost in dict.fromkeys(config.stash.get(LOST, None) or ()):
        terminalreporter.write_line(shown(f"llmperf: {lost}"), red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """End every worker.

    Records that could be stored nowhere make the session red; that is said once, in one line.
    """
    config = session.config
    lost = config.stash[SESSION].close() if SESSION in config.stash else ""
    if lost:
        config.stash.setdefault(LOST, []).append(lost)
        if hasattr(config, "workerinput"):
            config.workeroutput["llmperf_lost"] = lost  # type: ignore[attr-defined]
    losses = config.stash.get(LOST, [])
    if losses:
        say_of_session(config, "ERROR", dict.fromkeys(losses))
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what an xdist worker could store nowhere."""
    lost = getattr(node, "workeroutput", {}).get("llmperf_lost")
    if lost:
        node.config.stash.setdefault(LOST, []).append(lost)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End every worker, also when the session never finished."""
    if SESSION in config.stash:
        config.stash[SESSION].close()


@pytest.fixture
def llm(request: pytest.FixtureRequest) -> Model:
    """The model of this test under its strategy.

    The strategy comes from indirect parametrisation, the marker's strategy=/strategies=[…], or
    --llmperf-strategy.

    `llm.run(workload)` measures, `llm.compare(other, workload)` measures two in turn,
    `llm.agreement(baseline)` compares outputs.
    """
    return _session(request.config).fixtures.llm(request.node, getattr(request, "param", None))


@pytest.fixture
def baseline(request: pytest.FixtureRequest) -> Model:
    """The same model in fp32 (--llmperf-reference names another).

    Loaded when first used; its outputs are cached on disk.
    """
    return _session(request.config).fixtures.baseline(request.node)


@pytest.fixture
def llm_factory(request: pytest.FixtureRequest) -> Callable[..., Model]:
    """Several models in one test.

    For example `llm_factory("bf16+compile", engine="transformers", model="org/other")`.
    """
    return _session(request.config).fixtures.factory(request.node)


@pytest.fixture
def llmperf(request: pytest.FixtureRequest) -> Handle:
    """The session, which measures a project's own code.

    It has `llmperf.measure(callable, tokens=…)` and `llmperf.wrap(model, tokenizer)`.
    """
    return _session(request.config).fixtures.handle(request.node)


def _named_fixture(
    name: str, strategy: str | None, engine: str | None
) -> Callable[[pytest.FixtureRequest], Model]:
    def fixture(request: pytest.FixtureRequest) -> Model:
        return _session(request.config).fixtures.llm(request.node, strategy, engine=engine)

    place = f"on the engine '{engine}'" if strategy is None else f"under the strategy '{strategy}'"
    fixture.__doc__ = f"The model of this test {place}."
    return pytest.fixture(fixture, name=name)


for _name, (_strategy, _engine) in NAMED_FIXTURES.items():
    globals()[_name] = _named_fixture(_name, _strategy, _engine)


def _session(config: pytest.Config) -> PytestSession:
    if SESSION not in config.stash:
        # The rest of the package, on first use.
        from pytest_llmperf.plugin.items import PytestSession  # noqa: PLC0415

        config.stash[SESSION] = PytestSession(config, lambda option: option_value(config, option))
    session: PytestSession = config.stash[SESSION]
    return session


def _open_ci(config: pytest.Config) -> None:
    """Register what CI systems read, where one of them is here or a file was asked for."""
    value = value_of(config)
    files = {name: config.rootpath / value(name) for name in FILES if value(name)}

    def make(*collected: Any) -> Pages:
        # Once there is something to say.
        from pytest_llmperf.plugin.files.ci_pages import Pages  # noqa: PLC0415

        is_disabled = value("disable")
        return Pages(
            *collected,
            store=value("store"),
            root=config.rootpath,
            any_tree=value("any-tree"),
            gate="" if is_disabled else value("gate"),
            against="" if is_disabled else value("against"),
        )

    plugin = open_ci(config, files, make)
    if plugin is not None:
        config.pluginmanager.register(plugin, "llmperf-ci")


def _measures_nothing(config: pytest.Config) -> bool:
    return config.option.collectonly or _only_plans(config) or value_of(config)("disable")


def _only_plans(config: pytest.Config) -> bool:
    value = value_of(config)
    return bool(value("plan") or value("plan-json"))
