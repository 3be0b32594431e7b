"""Skips what needs vLLM where there is none."""

import importlib.util
import os
import shutil

import pytest


@pytest.fixture
def vllm(pytestconfig):
    """The name of the engine; skips where no interpreter has it."""
    has_own_python = any(
        text.startswith("vllm=") for text in pytestconfig.getoption("--llmperf-python") or ()
    )
    if not has_own_python and importlib.util.find_spec("vllm") is None:
        pytest.skip("no interpreter with vLLM: --llmperf-python vllm=PATH")
    return "vllm"


@pytest.fixture
def vllm_server():
    """Skips where no command `vllm` is found."""
    if "LLMPERF_SERVER_VLLM" not in os.environ and shutil.which("vllm") is None:
        pytest.skip("no vLLM server: set LLMPERF_SERVER_VLLM")
