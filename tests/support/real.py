"""What the tests of strategy parts on the real model share.

That is its fp32 continuations, and a candidate's agreement with them.
"""

from __future__ import annotations

import os
import sys

import pytest

from pytest_llmperf.core.agreement.agreement import Agreement
from pytest_llmperf.core.agreement.rules import default_rule
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.engines.transformers import TransformersEngine
from pytest_llmperf.strategies import parse, require_in_effect
from pytest_llmperf.workloads import PromptSet

MODEL = "smollm2-135m"
CHAT = PromptSet.bundled("short-chat")
NEW_TOKENS, BATCH = 16, 24

NIGHTLY = [
    pytest.mark.real_model,
    pytest.mark.skipif(
        "LLMPERF_NIGHTLY" not in os.environ,
        reason="a minute each on two cores: make nightly runs it",
    ),
]
"""Marks of a module of such tests."""


def plan_of(strategy):
    return parse(strategy).apply(LoadPlan(model=model_ref(MODEL)))


def opened(strategy):
    """A session whose promises about what was loaded hold."""
    plan = plan_of(strategy)
    session = TransformersEngine().open(plan)
    require_in_effect(session.opened().effective, parse(strategy).promises(plan), "loaded")
    return session


def warm(session, strategy):
    """What is in effect after a run, whose promises hold too."""
    described = session.describe()
    require_in_effect(described.effective, parse(strategy).promises(plan_of(strategy)), "warm")
    return described


def make_reference(folder):
    """The fp32 model's own continuations of the bundled prompts; returns the file."""
    path = str(folder / "fp32.ref")
    session = opened("fp32")
    session.make_reference(CHAT, NEW_TOKENS, BATCH, path)
    session.close()
    return path


def agreement(session, strategy, reference):
    """With fp32, under the rule of the strategy's kind."""
    rows = session.compare_reference(reference, BATCH)
    return Agreement(rows, rule=default_rule(plan_of(strategy), plan_of("fp32")))


def say(capsys, name, result, about):
    """Print the figures of an agreement, with their intervals, for the results pages."""
    fields = ("perplexity_ratio", "top1", "top5", "kl", "sqnr_db")
    with capsys.disabled():
        figures = "; ".join(f"{field} {getattr(result, field)}" for field in fields)
        sys.stdout.write(f"\n{name}: {about}; {figures}\n")
