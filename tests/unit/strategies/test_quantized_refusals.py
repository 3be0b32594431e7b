"""Quantized plans that are refused before anything loads."""

from __future__ import annotations

import pytest

from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.core.quantization import (
    METHODS,
)
from pytest_llmperf.engines.capabilities import TRANSFORMERS
from pytest_llmperf.engines.refusals import quantized as refusals
from pytest_llmperf.errors import UsageError
from pytest_llmperf.strategies import check_engine_can, parse

MODEL = ModelRef(name="arch:tiny-llama", kind="arch", location="tiny-llama")


def plan(strategy, **fields):
    return parse(strategy).apply(LoadPlan(model=MODEL, **fields))


@pytest.mark.parametrize(
    ("strategy", "device", "reason"),
    [
        ("fp8", "cpu", "float8 products need a GPU of compute capability 8.9"),
        ("bf16-mixed+nf4", "cpu", "autocast gives them another"),
        ("fp32+int4wo", "cuda", r"bfloat16 only, the precision is float32. Write 'bf16\+int4wo'"),
        # The checkpoint's own.
        ("int4wo", "cuda", r"bfloat16 only, the precision is float32. Write 'bf16\+int4wo'"),
        ("fp16+fp8", "cuda", "bfloat16 only"),
        ("int8+static-cache+compile", "cuda", "Leave out 'compile', or the outliers: 'int8:0'"),
        ("int4wo:256", "cpu", "group sizes on a CPU: 32, 64, 128"),
    ],
)
def test_what_cannot_be_loaded_is_refused_before_loading(strategy, device, reason, monkeypatch):
    """With part, engine, device and model."""
    monkeypatch.setattr(refusals, "compute_capability", lambda: (9, 0))
    asked = plan(strategy, device=device)
    with pytest.raises(UsageError, match=reason) as caught:
        check_engine_can(asked, TRANSFORMERS, "transformers")
    assert all(
        text in str(caught.value)
        for text in (asked.quantization, "transformers", device, MODEL.name)
    )


@pytest.mark.parametrize(("part", "needed"), [("fp8", "8.9"), ("int4wo", "8.0")])
def test_a_gpu_that_is_too_old_is_named_with_what_is_needed(part, needed, monkeypatch):
    """Compute capability 7.5 has neither; 8.9 has both."""
    monkeypatch.setattr(refusals, "compute_capability", lambda: (7, 5))
    assert f"compute capability 7.5, {needed} or newer" in str(
        TRANSFORMERS.refusal(plan(f"bf16+{part}", device="cuda"))
    )
    monkeypatch.setattr(refusals, "compute_capability", lambda: (8, 9))
    assert TRANSFORMERS.refusal(plan(f"bf16+{part}", device="cuda")) is None


@pytest.mark.parametrize(
    "strategy",
    [
        "int8",
        "nf4:double",
        "bf16+int8:0+static-cache+compile",
        "fp8:wo",
        "int4wo",
        "int8wo+compile",
    ],
)
def test_what_can_be_loaded_on_a_cpu_is_not_refused(strategy):
    """The other parts are."""
    check_engine_can(plan(strategy), TRANSFORMERS, "transformers")


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_library_that_is_not_installed_is_named_with_its_extra(method, monkeypatch):
    """Nothing is imported to find out."""
    monkeypatch.setattr(refusals.importlib.util, "find_spec", lambda _: None)
    text = f"{method.name}:q" if method.extra == "compressed-tensors" else method.name
    assert f"pip install 'pytest-llmperf[{method.extra}]'" in str(
        TRANSFORMERS.missing_library(plan(text))
    )
    monkeypatch.setattr(refusals.importlib.util, "find_spec", lambda _: object())
    assert TRANSFORMERS.missing_library(plan(text)) is None
    assert TRANSFORMERS.missing_library(plan("bf16")) is None
