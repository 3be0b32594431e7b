"""What is wrong with a test, and where in the code: what CI systems show beside the line."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

ERRORS = frozenset({"FAIL", "ERROR", "INVALID"})
WARNINGS = frozenset({"UNDECIDED", "NOT COMPARABLE", "WAIVED"})


class Problem(Struct, frozen=True, kw_only=True):
    """One test's outcome that is no plain pass. `path` is relative to the repository, `line` counts from 1."""

    test: str
    outcome: str
    path: str
    line: int
    text: str

    @property
    def level(self) -> Literal["error", "warning"]:
        """Whether it fails the build."""
        return "error" if self.outcome in ERRORS else "warning"
