"""A run whose tokens were not computed, or were chosen from no numbers, is INVALID."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", exc_type=ModuleNotFoundError)

from support.generating import loaded, tiny_llama

from pytest_llmperf.engines.transformers import TransformersModel
from pytest_llmperf.errors import InvalidRun
from pytest_llmperf.workloads import Batch, Decode

WORK = Decode(batch=2, prompt_tokens=7, new_tokens=6)
BATCH = Batch(requests=3, prompt_tokens=(3, 6), max_new_tokens=(2, 4), batch=2)


class Repeating(transformers.LlamaForCausalLM):
    """Computes three tokens and gives out the last again and again."""

    def generate(self, inputs, *, generation_config, streamer, **kwargs):
        asked = generation_config.max_new_tokens
        generation_config.max_new_tokens = 3
        out = super().generate(
            inputs, generation_config=generation_config, streamer=streamer, **kwargs
        )
        for _ in range(asked - 3):
            streamer.put(out.sequences[:, -1].cpu())
            out.sequences = torch.cat([out.sequences, out.sequences[:, -1:]], dim=1)
        return out


@pytest.mark.parametrize("fields", [{}, {"cache": "static"}, {"cache": "int8"}])
def test_tokens_that_were_not_computed_make_a_run_invalid(fields):
    """The cache has seen three positions fewer than the output needs."""
    honest = TransformersModel(loaded(tiny_llama(), **fields))
    honest.run(WORK, 0)
    model = tiny_llama()
    model.__class__ = Repeating
    with pytest.raises(
        InvalidRun, match=r"holds 9 positions .* 12 are needed .* 3 tokens were not computed"
    ):
        TransformersModel(loaded(model, **fields)).run(WORK, 0)


def with_one_nan(*, past=0):
    """One weight is no number; or only from a position on."""
    model = tiny_llama()
    if not past:
        model.model.layers[1].mlp.down_proj.weight.data[3, 3] = float("nan")
        return model
    norm = model.model.norm.forward

    def forward(hidden):
        out = norm(hidden)
        if hidden.shape[1] > past:
            out[:, past:] = float("inf")
        return out

    model.model.norm.forward = forward
    return model


@pytest.mark.parametrize("work", [WORK, BATCH])
def test_logits_that_are_no_numbers_make_a_run_invalid(work):
    """Whatever tokens were chosen from them."""
    with pytest.raises(InvalidRun, match="positions of a run are not finite"):
        TransformersModel(loaded(with_one_nan())).run(work, 0)


def test_logits_are_looked_at_where_the_output_is():
    """Not at one token alone: here they are infinite from the tenth position on."""
    session = TransformersModel(loaded(with_one_nan(past=9)))
    with pytest.raises(InvalidRun, match="the logits of 3 of the last 6 positions"):
        session.run(WORK, 0)


def test_logits_of_a_workload_are_looked_at_once(monkeypatch):
    """A second repetition has no further forward pass; other work has."""
    session = TransformersModel(loaded(tiny_llama()))
    calls = []
    forward = session._loaded.model.forward
    monkeypatch.setattr(
        session._loaded.model, "forward", lambda *a, **k: calls.append(k) or forward(*a, **k)
    )
    session.run(WORK, 0)
    first = len(calls)
    session.run(WORK, 1)
    assert len(calls) - first == first - 1 == 6
