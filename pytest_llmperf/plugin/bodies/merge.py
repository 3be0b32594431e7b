"""Merges what the process of each rank reported of one test into one outcome."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from pytest_llmperf.wire.results import BodyRan

_NO_PROOF = {
    "never ran": (
        "the body never ran: {who} reported a pass without the test function having been called. "
        "A hook or plugin (pytest_pyfunc_call, pytest_runtest_protocol) took its place."
    ),
    "never ended": (
        "the body began and never ended: pytest was left in {who} (pytest.exit, or a plugin) "
        "before it could report."
    ),
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The call report of a test whose body ran elsewhere.

    `error`: it is an ERROR (set-up, teardown), not a failure.
    """

    outcome: str
    longrepr: Any = None
    sections: list[tuple[str, str]] = field(default_factory=list)
    wasxfail: str | None = None
    error: bool = False
    carried: dict[str, Any] | None = None
    user_properties: list[tuple[str, object]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class RankOutcome:
    """How one rank ended: the first of its reports that is no plain pass, else the call's."""

    rank: int
    deciding: pytest.TestReport
    reports: tuple[pytest.TestReport, ...]
    called: bool

    @property
    def word(self) -> str:
        """passed, failed, error, skipped, xfailed, xpassed, never ran or never ended."""
        report = self.deciding
        if hasattr(report, "wasxfail"):
            return "xfailed" if report.skipped else "xpassed"
        if report.failed and report.when != "call":
            return "error"
        if report.passed and report.when != "call":
            return "never ended"
        return "never ran" if report.passed and not self.called else str(report.outcome)


def rank_outcome(rank: int, ran: BodyRan, config: pytest.Config) -> RankOutcome:
    """Read back the reports of one rank. Raises ValueError when it sent none."""
    reports = _reports_of(ran, config)
    if not reports:
        raise ValueError(f"rank {rank} sent no report")
    return RankOutcome(
        rank=rank, deciding=_deciding_report(reports), reports=reports, called=ran.called
    )


def _with_tuples(report: pytest.TestReport) -> pytest.TestReport:
    """Restore pytest's tuples: JSON has lists in their place."""
    if isinstance(report.longrepr, list):
        path, line, reason = report.longrepr
        report.longrepr = (path, line, reason)
    report.user_properties = [(name, value) for name, value in report.user_properties]
    report.sections = [(name, text) for name, text in report.sections]
    return report


def _reports_of(ran: BodyRan, config: pytest.Config) -> tuple[pytest.TestReport, ...]:
    """Return the reports of a rank, which came as plain data."""
    read_back = config.hook.pytest_report_from_serializable
    return tuple(_with_tuples(read_back(config=config, data=data)) for data in ran.reports)


def _deciding_report(reports: Sequence[pytest.TestReport]) -> pytest.TestReport:
    """Return the first report that is no plain pass, else the call's, else the first."""
    for report in reports:
        if not _is_plain_pass(report):
            return report
    return next((report for report in reports if report.when == "call"), reports[0])


def _is_plain_pass(report: pytest.TestReport) -> bool:
    return report.passed and not hasattr(report, "wasxfail")


def merged(ranks: Sequence[RankOutcome]) -> Outcome:
    """Return one outcome: a failure of any rank is the test's.

    Skips and expected failures must agree.
    """
    worst = _worst(ranks)
    if worst is not None:
        return _failed(worst, ranks)
    if len({rank.word for rank in ranks}) > 1:
        return Outcome(
            outcome="failed",
            longrepr=f"the ranks disagree: {_summary(ranks)}",
            sections=_sections(ranks),
        )
    report = ranks[0].deciding
    return Outcome(
        outcome=str(report.outcome),
        longrepr=report.longrepr,
        sections=_sections(ranks),
        wasxfail=getattr(report, "wasxfail", None),
        carried=_carried(ranks),
        user_properties=list(report.user_properties),
    )


def _worst(ranks: Sequence[RankOutcome]) -> RankOutcome | None:
    """Return the rank whose failure is shown: the first with the worst word."""
    for word in ("failed", "error", *_NO_PROOF):
        for rank in ranks:
            if rank.word == word:
                return rank
    return None


def _failed(worst: RankOutcome, ranks: Sequence[RankOutcome]) -> Outcome:
    others = [rank for rank in ranks if rank is not worst and rank.word in ("failed", "error")]
    texts = [(f"failure of rank {rank.rank}", rank.deciding.longreprtext) for rank in others]
    is_error = worst.word == "error" or bool(getattr(worst.deciding, "llmperf_error", False))
    return Outcome(
        outcome="failed",
        longrepr=_failure_text(worst, ranks),
        sections=[*texts, *_sections(ranks)],
        error=is_error,
        carried=_carried(ranks),
    )


def _failure_text(worst: RankOutcome, ranks: Sequence[RankOutcome]) -> Any:
    """Return the worst rank's own report; among several ranks with a word on each."""
    rank_name = f"rank {worst.rank} of {len(ranks)}"
    longrepr = worst.deciding.longrepr
    if worst.word in _NO_PROOF:
        longrepr = _NO_PROOF[worst.word].format(who=rank_name)
    if len(ranks) == 1:
        return longrepr
    text = f"{rank_name}: {worst.word} in {worst.deciding.when}; {_summary(ranks)}"
    # A plain text has none.
    add_section: Callable[[str, str], None] | None = getattr(longrepr, "addsection", None)
    if add_section is None:
        return f"{text}\n{longrepr}"
    add_section("ranks", text)
    return longrepr


def _summary(ranks: Sequence[RankOutcome]) -> str:
    """Say how each rank ended."""
    return ", ".join(f"rank {rank.rank} {rank.word}{_skip_reason(rank)}" for rank in ranks)


def _skip_reason(rank: RankOutcome) -> str:
    longrepr = rank.deciding.longrepr
    if rank.word == "skipped" and isinstance(longrepr, tuple):
        return f" ({longrepr[2].removeprefix('Skipped: ')})"
    return ""


def _sections(ranks: Sequence[RankOutcome]) -> list[tuple[str, str]]:
    """Return captured output, once for each rank.

    A report carries the sections of the phases before it.
    """
    sections: list[tuple[str, str]] = []
    for rank in ranks:
        suffix = f" (rank {rank.rank})" if len(ranks) > 1 else ""
        sections += [(f"{name}{suffix}", text) for name, text in rank.reports[-1].sections]
    return sections


def _carried(ranks: Sequence[RankOutcome]) -> dict[str, Any] | None:
    """Return the records and findings of the lowest rank that measured something."""
    reports = [report for rank in ranks for report in rank.reports]
    return next(filter(None, (getattr(report, "llmperf", None) for report in reports)), None)
