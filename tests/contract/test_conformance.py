"""The transformers engine passes the published conformance checks."""

from __future__ import annotations

import os

import pytest

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.engines.transformers import TransformersEngine
from pytest_llmperf.strategies import parse
from pytest_llmperf.testing import check_engine


@pytest.mark.parametrize(
    ("model", "strategy"),
    [
        ("arch:tiny-llama", "fp32"),
        ("arch:tiny-llama", "bf16"),
        pytest.param("arch:tiny-llama", "bf16-mixed", marks=pytest.mark.nightly),
        pytest.param("arch:tiny-llama", "fp32+static-cache", marks=pytest.mark.nightly),
        ("arch:tiny-falcon", "fp32"),
    ],
)
def test_the_transformers_engine_conforms(model, strategy, tmp_path):
    """Every check, on a model of each family."""
    check_engine(
        TransformersEngine(),
        parse(strategy).apply(LoadPlan(model=model_ref(model))),
        directory=tmp_path,
    )


@pytest.mark.real_model
@pytest.mark.skipif(
    "LLMPERF_NIGHTLY" not in os.environ,
    reason="takes four minutes on two cores: make nightly runs it",
)
def test_it_conforms_on_the_real_model(tmp_path):
    """And where the tokens mean something."""
    check_engine(
        TransformersEngine(),
        parse("fp32").apply(LoadPlan(model=model_ref("smollm2-135m"))),
        directory=tmp_path,
    )
