"""What a session that measures nothing gives in place of estimates.

Claims on it hold, and are kept as not judged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pytest_llmperf.core.verdicts.judge import Finding, Outcome, keep


@dataclass(frozen=True, eq=False, repr=False)
class UnjudgedQuantity:
    """A quantity that was not measured.

    Any part or multiple of it is one too. Any comparison with it is true, and not judged.
    """

    name: str
    reason: str

    def _claim(self, other: object) -> Finding:
        return keep(
            Finding(
                outcome=Outcome.NOT_COMPARABLE,
                text=f"{self.name} against {other!r} was not judged",
                detail=self.reason,
            ),
        )

    # A Finding is true or false.
    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = _claim  # type: ignore[assignment]

    def __hash__(self) -> int:
        return id(self)

    def _calculated(self, _: object) -> UnjudgedQuantity:
        return self

    __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __add__ = __radd__ = __sub__ = __rsub__ = (
        _calculated
    )

    def __getattr__(self, attribute: str) -> Any:
        # Protocols that ask what an object can do (copy, pickle, pytest) need a plain no.
        if attribute.startswith("_"):
            raise AttributeError(attribute)
        return UnjudgedQuantity(f"{self.name}.{attribute}", self.reason)

    def __repr__(self) -> str:
        return f"<{self.name}: not judged: {self.reason}>"
