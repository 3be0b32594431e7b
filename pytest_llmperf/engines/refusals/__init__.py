"""Plans that cannot be loaded, and the reason in words, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pytest_llmperf.core.plan import LoadPlan

Refusal = Callable[[LoadPlan], str | None]
"""Gives the reason why a plan cannot be loaded, or None."""


def first_reason(reasons: Iterable[str | None]) -> str | None:
    """Return the first reason there is, or None. Reasons after it are not asked for."""
    return next((reason for reason in reasons if reason is not None), None)
