"""What hooks keep on pytest's items, config and reports.

Imported at start-up: nothing heavy stands here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_llmperf.core.plan import LoadPlan
    from pytest_llmperf.core.verdicts.judge import Finding
    from pytest_llmperf.devices.selection import Need
    from pytest_llmperf.errors import LlmperfError
    from pytest_llmperf.plugin.bodies.marks import Body
    from pytest_llmperf.plugin.bodies.merge import Outcome
    from pytest_llmperf.session.declare import Declaration


@dataclass
class Declared:
    """What is known of a test before it runs.

    That is its declaration and load plans, or the `error` for which it cannot run.
    """

    declaration: Declaration
    plans: tuple[LoadPlan, ...] = ()
    error: LlmperfError | None = None


SESSION: pytest.StashKey[Any] = pytest.StashKey()
"""On the config: the `items.PytestSession`, once the first llmperf test is collected."""

LOST: pytest.StashKey[list[str]] = pytest.StashKey()
"""On the config: what could be stored nowhere, in words."""

DECLARED: pytest.StashKey[Declared] = pytest.StashKey()
FINDINGS: pytest.StashKey[list[Finding]] = pytest.StashKey()
"""On an llmperf item: the claims of its run so far."""

ATTEMPTS: pytest.StashKey[int] = pytest.StashKey()
"""On an llmperf item: how often it was set up. A plugin that reruns failures does so again."""

NEED: pytest.StashKey[Need | None] = pytest.StashKey()
"""On an item: the GPUs it needs."""

UNUSABLE: pytest.StashKey[Exception] = pytest.StashKey()
"""On an item: why its need of GPUs cannot be met."""

FAILED: pytest.StashKey[bool] = pytest.StashKey()
"""On an item: a phase of it has failed."""

BODY: pytest.StashKey[Body | None] = pytest.StashKey()
"""On an item whose body runs in processes of its own."""

RAN: pytest.StashKey[Outcome] = pytest.StashKey()
"""On such an item: what came of it."""


def stated_reason(carried: Mapping[str, Any]) -> str:
    """Return why a test ended as it did, in words; empty where nothing went wrong.

    `carried` is what its report carries: `kind` is the name of the error's class, `reason` what the
    error says.
    """
    kind, reason = carried["kind"], carried["reason"]
    return f"{kind}: {reason}" if kind else str(reason)
