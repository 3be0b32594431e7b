"""From what the process of each rank reported of one test to the one outcome that this session reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from pytest_llmperf.wire.results import BodyRan

_NO_PROOF = {
    "never ran": "the body never ran: {who} reported a pass without the test function having been called. "
    "A hook or plugin (pytest_pyfunc_call, pytest_runtest_protocol) took its place.",
    "never ended": "the body began and never ended: pytest was left in {who} (pytest.exit, or a plugin) before it could report.",
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
    reports = tuple(
        _read(config.hook.pytest_report_from_serializable(config=config, data=data))
        for data in ran.reports
    )
    if not reports:
        raise ValueError(f"rank {rank} sent no report")
    calls = [r for r in reports if r.when == "call"]
    deciding = next(
        (r for r in reports if not r.passed or hasattr(r, "wasxfail")), (calls or list(reports))[0]
    )
    return RankOutcome(rank=rank, deciding=deciding, reports=reports, called=ran.called)


def _read(report: pytest.TestReport) -> pytest.TestReport:
    """JSON has lists where pytest has tuples."""
    if isinstance(report.longrepr, list):
        path, line, reason = report.longrepr
        report.longrepr = (path, line, reason)
    report.user_properties = [(name, value) for name, value in report.user_properties]
    report.sections = [(name, text) for name, text in report.sections]
    return report


def merged(ranks: Sequence[RankOutcome]) -> Outcome:
    """One outcome: a failure of any rank is the test's; skips and expected failures must agree."""
    words = {each.word for each in ranks}
    bad = next(
        (r for word in ("failed", "error", *_NO_PROOF) for r in ranks if r.word == word), None
    )
    if bad is not None:
        return _failed(bad, ranks)
    if len(words) > 1:
        return Outcome(
            outcome="failed",
            longrepr=f"the ranks disagree: {_all(ranks)}",
            sections=_sections(ranks),
        )
    first = ranks[0]
    return Outcome(
        outcome=str(first.deciding.outcome),
        longrepr=first.deciding.longrepr,
        sections=_sections(ranks),
        wasxfail=getattr(first.deciding, "wasxfail", None),
        carried=_carried(ranks),
        user_properties=list(first.deciding.user_properties),
    )


def _failed(bad: RankOutcome, ranks: Sequence[RankOutcome]) -> Outcome:
    who = f"rank {bad.rank} of {len(ranks)}"
    longrepr = (
        _NO_PROOF[bad.word].format(who=who) if bad.word in _NO_PROOF else bad.deciding.longrepr
    )
    if len(ranks) > 1:
        text = f"{who}: {bad.word} in {bad.deciding.when}; {_all(ranks)}"
        # A plain text has none.
        add_section: Callable[[str, str], None] | None = getattr(longrepr, "addsection", None)
        if add_section is not None:
            add_section("ranks", text)
        else:
            longrepr = f"{text}\n{longrepr}"
    others = [r for r in ranks if r is not bad and r.word in ("failed", "error")]
    sections = [(f"failure of rank {r.rank}", r.deciding.longreprtext) for r in others]
    error = bad.word == "error" or bool(getattr(bad.deciding, "llmperf_error", False))
    return Outcome(
        outcome="failed",
        longrepr=longrepr,
        sections=[*sections, *_sections(ranks)],
        error=error,
        carried=_carried(ranks),
    )


def _all(ranks: Sequence[RankOutcome]) -> str:
    return ", ".join(f"rank {each.rank} {each.word}{_reason(each)}" for each in ranks)


def _reason(rank: RankOutcome) -> str:
    longrepr = rank.deciding.longrepr
    return (
        f" ({longrepr[2].removeprefix('Skipped: ')})"
        if rank.word == "skipped" and isinstance(longrepr, tuple)
        else ""
    )


def _sections(ranks: Sequence[RankOutcome]) -> list[tuple[str, str]]:
    """Captured output, once for each rank: a report carries the sections of the phases before it."""
    found: list[tuple[str, str]] = []
    for each in ranks:
        where = f" (rank {each.rank})" if len(ranks) > 1 else ""
        found += [(f"{name}{where}", text) for name, text in each.reports[-1].sections]
    return found


def _carried(ranks: Sequence[RankOutcome]) -> dict[str, Any] | None:
    """The records and findings of the lowest rank that measured something."""
    found = (getattr(report, "llmperf", None) for each in ranks for report in each.reports)
    return next((carried for carried in found if carried), None)
