"""What is wrong with a test, and where in the code: what CI systems show beside the line."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

ERRORS = frozenset({"FAIL", "ERROR", "INVALID"})
WARNINGS = frozenset({"UNDECIDED", "NOT COMPARABLE", "WAIVED"})


class Problem(Struct, frozen=True, kw_only=True):
    """One test's outcome that is no plain pass.

    `path` is relative to the repository, `line` counts from 1.

    What is wrong with the session as a whole has no path, and its name in the test's place.
    """

    test: str
    outcome: str
    text: str
    path: str = ""
    line: int = 1

    @property
    def level(self) -> Literal["error", "warning"]:
        """Whether it fails the build."""
        return "error" if self.outcome in ERRORS else "warning"
