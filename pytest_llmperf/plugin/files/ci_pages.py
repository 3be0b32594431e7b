"""The texts that a session leaves for CI systems, from what its reports carried."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from pytest_llmperf.core.change import Change
from pytest_llmperf.core.record import Record
from pytest_llmperf.errors import LlmperfError
from pytest_llmperf.gate.lineage import Lineage, lineage_of
from pytest_llmperf.plugin.files.before_after import compared
from pytest_llmperf.report import github
from pytest_llmperf.report.gitlab import document
from pytest_llmperf.report.markdown import comment, origin
from pytest_llmperf.report.problems import ERRORS, WARNINGS, Problem
from pytest_llmperf.settings.against_target import OFF
from pytest_llmperf.settings.limits import DEFAULT_LIMITS, parse_gate


class Pages:
    """Each method is one output. `notes` are for the terminal.

    What was not compared is a problem where a comparison was asked for.
    """

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]],
        ended: Iterable[Mapping[str, Any]],
        *,
        store: str,
        root: Path,
        any_tree: bool,
        gate: str,
        against: str,
    ) -> None:
        self.notes: list[str] = []
        self._records = [msgspec.convert(row, Record) for row in rows]
        endings = list(ended)
        outcomes = _problem_outcomes(gate, against)
        self._problems = [Problem(**ending) for ending in endings if ending["outcome"] in outcomes]
        self._skipped = [
            (ending["test"], ending["text"]) for ending in endings if ending["outcome"] == "SKIPPED"
        ]
        self._store = store
        self._root = root
        self._lineage = lineage_of(root, any_tree=any_tree)
        self._limits = parse_gate(gate) or DEFAULT_LIMITS

    def annotations(self) -> list[str]:
        """GitHub's workflow commands."""
        return github.commands(self._problems)

    def job_page(self) -> str:
        """Markdown for GitHub's page of the job."""
        return self.markdown() + "\n"

    def gitlab(self) -> str:
        """GitLab's code-quality report."""
        return json.dumps(document(self._problems), indent=1) + "\n"

    def openmetrics(self) -> str:
        """The runs as OpenMetrics text."""
        from pytest_llmperf.report.openmetrics import exposition  # noqa: PLC0415

        return exposition(self._records)

    def markdown(self) -> str:
        """The body of a comment.

        It has runs beside what was before them, what is wrong with which test, and what was
        skipped.
        """
        notes = [*map(_problem_note, self._problems), *_by_reason(self._skipped)]
        return comment(self._compared, origin=origin(self._records), notes=notes)

    @cached_property
    def _compared(self) -> list[Change]:
        try:
            return beside_history(
                self._records, self._store, self._root, self._limits, self._lineage
            )
        except LlmperfError as error:
            self.notes.append(f"the history was not looked at for the comment: {error}")
            return compared(self._records, None, None, self._limits)


def _problem_outcomes(gate: str, against: str) -> frozenset[str] | set[str]:
    """Return the outcomes that are a problem here."""
    if _compares(gate, against):
        return ERRORS | WARNINGS
    return ERRORS | (WARNINGS - {"NOT COMPARABLE"})


def _compares(gate: str, against: str) -> bool:
    """Whether a comparison was asked for."""
    return parse_gate(gate) is not None or against.strip().lower() not in OFF


def _problem_note(problem: Problem) -> str:
    return f"{problem.outcome} {problem.test}: {_one_line(problem.text)}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _by_reason(skipped: Iterable[tuple[str, str]]) -> list[str]:
    """Return one note for all that was skipped for one reason."""
    tests_by_reason: dict[str, list[str]] = {}
    for test, reason in skipped:
        tests_by_reason.setdefault(_one_line(reason), []).append(test)
    return [f"SKIPPED {', '.join(tests)}: {reason}" for reason, tests in tests_by_reason.items()]


def beside_history(
    records: list[Record],
    store: str,
    root: Path,
    limits: Mapping[str, float],
    lineage: Lineage | None,
) -> list[Change]:
    """Return each run beside its history in a store ("none": there is none).

    Raises as `open_store`, and UsageError as `reviewed`.
    """
    if store == "none" or not records:
        return compared(records, None, None, limits)
    # SQLAlchemy, only where there is something to show.
    from pytest_llmperf.history import accept  # noqa: PLC0415
    from pytest_llmperf.history.store import open_store  # noqa: PLC0415

    with open_store(store, create=False, folder=root) as opened:
        return compared(records, opened, accept.reviewed(root), limits, lineage)
