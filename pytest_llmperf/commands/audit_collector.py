"""A pytest plugin for `llmperf audit`: which tests would run, and why others would not."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

REPORT = "LLMPERF_AUDIT_REPORT"
"""Environment variable: the file that is written."""

_deselected: dict[str, str] = {}


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Note what -m, -k, --llmperf-only or any other plugin deselected."""
    _deselected.update({item.nodeid: "deselected" for item in items})


def pytest_collection_finish(session: pytest.Session) -> None:
    """Write the report: what was not deselected runs, unless it is skipped or cannot be used."""
    tests = _deselected | {item.nodeid: _why_not(item) for item in session.items}
    Path(os.environ[REPORT]).write_text(json.dumps(tests), encoding="utf-8")


def _why_not(item: pytest.Item) -> str:
    """Why the test would not run; "" where it would."""
    from pytest_llmperf.plugin.plan import skip_reason  # noqa: PLC0415

    skipped = skip_reason(item)
    if skipped is not None:
        return f"skipped: {skipped}"
    return _why_unusable(item)


def _why_unusable(item: pytest.Item) -> str:
    error = _declaration_error(item)
    return "" if error is None else f"error: {error}"


def _declaration_error(item: pytest.Item) -> object:
    from pytest_llmperf.plugin.stash import DECLARED, UNUSABLE  # noqa: PLC0415

    declared = item.stash.get(DECLARED, None)
    return item.stash.get(UNUSABLE, None) if declared is None else declared.error
