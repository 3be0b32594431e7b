"""The transformers engine passes the published conformance checks."""

from __future__ import annotations

import pytest

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models import model_ref
from pytest_llmperf.engines.transformers import TransformersEngine
from pytest_llmperf.strategies import parse
from pytest_llmperf.testing import check_engine


@pytest.mark.parametrize("strategy", ["fp32", "bf16", "bf16-mixed", "fp32+static-cache"])
@pytest.mark.parametrize("model", ["arch:tiny-llama", "arch:tiny-falcon"])
def test_the_transformers_engine_conforms(strategy, model, tmp_path):
    """Every check, on a model of each family."""
    check_engine(TransformersEngine(), parse(strategy).apply(LoadPlan(model=model_ref(model))), directory=tmp_path)
