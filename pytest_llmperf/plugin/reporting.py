"""What the report of a test says and carries, and what a test that passes is warned of."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from pytest_llmperf.core.record import UNFINISHED, Record, speed_metric
from pytest_llmperf.core.verdicts.judge import Finding, Outcome
from pytest_llmperf.errors import LlmperfError, StoreError
from pytest_llmperf.gate.gate import Regression
from pytest_llmperf.plain_text import shown
from pytest_llmperf.plugin.body_end import judge_end
from pytest_llmperf.plugin.declarations import Declarations
from pytest_llmperf.plugin.files.benchmark import TIMES
from pytest_llmperf.plugin.outcomes import ending, is_expected_failure, place_of, skip_reason
from pytest_llmperf.plugin.stash import FINDINGS
from pytest_llmperf.report.live import LiveLine
from pytest_llmperf.session.session import LlmperfSession

if TYPE_CHECKING:
    from pytest_llmperf.against.comparison import Comparison


class LlmperfWarning(pytest.PytestWarning):
    """A claim that the data could not decide."""

    def __init__(self, text: str) -> None:
        super().__init__(shown(text))


class Reporter:
    """Reports tests that measured nothing: how each ended, and why."""

    def __init__(self, live: LiveLine) -> None:
        self._live = live

    def end_body(self, item: pytest.Item) -> None:
        """Warn of nothing: nothing was claimed."""

    def judge_skip(self, report: pytest.TestReport) -> None:
        """Leave a skip as it is."""

    def before_report(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        """Show the test's own line for our errors, not our inside."""
        self._live.clear()
        if call.excinfo is None or not isinstance(call.excinfo.value, LlmperfError | Regression):
            return
        if not _end_traceback_in(str(item.path), call.excinfo.value):
            call.excinfo.traceback = call.excinfo.traceback[-1:]

    def after_report(
        self, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport
    ) -> None:
        """Mark errors, and attach the records."""
        error = call.excinfo.value if call.excinfo is not None else None
        report.llmperf_error = isinstance(error, LlmperfError)  # type: ignore[attr-defined]
        if report.skipped and not is_expected_failure(report):
            self.judge_skip(report)
        has_ended = report.when == "call" or report.outcome != "passed"
        if has_ended or self._has_unfinished_records(report):
            self._attach(item, report, error)

    def _attach(
        self, item: pytest.Item, report: pytest.TestReport, error: BaseException | None
    ) -> None:
        findings = item.stash.get(FINDINGS, [])
        carried = self._carried(report, error, findings) | {"place": place_of(item)}
        report.llmperf = carried  # type: ignore[attr-defined]
        if getattr(item.config.option, "xmlpath", None):
            self._set_junit_properties(item)

    def _carried(
        self, report: pytest.TestReport, error: BaseException | None, findings: Sequence[Finding]
    ) -> dict[str, Any]:
        """Return what the report carries to whoever prints it, in plain values."""
        return {**ending(report, error, findings), "records": [], "notes": []}

    def _records(self) -> list[Record]:
        return []

    def _has_unfinished_records(self, report: pytest.TestReport) -> bool:  # noqa: ARG002
        return False

    def _set_junit_properties(self, item: pytest.Item) -> None:
        """Set metrics as properties of the test, once.

        Pytest writes them when the test's last phase is reported.
        """
        # Only under --junitxml.
        from pytest_llmperf.report.junit import OURS, properties  # noqa: PLC0415

        others = [entry for entry in item.user_properties if not entry[0].startswith(OURS)]
        item.user_properties[:] = [*others, *properties(self._records())]


