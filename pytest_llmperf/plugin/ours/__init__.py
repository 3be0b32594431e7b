"""Which tests are ours: those with our marker, and those that use a fixture that we define.

A project may have an `llm`, a `baseline` or an `llm_factory` of its own: a name says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pytest_llmperf.names import FIXTURES

HOOKS = "pytest_llmperf.plugin.hooks"
"""The module that defines our fixtures."""


def is_llmperf(item: pytest.Item) -> bool:
    """Whether a test carries our marker, or uses one of our fixtures."""
    return item.get_closest_marker("llmperf") is not None or bool(our_fixtures(item))


def our_fixtures(item: pytest.Item) -> frozenset[str]:
    """Return the names under which a test uses fixtures of ours.

    A fixture of the project's that has the name of ours and asks for ours is counted.
    """
    names = FIXTURES.intersection(getattr(item, "fixturenames", ()))
    if not names:
        return frozenset()
    fixture_info = getattr(item, "_fixtureinfo", None)
    definitions = getattr(fixture_info, "name2fixturedefs", {})
    return frozenset(name for name in names if _reaches_ours(name, definitions.get(name, ())))


def _reaches_ours(name: str, definitions: Sequence[Any]) -> bool:
    """Whether a fixture is ours, or overrides ours and asks for it. The closest stands last."""
    for definition in reversed(definitions):
        if getattr(definition.func, "__module__", "") == HOOKS:
            return True
        if name not in definition.argnames:
            return False
    return False
