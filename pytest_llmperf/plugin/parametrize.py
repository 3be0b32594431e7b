"""The strategies that a test is run under, from its marker or from --llmperf-strategy."""

from __future__ import annotations

from typing import Any

import pytest


def is_parametrized(definition: pytest.Item) -> bool:
    """Whether the test parametrises `llm` itself."""
    marks = definition.iter_markers("parametrize")
    return any("llm" in argument_names(mark) for mark in marks)


def strategies_of(definition: pytest.Item, option: str) -> list[str]:
    """Return the strategies to parametrise with; `option` is the text of --llmperf-strategy.

    Ill-typed markers give none here and their error later, on the test.
    """
    for mark in definition.iter_markers("llmperf"):
        if "strategies" in mark.kwargs or "strategy" in mark.kwargs:
            return _texts(mark.kwargs.get("strategies", ()))
    strategies = [part.strip() for part in option.split(",") if part.strip()]
    return strategies if len(strategies) > 1 else []


def argument_names(mark: pytest.Mark) -> list[str]:
    """Return the names that a `parametrize` mark gives values to."""
    names: Any = mark.args[0] if mark.args else mark.kwargs.get("argnames", "")
    return [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)


def _texts(value: object) -> list[str]:
    """Return a list of texts as it is, and nothing for any other value."""
    if not isinstance(value, list | tuple):
        return []
    return list(value) if all(isinstance(entry, str) for entry in value) else []
