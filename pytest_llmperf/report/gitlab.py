"""GitLab's code-quality report: a JSON list of problems, each on a line of the code. Pure.

(docs.gitlab.com/ci/testing/code_quality)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from pytest_llmperf.report.problems import Problem
from pytest_llmperf.report.table import shorten, showable

_SEVERITY = {"FAIL": "major", "ERROR": "critical", "INVALID": "major"}
_LENGTH = 2000


def document(problems: Iterable[Problem]) -> list[dict[str, Any]]:
    """Return the report.

    A problem's fingerprint stays the same while its test, outcome and file do: GitLab tells new
    ones by it.

    What is wrong with the session as a whole is not in it: GitLab wants a file of each.
    """
    return [_issue(problem) for problem in problems if problem.path]


def _issue(problem: Problem) -> dict[str, Any]:
    identity = f"{problem.test}\0{problem.outcome}\0{problem.path}"
    text = " ".join(problem.text.split())
    return {
        "description": shorten(
            showable(f"{problem.outcome} {problem.test}: {text}", "utf-8"), _LENGTH
        ),
        "check_name": f"llmperf {problem.outcome}",
        "fingerprint": hashlib.sha256(identity.encode("utf-8", "replace")).hexdigest(),
        "severity": _SEVERITY.get(problem.outcome, "minor"),
        "location": {"path": problem.path, "lines": {"begin": problem.line}},
    }
