"""Between pytest and a session: which test declared what, in which order they run, and what a report carries."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.record import UNFINISHED, speed_metric
from pytest_llmperf.core.verdicts.judge import Finding, Outcome
from pytest_llmperf.devices.selection import Need
from pytest_llmperf.errors import (
    InvalidRun,
    LlmperfError,
    MemoryNotReturned,
    StoreError,
    UsageError,
)
from pytest_llmperf.gate.gate import Regression
from pytest_llmperf.names import NAMED_FIXTURES
from pytest_llmperf.plugin.against_connect import connect
from pytest_llmperf.plugin.body_end import judge_end
from pytest_llmperf.plugin.files.benchmark import TIMES
from pytest_llmperf.plugin.stash import DECLARED, FAILED, FINDINGS, NEED, UNUSABLE, Declared
from pytest_llmperf.report.live import open_live
from pytest_llmperf.session.declare import Declaration, declaration
from pytest_llmperf.session.handle import Handle
from pytest_llmperf.session.model import Model
from pytest_llmperf.session.session import LlmperfSession
from pytest_llmperf.settings.options import Option
from pytest_llmperf.settings.settings import read
from pytest_llmperf.workers.memory_check import held_by_fixture


class LlmperfWarning(pytest.PytestWarning):
    """A claim that the data could not decide."""


class PytestSession:
    """Made when the first llmperf test is collected; closed when pytest is done."""

    def __init__(self, config: pytest.Config, raw: Callable[[Option], Any]) -> None:
        self._config = config
        self._live = open_live(config)
        self._core: LlmperfSession | None = None
        self._error: LlmperfError | None = None
        try:
            self._core = LlmperfSession(read(raw, config.rootpath), self._live.update)
            connect(self._core, config)
        except UsageError as error:
            self._error = error

    @property
    def core(self) -> LlmperfSession:
        """The session proper. Raises the UsageError of an option that cannot be used."""
        if self._core is None:
            assert self._error is not None  # noqa: S101 - one of the two was set
            raise self._error
        return self._core

    # Collection

    def collected(self, mine: list[pytest.Item], items: list[pytest.Item]) -> None:
        """Declare each test.

        Put those with equal loads side by side, in the places that llmperf tests hold.
        """
        for item in mine:
            self._declared(item)
            if self._core is not None and self._core.settings.skip:
                item.add_marker(pytest.mark.skip(reason="--llmperf-skip"))
        if self._core is not None and self._core.gate is not None:
            self._core.gate.planned_tests = len(mine)
        if self._core is not None and self._core.comparison is not None:
            self._core.comparison.collected([item.nodeid for item in mine])
        ordered = iter(_grouped(mine))
        places = set(mine)
        items[:] = [next(ordered) if item in places else item for item in items]

    def require_usable(self, item: pytest.Item) -> None:
        """Raise what was wrong with the test's declaration."""
        error = self._declared(item).error
        if error is not None:
            raise error
        self.core.recorder.open()

    def write_plan(self, session: pytest.Session) -> None:
        """Print what would run: llmperf tests, and others that need GPUs."""
        from pytest_llmperf.plugin.plan import write  # noqa: PLC0415

        needy = [
            i
            for i in session.items
            if DECLARED in i.stash or UNUSABLE in i.stash or i.stash.get(NEED, None)
        ]
        write(self.core, session.config, [(item, item.stash.get(DECLARED, None)) for item in needy])

    # Running

    @contextmanager
    def running(self, item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
        """Around one test. Models that the next test does not use are released at its end."""
        if self._core is None:
            yield
            return
        if self._core.comparison is not None:
            self._core.comparison.begin(
                item.nodeid, nextitem.nodeid if nextitem is not None else None
            )
        with self._core.test(item.nodeid, self._declared(item).declaration) as findings:
            item.stash[FINDINGS] = findings
            try:
                yield
            finally:
                self._live.clear()
                self._core.release_except(_plans(nextitem))

    def fixture(self, item: pytest.Item, param: object, *, engine: str | None = None) -> Model:
        """The model of a test, loaded."""
        model = self.core.model(
            self._declared(item).declaration, _strategy_text(param), engine=engine
        )
        model.load()
        return model

    def baseline(self, item: pytest.Item) -> Model:
        """The reference model of a test, loaded when first used."""
        return self.core.reference(self._declared(item).declaration)

    def factory(self, item: pytest.Item) -> Callable[..., Model]:
        """What `llm_factory` gives."""

        def make(
            strategy: str | None = None, *, engine: str | None = None, model: str | None = None
        ) -> Model:
            declared = self._declared(item).declaration
            asked = declared if model is None else replace(declared, model=model)
            return self.core.model(asked, _strategy_text(strategy), engine=engine)

        return make

    def handle(self, item: pytest.Item) -> Handle:
        """What `llmperf` gives."""
        return Handle(self.core, self._declared(item).declaration)

    # GPUs

    def plans(self, item: pytest.Item) -> tuple[LoadPlan, ...]:
        """What an llmperf test will load, as far as it says so beforehand."""
        return self._declared(item).plans

    def refuse(self, item: pytest.Item, error: LlmperfError) -> None:
        """What is wrong with a test's need of GPUs is wrong with its declaration."""
        declared = self._declared(item)
        declared.error = declared.error or error

    def lease(self, item: pytest.Item, need: Need, *, measures: bool) -> None:
        """Hold the GPUs of a test. Raises as `Gpus.require`."""
        if DECLARED in item.stash and self._declared(item).error is not None:
            return
        if _plans(item):
            self.core.place.lease(need, measures=measures)
        else:
            self.core.gpus.require(need, measures=measures)

    def begin_watching(self, item: pytest.Item) -> None:
        """See what the test's own process holds, where the test may measure a model of its own."""
        if self._core is not None and "llmperf" in getattr(item, "fixturenames", ()):
            self._core.own.begin(getattr(item, "module", None))

    def give_back(self, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        """Unload and give back what the next test does not use.

        Raises MemoryNotReturned for what this one has kept.
        """
        if self._core is None:
            return
        self._core.release_except(_plans(nextitem))
        # The traceback of a failed test keeps what its frames hold.
        if FAILED in item.stash or not self._core.own.models:
            return
        getattr(item, "funcargs", {}).clear()  # pytest lets go of them after this hook
        if kept := self._core.own.kept(lambda model: held_by_fixture(item, model)):
            raise MemoryNotReturned(
                f"{'; '.join(kept)}. Let go of it, or make the model in a fixture of a wider scope."
            )

    def make_room(self) -> None:
        """Unload everything: what runs next loads in processes of its own."""
        if self._core is not None:
            self._core.release_except(())

    def judge_skip(self, report: pytest.TestReport) -> None:
        """Under --llmperf-strict a test that was selected and skipped has failed."""
        if self._core is not None and self._core.settings.strict and not self._core.settings.skip:
            report.outcome = "failed"
            report.longrepr = (
                f"selected but skipped, and --llmperf-strict is on: {_skip_reason(report)}"
            )

    # Reporting

    def warn(self, item: pytest.Item) -> None:
        """Warn of what was not decided in a test that passes.

        Under --llmperf-strict fail it, however the claim was used.

        `assert not a > b` and `if a > b` see a false claim where strict makes an undecided one
        false, and go on.
        """
        try:
            judge_end(self.core, item, self._declared(item).declaration)
        except Regression as error:
            pytest.fail(str(error), pytrace=False)
        undecided = [f for f in item.stash.get(FINDINGS, []) if f.outcome is Outcome.UNDECIDED]
        if undecided and self.core.settings.strict:
            pytest.fail(
                f"{undecided[0].text}\n{undecided[0].detail}; --llmperf-strict is on", pytrace=False
            )
        for finding in item.stash.get(FINDINGS, []):
            if finding.outcome in self._warned:
                item.warn(
                    LlmperfWarning(f"{finding.outcome.lower()}: {finding.text}. {finding.detail}")
                )

    def before_report(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        """Show the test's own line for our errors, not our inside."""
        self._live.clear()
        ours = call.excinfo is not None and isinstance(
            call.excinfo.value, LlmperfError | Regression
        )
        if call.excinfo is not None and ours and not _cut(call.excinfo.value, str(item.path)):
            call.excinfo.traceback = call.excinfo.traceback[-1:]

    def after_report(
        self, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport
    ) -> None:
        """Mark errors, attach the records, and under --llmperf-strict turn a skip into a failure."""
        error = call.excinfo.value if call.excinfo is not None else None
        report.llmperf_error = isinstance(error, LlmperfError)  # type: ignore[attr-defined]
        if report.skipped and not hasattr(report, "wasxfail"):
            self.judge_skip(report)
        if report.when == "call" or report.outcome != "passed" or self._measured_late(report):
            self._attach(item, report, error)

    def _attach(
        self, item: pytest.Item, report: pytest.TestReport, error: BaseException | None
    ) -> None:
        findings = item.stash.get(FINDINGS, [])
        outcome = _outcome(report, error, findings)
        carried: dict[str, Any] = {
            "outcome": outcome,
            "records": [],
            "reason": _reason(report, error),
            "notes": [],
        }
        if self._core is not None:
            carried["outcome"] = self._finish(report, outcome, findings)
            carried["reason"] = carried["reason"] or (
                str(report.longrepr) if carried["outcome"] != outcome else ""
            )
            carried["records"] = [
                _light(record, self._kept(record))
                for record in self._core.recorder.records.values()
            ]
            carried["notes"] = self._core.take_notes()
            carried["store"] = self._core.recorder.place
            carried["judged"] = (
                self._core.gate.take_compared() if self._core.gate is not None else 0
            )
            carried["compared"] = (
                self._core.comparison.take_compared() if self._core.comparison is not None else 0
            )
        report.llmperf = carried  # type: ignore[attr-defined]
        if getattr(item.config.option, "xmlpath", None):
            self._tell_junit(item)

    def _tell_junit(self, item: pytest.Item) -> None:
        """Metrics as properties of the test, once.

        Pytest writes them when the test's last phase is reported.
        """
        # Only under --junitxml.
        from pytest_llmperf.report.junit import OURS, properties  # noqa: PLC0415

        records = list(self._core.recorder.records.values()) if self._core is not None else []
        others = [each for each in item.user_properties if not each[0].startswith(OURS)]
        item.user_properties[:] = [*others, *properties(records)]

    def _kept(self, record: Any) -> Collection[str]:
        """The samples that the summary and the session's files need: a pair's speeds, and all of them for the HTML report."""
        assert self._core is not None  # noqa: S101 - there are records
        if self._core.settings.html is not None:
            return record.samples.keys()  # type: ignore[no-any-return]
        paired = (speed_metric(record),) if record.paired_with is not None else ()
        return (*paired, *(TIMES if self._core.settings.benchmark_json is not None else ()))

    def _measured_late(self, report: pytest.TestReport) -> bool:
        """Whether a fixture measured after its `yield`: those records have no outcome yet."""
        if report.when != "teardown" or self._core is None:
            return False
        records = self._core.recorder.records.values()
        return any(record.outcome == UNFINISHED for record in records)

    def _finish(self, report: pytest.TestReport, outcome: str, findings: list[Finding]) -> str:
        """Put the outcome away.

        That it could not be kept is the test's ERROR, and no end of the session.
        """
        assert self._core is not None  # noqa: S101 - there are records
        try:
            self._core.recorder.finish(outcome, findings)
        except StoreError as error:
            report.sections.append(("llmperf", str(error)))
            if not report.passed:
                return outcome
            report.outcome, report.longrepr = "failed", f"{type(error).__name__}: {error}"
            report.llmperf_error = True  # type: ignore[attr-defined]
            return "ERROR"
        return outcome

    def close(self) -> str:
        """End every worker and close the store. May be called again.

        Returns what was lost, if anything was.
        """
        self._live.clear()
        try:
            if self._core is not None:
                self._core.close()
        except StoreError as error:
            return str(error)
        return ""

    @property
    def _warned(self) -> set[Outcome]:
        """Outcomes that are neither pass nor failure.

        Where nothing is gated, what was not compared was not asked to be.
        """
        judges = self._core is not None and (
            self._core.gate is not None or self._core.comparison is not None
        )
        gated = self._core is not None and judges and not self._core.settings.disable
        return (
            {Outcome.UNDECIDED, Outcome.NOT_COMPARABLE, Outcome.WAIVED}
            if gated
            else {Outcome.UNDECIDED}
        )

    def _declared(self, item: pytest.Item) -> Declared:
        """What a test declared; worked out now for one that another plugin added after collection."""
        if DECLARED not in item.stash:
            item.stash[DECLARED] = self._declare(item)
        return item.stash[DECLARED]

    def _declare(self, item: pytest.Item) -> Declared:
        if self._error is not None:
            return Declared(declaration=Declaration(), error=self._error)
        found = Declared(declaration=Declaration())
        try:
            _require_indirect(item)
            found.declaration = declaration(
                [(mark.args, mark.kwargs) for mark in item.iter_markers("llmperf")]
            )
            found.plans = tuple(self._planned(item, found.declaration))
        except LlmperfError as error:
            found.error = error
        return found

    def _planned(self, item: pytest.Item, declared: Declaration) -> Iterable[LoadPlan]:
        fixtures = getattr(item, "fixturenames", ())
        if "llm" in fixtures:
            callspec = getattr(item, "callspec", None)
            yield self.core.plan(
                declared, _strategy_text(callspec.params.get("llm") if callspec else None)
            )
        for name, (strategy, engine) in NAMED_FIXTURES.items():
            if name in fixtures:
                yield self.core.plan(declared, strategy, engine=engine)
        if "baseline" in fixtures:
            yield self.core.reference(declared).plan


def _require_indirect(item: pytest.Item) -> None:
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0] if mark.args else mark.kwargs.get("argnames", "")
        listed = [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)
        # Its third argument.
        indirect = mark.args[2] if len(mark.args) > 2 else mark.kwargs.get("indirect", False)  # noqa: PLR2004
        if "llm" in listed and indirect is not True and "llm" not in (indirect or ()):
            raise UsageError(
                "parametrize('llm', …) hands the test a text in place of the model: add indirect=True, "
                "or use @pytest.mark.llmperf(strategies=[…]).",
            )


def _grouped(items: list[pytest.Item]) -> list[pytest.Item]:
    """Items by their first load plan, groups in order of first appearance, order kept inside a group."""
    groups: dict[object, list[pytest.Item]] = {}
    for item in items:
        plans = item.stash[DECLARED].plans
        groups.setdefault(plans[0] if plans else None, []).append(item)
    return [item for group in groups.values() for item in group]


def _cut(error: BaseException, path: str) -> bool:
    """End the traceback at its last line in a file.

    pytest walks the chain anew, whatever part of it is handed over.
    """
    last, entry = None, error.__traceback__
    while entry is not None:
        last = entry if entry.tb_frame.f_code.co_filename == path else last
        entry = entry.tb_next
    if last is not None:
        last.tb_next = None
    return last is not None


def _plans(item: pytest.Item | None) -> tuple[LoadPlan, ...]:
    return item.stash[DECLARED].plans if item is not None and DECLARED in item.stash else ()


def _strategy_text(param: object) -> str | None:
    if param is None or isinstance(param, str):
        return param
    canonical = getattr(param, "canonical", None)
    if isinstance(canonical, str):
        return canonical
    raise UsageError(
        f"llm={param!r}: a strategy is a text such as 'bf16+static-cache', not a {type(param).__name__}."
    )


def _outcome(
    report: pytest.TestReport, error: BaseException | None, findings: list[Finding]
) -> str:
    if hasattr(report, "wasxfail"):
        return "XPASS" if report.passed else "XFAIL"
    if isinstance(error, InvalidRun):
        return "INVALID"
    if isinstance(error, LlmperfError):
        return "ERROR"
    if report.skipped:
        return "SKIPPED"
    return "FAIL" if report.failed else _of_findings(findings)


def _of_findings(findings: list[Finding]) -> str:
    for outcome in (Outcome.WAIVED, Outcome.UNDECIDED, Outcome.NOT_COMPARABLE):
        if any(f.outcome is outcome for f in findings):
            return outcome.value
    return "PASS" if findings else "RECORDED"


def _reason(report: pytest.TestReport, error: BaseException | None) -> str:
    if hasattr(report, "wasxfail"):
        return str(report.wasxfail).removeprefix("reason: ") or "no reason was given"
    if isinstance(error, LlmperfError):
        return f"{type(error).__name__}: {error}"
    return _skip_reason(report) if report.skipped else ""


def _skip_reason(report: pytest.TestReport) -> str:
    return (
        report.longrepr[2].removeprefix("Skipped: ")
        if isinstance(report.longrepr, tuple)
        else str(report.longrepr)
    )


def _light(record: Any, kept: Collection[str]) -> Any:
    """A record without its raw samples but those `kept`, as plain values that pytest-xdist can carry."""
    samples = {name: record.samples[name] for name in kept if name in record.samples}
    return msgspec.to_builtins(msgspec.structs.replace(record, samples=samples))
