"""How a test ended, from pytest's report, the error that it raised, and the claims that it made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pytest_llmperf.core.verdicts.judge import Finding, Outcome
from pytest_llmperf.errors import InvalidRun, LlmperfError

_UNDECIDED = (Outcome.WAIVED, Outcome.UNDECIDED, Outcome.NOT_COMPARABLE)
"""Outcomes of claims that are neither pass nor failure, what wants attention first."""


def ending(
    report: pytest.TestReport, error: BaseException | None, findings: Sequence[Finding]
) -> dict[str, Any]:
    """Return how a test ended, as its report carries it.

    `outcome` is one word, `reason` why; `kind` is the name of the error's class where the reason is
    an error of ours, else empty.
    """
    return {
        "outcome": _outcome(report, error, findings),
        "kind": _kind(report, error),
        "reason": _reason(report, error),
    }


def place_of(item: pytest.Item) -> list[str | int]:
    """Return where a test stands: its file, its line, and the numbers of its parameters.

    Tests are run in another order, and xdist's workers report in one of their own.
    """
    file, line, _ = item.location
    indices = getattr(getattr(item, "callspec", None), "indices", {})
    return [file, line or 0, *indices.values()]


def is_expected_failure(report: pytest.TestReport) -> bool:
    """Whether the test is marked `xfail`, whatever became of it."""
    return hasattr(report, "wasxfail")


def skip_reason(report: pytest.TestReport) -> str:
    """Return why a test was skipped."""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return str(report.longrepr)


def _outcome(
    report: pytest.TestReport, error: BaseException | None, findings: Sequence[Finding]
) -> str:
    if is_expected_failure(report):
        return "XPASS" if report.passed else "XFAIL"
    if isinstance(error, InvalidRun):
        return "INVALID"
    if isinstance(error, LlmperfError):
        return "ERROR"
    if report.skipped:
        return "SKIPPED"
    return "FAIL" if report.failed else _outcome_of_claims(findings)


def _outcome_of_claims(findings: Sequence[Finding]) -> str:
    outcomes = {finding.outcome for finding in findings}
    for outcome in _UNDECIDED:
        if outcome in outcomes:
            return outcome.value
    return "PASS" if findings else "RECORDED"


def _kind(report: pytest.TestReport, error: BaseException | None) -> str:
    if isinstance(error, LlmperfError) and not is_expected_failure(report):
        return type(error).__name__
    return ""


def _reason(report: pytest.TestReport, error: BaseException | None) -> str:
    if is_expected_failure(report):
        return str(report.wasxfail).removeprefix("reason: ") or "no reason was given"
    if isinstance(error, LlmperfError):
        return str(error)
    return skip_reason(report) if report.skipped else ""
