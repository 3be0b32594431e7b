"""From a session's records to advice: what the plugin stores is what `llmperf advise` needs."""

from __future__ import annotations

import json
import sys

TESTS = """
@pytest.mark.parametrize("llm", ["fp32", "fp16", "bf16"], indirect=True)
def test_speed(llm):
    llm.run(WORK)

@pytest.mark.parametrize("llm", ["fp16", "bf16"], indirect=True)
def test_quality(llm, baseline):
    llm.agreement(baseline, prompts=PromptSet.synthetic(), new_tokens=20)
"""


def test_a_session_is_enough_for_advice(project, run, pytester):
    """The reference is known from the agreements.

    The faster strategy is less like it, and a limit leaves it out.
    """
    project(TESTS, script="tpot=10ms,fp16/tpot=5ms,fp16/quality=0.95,bf16/quality=0.9")
    run().assert_outcomes(passed=5)
    found = pytester.run(sys.executable, "-m", "pytest_llmperf", "advise", "--json")
    advice = json.loads("\n".join(found.outlines))
    assert advice["front"] == ["fp16", "fp32"]
    assert advice["dominated"] == [{"name": "bf16", "by": ["fp16"]}]
    assert advice["agreement"].endswith("against fp32")
    strict = pytester.run(sys.executable, "-m", "pytest_llmperf", "advise", "--top1", "0.99")
    assert strict.outlines[-1].startswith("Fastest with top-1 >= 99.0 %: fp32")
