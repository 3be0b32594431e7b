"""The test of `llmperf run`."""

from __future__ import annotations

import os

import pytest

from pytest_llmperf import Decode, Model, Prefill
from pytest_llmperf.plugin.named_model import taken_over

_NAMED = taken_over(os.environ)
_WORKLOADS = {"Decode": Decode, "Prefill": Prefill}

pytestmark = pytest.mark.llmperf(
    model=_NAMED.model, engine=_NAMED.engine, strategies=_NAMED.strategies
)


def test_model(llm: Model, request: pytest.FixtureRequest) -> None:
    """Measure the model, and compare its outputs with those of the reference where asked to."""
    llm.run(_WORKLOADS[_NAMED.workload](**_NAMED.keywords))
    if _NAMED.agreement:
        llm.agreement(request.getfixturevalue("baseline"))
