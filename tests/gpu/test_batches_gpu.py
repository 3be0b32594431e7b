"""Continuous batches of the transformers engine on a CUDA device.

They are in effect, without padding, and give the tokens of static ones.
"""

from __future__ import annotations

import pytest

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.strategies import parse, require_in_effect
from pytest_llmperf.workloads import Batch, PromptSet

pytestmark = pytest.mark.gpu

MIXED = Batch(
    prompts=PromptSet.synthetic(0),
    requests=12,
    prompt_tokens=(8, 48),
    max_new_tokens=(4, 48),
    batch=6,
)


def test_continuous_batches_give_the_tokens_of_static_ones():
    """In fp32, of requests of many lengths."""
    from transformers import ContinuousBatchingConfig

    from pytest_llmperf.engines.transformers import TransformersEngine

    if not hasattr(ContinuousBatchingConfig, "auto_switch_to_flash"):
        pytest.skip("transformers before 5.19 sizes continuous batches otherwise")
    ran = {}
    for strategy in ("fp32", "fp32+continuous"):
        plan = parse(strategy).apply(LoadPlan(model=model_ref("arch:small-llama"), device="cuda"))
        session = TransformersEngine().open(plan)
        ran[strategy] = session.run(MIXED, 0)
        require_in_effect(session.describe().effective, parse(strategy).promises(plan), "warm")
        session.close()
    assert ran["fp32+continuous"].outputs_hash == ran["fp32"].outputs_hash
