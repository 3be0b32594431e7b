"""Skips what needs vLLM where there is none."""

import importlib.util

import pytest


@pytest.fixture
def vllm(pytestconfig):
    """The name of the engine; skips where no interpreter has it."""
    named = any(text.startswith("vllm=") for text in pytestconfig.getoption("--llmperf-python") or ())
    if not named and importlib.util.find_spec("vllm") is None:
        pytest.skip("no interpreter with vLLM: --llmperf-python vllm=PATH")
    return "vllm"
