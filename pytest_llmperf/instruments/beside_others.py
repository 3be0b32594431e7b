"""What stands around a measurement on a CPU: other programs are looked at before it and named."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from pytest_llmperf.errors import SteadyLoad
from pytest_llmperf.instruments.foreign_load import ALLOW, GLANCE_S, look_for, require_quiet


class BesideOthers:
    """Looks at other programs before a measurement, and names them where their load ended it.

    `here` says whether they are on the cores that are measured; with `allow` they only are named.
    """

    def __init__(self, *, here: bool, allow: bool, show: Callable[[str], None]) -> None:
        self.seen = "they were not looked at"
        self._here = here
        self._allow = allow
        self._show = show

    def __enter__(self) -> Self:
        """Raise InvalidRun where the machine is not quiet, and does not become so."""
        if self._here and self._allow:
            self.seen = str(look_for(GLANCE_S))
        elif self._here:
            require_quiet(self._show)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Name the busiest programs where steady load ended the measurement."""
        if not isinstance(error, SteadyLoad):
            return
        names = f" Now {look_for(GLANCE_S)}." if self._here else ""
        raise SteadyLoad(
            f"{error}{names} Close them, or give {ALLOW} to measure beside them."
        ) from error
