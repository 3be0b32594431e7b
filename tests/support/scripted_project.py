"""The head of a test file that measures a scripted model."""

from __future__ import annotations

HEADER = """
import pytest
from pytest_llmperf import Batch, Decode, Prefill, PromptSet
from pytest_llmperf.units import MB, ms

pytestmark = pytest.mark.llmperf(model="scripted:{script}", engine="scripted")
WORK = Decode(batch=1, prompt_tokens=8, new_tokens=11)
"""
