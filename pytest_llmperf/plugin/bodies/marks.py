"""The markers of tests whose body runs elsewhere, read and checked.

Imported when such a test is set up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

import pytest

from pytest_llmperf.errors import UsageError

ISOLATED = "llmperf_isolated"
RANKS = "llmperf_ranks"


@dataclass(frozen=True, kw_only=True)
class Body:
    """How a test's body runs: in `ranks` processes.

    `distributed` tells `llmperf_ranks(1)` from `llmperf_isolated`. `timeout_s` is the deadline from
    the start of the body to the last rank's report; None takes --llmperf-timeout.
    """

    ranks: int = 1
    distributed: bool = False
    timeout_s: float | None = None


def body_of(item: pytest.Item) -> Body | None:
    """Return what the closest of the two markers asks for; None without one.

    Raises UsageError for arguments that cannot be used.
    """
    ranks, isolated = item.get_closest_marker(RANKS), item.get_closest_marker(ISOLATED)
    if ranks is None and isolated is None:
        return None
    _require_function(item)
    return _ranked(ranks) if ranks is not None else _isolated(isolated)


def _require_function(item: pytest.Item) -> None:
    if type(item) is not pytest.Function:
        raise UsageError(
            f"{item.nodeid} is a {type(item).__name__}: "
            "only pytest's own test functions run in a process of their own. "
            "Move the body out of the unittest.TestCase or doctest.",
        )


def _ranked(mark: pytest.Mark) -> Body:
    _require_known_arguments(mark)
    ranks = mark.args[0] if mark.args else mark.kwargs.get("n")
    if not isinstance(ranks, int) or isinstance(ranks, bool) or ranks < 1:
        raise UsageError(
            f"@pytest.mark.{RANKS}({ranks!r}): a number of ranks of at least 1 is needed, "
            "for example llmperf_ranks(2)."
        )
    return Body(ranks=ranks, distributed=True, timeout_s=_timeout(mark, RANKS))


def _require_known_arguments(mark: pytest.Mark) -> None:
    unknown = sorted(set(mark.kwargs) - {"n", "timeout"})
    if unknown or len(mark.args) > 1:
        raise UsageError(
            f"@pytest.mark.{RANKS}: {unknown or mark.args[1:]} is not known. "
            "It reads llmperf_ranks(n, timeout=None).",
        )


def _isolated(mark: pytest.Mark | None) -> Body:
    if mark is None:
        return Body()
    _require_timeout_alone(mark)
    return Body(timeout_s=_timeout(mark, ISOLATED))


def _require_timeout_alone(mark: pytest.Mark) -> None:
    if mark.args or set(mark.kwargs) - {"timeout"}:
        raise UsageError(
            f"@pytest.mark.{ISOLATED}: it takes nothing but timeout=SECONDS, "
            f"not {mark.args or mark.kwargs}."
        )


def _timeout(mark: pytest.Mark, name: str) -> float | None:
    seconds = mark.kwargs.get("timeout")
    if seconds is None:
        return None
    if not _is_duration(seconds):
        raise UsageError(
            f"@pytest.mark.{name}(timeout={seconds!r}): a number of seconds above 0 is needed."
        )
    return float(seconds)


def _is_duration(seconds: object) -> TypeGuard[float]:
    """Whether a value is a number above 0."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return False
    return seconds > 0
