"""pytest hooks and fixtures.

Everything behind them is imported when the first llmperf test is collected, never before.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmperf.names import (
    FIXTURES,
    GPUS_MARKER,
    ISOLATED_MARKER,
    MARKER,
    NAMED_FIXTURES,
    RANKS_MARKER,
)
from pytest_llmperf.plugin.bodies import HOOKS_PLUGIN
from pytest_llmperf.plugin.bodies.hooks import Bodies
from pytest_llmperf.plugin.files.ci import FILES, open_ci, say_of_session
from pytest_llmperf.plugin.gpu_tests import LANES, LANES_HELP, GpuTests
from pytest_llmperf.plugin.stash import LOST, SESSION
from pytest_llmperf.settings.former_names import adopt_former_names
from pytest_llmperf.settings.options import FORMER_OPTIONS, OPTIONS, Option
from pytest_llmperf.settings.paths import absolute, resolve_command_line

if TYPE_CHECKING:
    from pytest_llmperf.plugin.files.ci_pages import Pages
    from pytest_llmperf.plugin.items import PytestSession
    from pytest_llmperf.session.handle import Handle
    from pytest_llmperf.session.model import Model


def pytest_addoption(parser: pytest.Parser) -> None:
    """Each option on the command line, and its twin in the ini file."""
    group = parser.getgroup("llmperf", "performance tests of language models")
    for option in (*OPTIONS, *(former for _, former in FORMER_OPTIONS)):
        action: dict[str, Any] = (
            {"action": "store_true"} if option.flag else {"metavar": option.metavar}
        )
        if option.many:
            action["action"] = "append"
        if option.bare:
            action |= {"nargs": "?", "const": option.bare}
        default = f" (default: {option.default})" if option.default else ""
        group.addoption(
            option.flag_name, dest=option.dest, default=None, help=option.help + default, **action
        )
        parser.addini(
            option.ini_name, option.help.replace("%%", "%"), type=option.ini_type, default=None
        )
    parser.addini(LANES, LANES_HELP, type="linelist", default=[])


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and under --llmperf-gate what watches that something is judged."""
    for marker in (MARKER, GPUS_MARKER, ISOLATED_MARKER, RANKS_MARKER):
        config.addinivalue_line("markers", marker)
    adopt_former_names(config)
    resolve_command_line(config)
    config.pluginmanager.register(GpuTests(lambda: _session(config), is_llmperf), "llmperf-gpus")
    config.pluginmanager.register(Bodies(lambda: _session(config)), HOOKS_PLUGIN)
    if text := _option(config, _named_option("gate")):
        _watch_gate(config, text)
    if text := _option(config, _named_option("against")):
        _watch_against(config, text)
    if _only_plans(config):
        config.option.llmperf_plan = True
        # pytest-xdist's controller collects nothing, and a plan needs no workers.
        config.option.dist = "no"
    if (file := _option(config, _named_option("benchmark-json"))) and not hasattr(
        config, "workerinput"
    ):
        from pytest_llmperf.plugin.files.benchmark import BenchmarkFile  # noqa: PLC0415

        config.pluginmanager.register(
            BenchmarkFile(config.rootpath / file), "llmperf-benchmark-file"
        )
    if (file := _option(config, _named_option("html"))) and not hasattr(config, "workerinput"):
        from pytest_llmperf.plugin.files.html import HtmlFile  # noqa: PLC0415

        store = _option(config, _named_option("store"))
        config.pluginmanager.register(
            HtmlFile(config.rootpath / file, store=store, root=config.rootpath), "llmperf-html-file"
        )
    if not hasattr(config, "workerinput"):
        _open_ci(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise `llm` from the marker's `strategies=[…]`, or from --llmperf-strategy."""
    if "llm" not in metafunc.fixturenames or _parametrised(metafunc.definition):
        return
    strategies = _strategies(metafunc)
    if strategies:
        metafunc.parametrize("llm", strategies, indirect=True)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Declare llmperf tests, put equal loads side by side, and apply --llmperf-only and --llmperf-skip."""
    mine = [item for item in items if is_llmperf(item)]
    if mine:
        _session(config).collected(mine, items)
    if _option(config, _named_option("only")):
        kept = set(mine)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]


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
    """Keep a test's records and claims together, and release the models that the next test does not use."""
    if not is_llmperf(item):
        return (yield)
    with _session(item.config).running(item, nextitem):
        return (yield)


# Not tryfirst: a skip mark comes first, for example one that skips `device="cuda"` where there is
# no GPU.
@pytest.hookimpl
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A declaration that cannot be used is that test's ERROR, unless the test is skipped."""
    if is_llmperf(item):
        _session(item.config).require_usable(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """What could not be decided is a warning of the test, so that a filter that makes warnings errors fails this test alone."""
    yield
    if is_llmperf(item):
        _session(item.config).warn(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What could not be measured is an ERROR.

    The report carries the records to whoever prints the summary.
    """
    if not is_llmperf(item):
        return (yield)
    _session(item.config).before_report(item, call)
    report = yield
    if call.excinfo is not None and not item.config.getoption("fulltrace"):
        # Where something went wrong.
        from pytest_llmperf.plugin.shown_errors import show  # noqa: PLC0415

        show(report, call.excinfo, str(item.path))
    _session(item.config).after_report(item, call, report)
    return report


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """A test that could not be measured counts and prints as an error, in whatever phase that showed."""
    if getattr(report, "llmperf_error", False) and report.when == "call" and report.failed:
        return "error", "E", "ERROR"
    return None


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """The whole story of a failed claim in two lines."""
    if not any(
        type(side).__module__ == "pytest_llmperf.core.verdicts.estimate" for side in (left, right)
    ):
        return None
    from pytest_llmperf.core.verdicts.judge import explain  # noqa: PLC0415

    return explain(op, left, right)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """One line a run."""
    reports = [r for many in terminalreporter.stats.values() for r in many if hasattr(r, "llmperf")]
    if reports:
        from pytest_llmperf.plugin.summary import write  # noqa: PLC0415

        write(terminalreporter, config, reports)
    for lost in dict.fromkeys(config.stash.get(LOST, None) or ()):
        terminalreporter.write_line(f"llmperf: {lost}", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """End every worker.

    What could be stored nowhere makes the session red; it is said once, and is no traceback.
    """
    config = session.config
    lost = config.stash[SESSION].close() if SESSION in config.stash else ""
    if lost:
        config.stash.setdefault(LOST, []).append(lost)
        if hasattr(config, "workerinput"):
            config.workeroutput["llmperf_lost"] = lost  # type: ignore[attr-defined]
    if said := config.stash.get(LOST, []):
        say_of_session(config, "ERROR", dict.fromkeys(said))
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """What an xdist worker could store nowhere."""
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
    return _session(request.config).fixture(request.node, getattr(request, "param", None))


@pytest.fixture
def baseline(request: pytest.FixtureRequest) -> Model:
    """The same model in fp32 (--llmperf-reference names another).

    Loaded when first used; its outputs are cached on disk.
    """
    return _session(request.config).baseline(request.node)


@pytest.fixture
def llm_factory(request: pytest.FixtureRequest) -> Callable[..., Model]:
    """`llm_factory("bf16+compile", engine="transformers", model="org/other")` for tests that need several models."""
    return _session(request.config).factory(request.node)


@pytest.fixture
def llmperf(request: pytest.FixtureRequest) -> Handle:
    """The session: `llmperf.measure(callable, tokens=…)` and `llmperf.wrap(model, tokenizer)` measure a project's own code."""
    return _session(request.config).handle(request.node)


def _named_fixture(
    name: str, strategy: str | None, engine: str | None
) -> Callable[[pytest.FixtureRequest], Model]:
    def fixture(request: pytest.FixtureRequest) -> Model:
        return _session(request.config).fixture(request.node, strategy, engine=engine)

    how = f"on the engine '{engine}'" if strategy is None else f"under the strategy '{strategy}'"
    fixture.__doc__ = f"The model of this test {how}."
    return pytest.fixture(fixture, name=name)


for _name, (_strategy, _engine) in NAMED_FIXTURES.items():
    globals()[_name] = _named_fixture(_name, _strategy, _engine)


def is_llmperf(item: pytest.Item) -> bool:
    """Whether a test is ours: it carries the marker, or uses one of the fixtures."""
    return item.get_closest_marker("llmperf") is not None or not FIXTURES.isdisjoint(
        getattr(item, "fixturenames", ())
    )


def _session(config: pytest.Config) -> PytestSession:
    if SESSION not in config.stash:
        # The rest of the package, on first use.
        from pytest_llmperf.plugin.items import PytestSession  # noqa: PLC0415

        config.stash[SESSION] = PytestSession(config, lambda option: _option(config, option))
    return config.stash[SESSION]


def _option(config: pytest.Config, option: Option) -> Any:
    """The command line's value, else the ini file's, else the default.

    Paths of the first two are absolute.
    """
    value = config.getoption(option.dest)
    if value is None:
        value = _ini(config, option.ini_name)
        value = absolute(option, value, str(config.rootpath)) if value else value
    if value is None:
        value = [] if option.many else False if option.flag else option.default
    return value


def _ini(config: pytest.Config, name: str) -> Any:
    try:
        return config.getini(name)
    # Of a truth value pytest names the value alone.
    except (ValueError, pytest.UsageError) as error:
        raise pytest.UsageError(f"{name} in {config.inipath}: {error}") from error


def _watch_gate(config: pytest.Config, text: str) -> None:
    from pytest_llmperf.errors import UsageError  # noqa: PLC0415
    from pytest_llmperf.gate.calibration import read_calibrations  # noqa: PLC0415
    from pytest_llmperf.gate.waivers import read_waivers  # noqa: PLC0415
    from pytest_llmperf.plugin.gate_watch import GateWatch  # noqa: PLC0415
    from pytest_llmperf.settings.limits import parse_gate  # noqa: PLC0415

    try:
        if parse_gate(text) is None:
            return
        read_calibrations(config.rootpath)
        waivers = read_waivers(config.rootpath / _option(config, _named_option("waivers")))
    except UsageError as error:
        raise pytest.UsageError(str(error)) from error
    watch = GateWatch(
        config,
        waivers,
        store=_option(config, _named_option("store")),
        require_accepted=_option(config, _named_option("require-accepted")),
        is_mine=is_llmperf,
    )
    config.pluginmanager.register(watch, "llmperf-gate-watch")


def _open_ci(config: pytest.Config) -> None:
    files = {
        name: config.rootpath / path
        for name in FILES
        if (path := _option(config, _named_option(name)))
    }

    def make(*collected: Any) -> Pages:
        # Once there is something to say.
        from pytest_llmperf.plugin.files.ci_pages import Pages  # noqa: PLC0415

        text = {
            name: _option(config, _named_option(name))
            for name in ("store", "gate", "against", "disable")
        }
        gate, against = ("" if text["disable"] else text[name] for name in ("gate", "against"))
        return Pages(
            *collected, store=text["store"], root=config.rootpath, gate=gate, against=against
        )

    plugin = open_ci(config, files, make)
    if plugin is not None:
        config.pluginmanager.register(plugin, "llmperf-ci")


def _only_plans(config: pytest.Config) -> bool:
    return bool(
        _option(config, _named_option("plan")) or _option(config, _named_option("plan-json"))
    )


def _watch_against(config: pytest.Config, text: str) -> None:
    from pytest_llmperf.errors import UsageError  # noqa: PLC0415
    from pytest_llmperf.plugin.against_watch import AgainstWatch  # noqa: PLC0415
    from pytest_llmperf.settings.settings import against  # noqa: PLC0415

    try:
        target = against(text, config.rootpath)
    except UsageError as error:
        raise pytest.UsageError(str(error)) from error
    if target is not None:
        config.pluginmanager.register(AgainstWatch(config, target.name), "llmperf-against-watch")


def _named_option(name: str) -> Option:
    return next(option for option in OPTIONS if option.name == name)


def _parametrised(definition: pytest.Item) -> bool:
    return any(
        "llm" in _argnames(mark.args[0])
        for mark in definition.iter_markers("parametrize")
        if mark.args
    )


def _argnames(names: str | Sequence[str]) -> list[str]:
    return [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)


def _strategies(metafunc: pytest.Metafunc) -> list[str]:
    """The strategies to parametrise with.

    Ill-typed markers give none here and their error later, on the test.
    """
    for mark in metafunc.definition.iter_markers("llmperf"):
        if "strategies" in mark.kwargs or "strategy" in mark.kwargs:
            named = mark.kwargs.get("strategies", ())
            return (
                list(named)
                if isinstance(named, list | tuple) and all(isinstance(s, str) for s in named)
                else []
            )
    text = _option(metafunc.config, _named_option("strategy"))
    several = [s.strip() for s in text.split(",") if s.strip()]
    return several if len(several) > 1 else []
