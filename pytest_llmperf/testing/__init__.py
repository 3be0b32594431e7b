"""Drawn prompts, a scripted engine and conformance checks, for those who write tests or engines."""

from importlib import import_module
from typing import TYPE_CHECKING

from pytest_llmperf.engines.scripted.loaded import ScriptedEngine
from pytest_llmperf.engines.scripted.virtual_clock import VirtualClock
from pytest_llmperf.testing.conformance import (
    CHECKS,
    Check,
    NonConforming,
    check_engine,
    scripted_plan,
)

if TYPE_CHECKING:
    from pytest_llmperf.testing.properties import for_any, prompts, token_ids

__all__ = [
    "CHECKS",
    "Check",
    "NonConforming",
    "ScriptedEngine",
    "VirtualClock",
    "check_engine",
    "for_any",
    "prompts",
    "scripted_plan",
    "token_ids",
]

_DRAWN = ("for_any", "prompts", "token_ids")


def __getattr__(name: str) -> object:
    """Return what needs hypothesis, which is not a dependency of the rest."""
    if name not in _DRAWN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module("pytest_llmperf.testing.properties"), name)
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        raise ImportError(
            f"pytest_llmperf.testing.{name} needs hypothesis: "
            "pip install 'pytest-llmperf[property]'."
        ) from error