class SessionReporter(Reporter):
    """Reports the tests of a session: their records, claims and notes, too."""

    def __init__(
        self,
        core: LlmperfSession,
        declarations: Declarations,
        comparison: Comparison | None,
        live: LiveLine,
    ) -> None:
        super().__init__(live)
        self._core = core
        self._declarations = declarations
        self._comparison = comparison

    def end_body(self, item: pytest.Item) -> None:
        """Judge what is judged once a test's body has passed, and warn of what was not decided.

        Under --llmperf-strict an undecided claim fails the test, however it was used:
        `assert not a > b` and `if a > b` see a false claim where strict makes an undecided one
        false, and go on.
        """
        try:
            judge_end(self._core, item, self._declarations.of(item).declaration)
        except Regression as error:
            pytest.fail(str(error), pytrace=False)
        findings = item.stash.get(FINDINGS, [])
        if self._core.settings.strict:
            _fail_undecided(findings)
        for finding in findings:
            if finding.outcome in self._outcomes_to_warn_of():
                item.warn(LlmperfWarning(_warning_text(finding, item)))
            elif finding.caution:
                item.warn(LlmperfWarning(f"{finding.text}. {finding.caution}"))

    def judge_skip(self, report: pytest.TestReport) -> None:
        """Fail a test that was selected and skipped, under --llmperf-strict."""
        if not self._core.settings.strict or self._core.settings.skip:
            return
        report.outcome = "failed"
        report.longrepr = f"selected but skipped, and --llmperf-strict is on: {skip_reason(report)}"

    def _carried(
        self, report: pytest.TestReport, error: BaseException | None, findings: Sequence[Finding]
    ) -> dict[str, Any]:
        carried = super()._carried(report, error, findings)
        carried |= self._finish(report, carried, findings)
        gate, comparison = self._core.gate, self._comparison
        return carried | {
            "records": [self._plain_values(record) for record in self._records()],
            "notes": self._core.take_notes(),
            "store": self._core.recorder.place,
            "judged": 0 if gate is None else gate.take_compared(),
            "changes": [] if gate is None else list(map(msgspec.to_builtins, gate.take_changes())),
            "compared": 0 if comparison is None else comparison.take_compared(),
        }

    def _plain_values(self, record: Record) -> Any:
        """Return a record as pytest-xdist can carry it, with the samples that are needed."""
        needed = self._samples_needed(record)
        samples = {name: record.samples[name] for name in needed if name in record.samples}
        return msgspec.to_builtins(msgspec.structs.replace(record, samples=samples))

    def _finish(
        self, report: pytest.TestReport, carried: dict[str, Any], findings: Sequence[Finding]
    ) -> dict[str, str]:
        """Store the test's outcome, and return what changes in how it ended.

        An outcome that cannot be stored is the test's ERROR, and no end of the session.
        """
        try:
            self._core.recorder.finish(carried["outcome"], findings)
        except StoreError as error:
            report.sections.append(("llmperf", str(error)))
            if not report.passed:
                return {}
            kind = type(error).__name__
            report.outcome, report.longrepr = "failed", f"{kind}: {error}"
            report.llmperf_error = True  # type: ignore[attr-defined]
            if carried["reason"]:
                return {"outcome": "ERROR"}
            return {"outcome": "ERROR", "kind": kind, "reason": str(error)}
        return {}

    def _records(self) -> list[Record]:
        return list(self._core.recorder.records.values())

    def _has_unfinished_records(self, report: pytest.TestReport) -> bool:
        """Whether a fixture measured after its `yield`: those records have no outcome yet."""
        if report.when != "teardown":
            return False
        return any(record.outcome == UNFINISHED for record in self._records())

    def _samples_needed(self, record: Record) -> Collection[str]:
        """Return the samples that the summary and the session's files need.

        The HTML report needs all of them, the summary a pair's speeds.
        """
        if self._core.settings.html is not None:
            return record.samples.keys()
        speeds = () if record.paired_with is None else (speed_metric(record),)
        times = () if self._core.settings.benchmark_json is None else TIMES
        return (*speeds, *times)

    def _outcomes_to_warn_of(self) -> set[Outcome]:
        """Return the outcomes that are neither pass nor failure.

        Where nothing is gated, what was not compared was not asked to be.
        """
        if self._core.judges and not self._core.settings.disable:
            return {Outcome.UNDECIDED, Outcome.NOT_COMPARABLE, Outcome.WAIVED}
        return {Outcome.UNDECIDED}


def _warning_text(finding: Finding, item: pytest.Item) -> str:
    """Return what is warned of.

    The section of llmperf has the detail of what is undecided, unless -q leaves it out.
    """
    text = f"{finding.outcome.lower()}: {finding.text}"
    if finding.outcome is Outcome.UNDECIDED and item.config.get_verbosity() >= 0:
        return text
    return f"{text}. {finding.detail}"


def _fail_undecided(findings: Sequence[Finding]) -> None:
    for finding in findings:
        if finding.outcome is Outcome.UNDECIDED:
            text = f"{finding.text}\n{finding.detail}; --llmperf-strict is on"
            pytest.fail(text, pytrace=False)


def _end_traceback_in(path: str, error: BaseException) -> bool:
    """End the traceback at its last line in a file. Returns whether it has one.

    pytest walks the chain anew, whatever part of it is handed over.
    """
    last, entry = None, error.__traceback__
    while entry is not None:
        if entry.tb_frame.f_code.co_filename == path:
            last = entry
        entry = entry.tb_next
    if last is None:
        return False
    last.tb_next = None
    return True
