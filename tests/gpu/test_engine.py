"""The transformers engine on a CUDA device: conformance, memory and energy.

Its two decode loops give equal tokens.
"""

from __future__ import annotations

import pytest

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.strategies import parse
from pytest_llmperf.testing import check_engine
from pytest_llmperf.workloads import Decode, PromptSet

pytestmark = pytest.mark.gpu


def engine():
    """Imported late: it brings torch."""
    from pytest_llmperf.engines.transformers import TransformersEngine

    return TransformersEngine()


def plan(strategy: str, model: str = "arch:tiny-llama") -> LoadPlan:
    """A plan on the first GPU."""
    return parse(strategy).apply(LoadPlan(model=model_ref(model), device="cuda"))


@pytest.mark.parametrize(
    "strategy",
    ["fp32", "fp16", "bf16", "bf16-mixed", "bf16+static-cache", "bf16+static-cache+compile"],
)
def test_the_engine_passes_the_conformance_checks(strategy, tmp_path):
    """The checks any engine must pass, on the device."""
    check_engine(engine(), plan(strategy), directory=tmp_path)


def test_a_large_model_takes_what_was_predicted_and_gives_it_back():
    """50 million weights in bf16, and nothing of them once it is closed."""
    import torch

    from pytest_llmperf.engines.models.names import predict

    wanted = plan("bf16", "arch:small-llama")
    before = torch.cuda.memory_allocated()
    session = engine().open(wanted)
    assert session.describe().effective.weights_bytes == pytest.approx(predict(wanted), rel=0.001)
    session.close()
    assert torch.cuda.memory_allocated() <= before + 2**20


def test_energy_is_read_from_the_counter():
    """At least three seconds of decoding cost joules, and the source is named."""
    session = engine().open(plan("bf16", "arch:small-llama"))
    reading = session.read_energy(Decode(batch=1, prompt_tokens=8, new_tokens=32), 0, 3.0)
    session.close()
    assert reading.joules is not None
    assert reading.joules > 0
    assert reading.source == "nvml-counter"


def test_the_compiled_loop_gives_the_tokens_of_generate(tmp_path):
    """In fp32, free-running, for prompts of unequal length."""
    reference = tmp_path / "ref"
    plain = engine().open(plan("fp32"))
    plain.make_reference(PromptSet.synthetic(1), 16, 4, str(reference))
    plain.close()
    compiled = engine().open(plan("fp32+static-cache+compile"))
    rows = compiled.compare_reference(str(reference), 4)
    compiled.close()
    assert [row.first_divergence for row in rows] == [None] * len(rows)
