"""A reference file, and a model compared with it, on tiny models."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.generating import loaded, tiny_llama

from pytest_llmperf.engines.outputs.inputs import first_rows, left_padded
from pytest_llmperf.engines.outputs.scorer import Scorer
from pytest_llmperf.engines.outputs.scoring import rank_of, same_top, score, ulp
from pytest_llmperf.engines.transformers import TransformersModel
from pytest_llmperf.engines.transformers.compiling import CompileOptions
from pytest_llmperf.engines.transformers.generate import GenerateLoop
from pytest_llmperf.engines.transformers.runner import Runner
from pytest_llmperf.errors import UsageError, WorkerError
from pytest_llmperf.workloads import PromptSet

PROMPTS = PromptSet.synthetic(3)
FLOAT32 = (torch.float32, torch.float32)


def sqnr_db(compared):
    signal, noise = sum(p.signal for p in compared), sum(p.noise for p in compared)
    return math.inf if noise == 0 else 10 * math.log10(signal / noise)


def mean_kl(compared):
    values = [kl for p in compared for kl in p.kl]
    return sum(values) / len(values)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "ref.safetensors"
    made = TransformersModel(loaded(tiny_llama())).make_reference(PROMPTS, 12, 5, str(path))
    assert made == (16, 16 * 12)
    return str(path)


def test_a_model_against_itself_agrees_but_for_the_rounding_of_its_cache(reference):
    compared = TransformersModel(loaded(tiny_llama())).compare_reference(reference, 5)
    assert [p.index for p in compared] == list(range(16))
    for prompt in compared:
        assert max(prompt.kl) < 1e-9
        assert prompt.max_abs_logit_error < 1e-4
        assert all(prompt.top1)
        assert all(prompt.top5)
        assert prompt.reference_logprob == pytest.approx(prompt.candidate_logprob, abs=1e-4)
        assert (prompt.path, prompt.unforced) == ("generate", "")
        assert (prompt.first_divergence, prompt.n_free) == (None, 12)
        assert prompt.n_prompt_tokens == 32
    assert compared[0].signal > 0
    assert [len(p.reprefill_kl) for p in compared] == [12] * 5 + [0] * 11, "of the first batch"
    assert max(max(p.reprefill_kl) for p in compared[:5]) < 1e-9


def test_the_continuation_is_greedy_and_its_logits_say_so(reference):
    compared = TransformersModel(loaded(tiny_llama())).compare_reference(reference, 5)
    for prompt in compared:
        assert all(logprob > math.log(1 / 320) for logprob in prompt.reference_logprob)
        assert prompt.worst.reference_top5[0].logit >= prompt.worst.reference_top5[1].logit
    assert len({prompt.reference_text for prompt in compared}) > 10, (
        "random prompts give different texts"
    )


def test_another_batch_size_compares_every_prompt_once(reference):
    compared = TransformersModel(loaded(tiny_llama())).compare_reference(reference, 3)
    assert [p.index for p in compared] == list(range(16))
    assert all(p.first_divergence is None for p in compared)
    assert max(max(p.kl) for p in compared) < 1e-6


def _damaged(how):
    model = tiny_llama()
    how(model)
    return model


def _scale(model):
    model.model.layers[0].mlp.down_proj.weight.data.mul_(1.05)


def _zero(model):
    for weight in (w for name, w in model.named_parameters() if w.ndim == 2 and "layers" in name):
        generator = torch.Generator().manual_seed(0)
        weight.data[torch.rand(weight.shape, generator=generator) < 0.3] = 0


def test_damage_is_seen_and_more_damage_is_seen_more(reference):
    """Negative controls: nothing wrong, one matrix scaled by 1.05, 30 % of the weights zeroed."""
    whole, scaled, zeroed = (
        TransformersModel(loaded(model)).compare_reference(reference, 5)
        for model in (tiny_llama(), _damaged(_scale), _damaged(_zero))
    )
    assert sqnr_db(whole) > 100
    assert 20 > sqnr_db(zeroed) < sqnr_db(scaled) < 60
    assert mean_kl(whole) < 1e-9 < mean_kl(scaled) < mean_kl(zeroed)
    assert (
        sum(map(sum, (p.top1 for p in zeroed))) < sum(map(sum, (p.top1 for p in scaled))) < 16 * 12
    )
    diverged = [p for p in zeroed if p.first_divergence is not None]
    assert len(diverged) >= 12
    ranks = [(p.candidate_rank_in_reference, p.reference_rank_in_candidate) for p in diverged]
    assert all(a > 0 or b > 0 for a, b in ranks)
    assert any(max(pair) >= 5 for pair in ranks), "containment with k = 5 rejects it"


def test_a_loop_that_decodes_other_tokens_than_its_logits_say_is_seen_in_the_first_batch(
    reference, monkeypatch
):
    """The free-running text comes from the decode path that is measured, not from a second one."""
    decode = GenerateLoop.decode

    def broken(self, batch, new_tokens):
        decoded = decode(self, batch, new_tokens)
        decoded.tokens[:, 4] = (decoded.tokens[:, 4] + 1) % 320
        return decoded

    monkeypatch.setattr(GenerateLoop, "decode", broken)
    compared = TransformersModel(loaded(tiny_llama())).compare_reference(reference, 5)
    assert all(max(p.kl) < 1e-9 for p in compared)
    assert [p.first_divergence for p in compared] == [4] * 5 + [None] * 11
    assert all(
        p.candidate_rank_in_reference > 0 and p.reference_rank_in_candidate == 0
        for p in compared[:5]
    )


@pytest.mark.parametrize(("mode", "rows"), [(None, 8), ("default", 16)])
def test_of_a_wide_batch_eight_prompts_are_decoded_freely_and_all_by_a_compiled_loop(
    reference, monkeypatch, mode, rows
):
    """Another number of rows would cost a compiled loop another graph."""
    free, asked = Scorer.free, []

    def spy(self, batch, new_tokens):
        asked.append(batch.lengths)
        return free(self, batch, new_tokens)

    monkeypatch.setattr(Scorer, "free", spy)
    monkeypatch.setattr(Runner, "compile_mode", mode)
    compared = TransformersModel(loaded(tiny_llama())).compare_reference(reference, 16)
    assert asked == [(32,) * rows]
    assert [len(p.reprefill_kl) for p in compared] == [12] * 8 + [0] * 8
    assert all(p.first_divergence is None for p in compared)


def test_the_first_rows_of_a_padded_batch_keep_their_padding():
    """As wide as the batch was, also where none of the chosen rows needs it."""
    batch = left_padded([[5], [6, 7, 8]], 0, torch.device("cpu"))
    one = first_rows(batch, 1)
    assert (one.ids.tolist(), one.mask.tolist(), one.lengths) == ([[0, 0, 5]], [[0, 0, 1]], (1,))
    assert first_rows(batch, 2) is batch


def _same_token_for_ever(model):
    """Break a model from its second decoded token on, behind a cache alone."""
    forward = model.forward

    @functools.wraps(forward)
    def broken(*args, **kwargs):
        out = forward(*args, **kwargs)
        if kwargs.get("past_key_values") is not None and kwargs["input_ids"].shape[1] == 1:
            out.logits[:, -1] = -1e9
            out.logits[:, -1, 17] = 0
        return out

    model.forward = broken
    return model


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"cache": "static"},
        {"cache": "static", "compile": "default"},
        {"batching": "continuous"},
    ],
    ids=str,
)
def test_decoding_that_is_broken_behind_a_cache_is_seen_in_the_logits(
    reference, fields, monkeypatch
):
    """Negative control: one pass without a cache is right, what each loop decodes is not."""
    monkeypatch.setattr(CompileOptions, "compile_step", lambda _self, step, _rewind: step)
    model = _same_token_for_ever(tiny_llama())
    if "batching" in fields:
        model = _paged_damage(tiny_llama())
    compared = TransformersModel(loaded(model, **fields)).compare_reference(reference, 5)
    assert sqnr_db(compared) < 20
    assert sum(map(sum, (p.top1 for p in compared))) < 16 * 12 / 2
    assert all(p.first_divergence in {1, 2} for p in compared)
    behind = [kl for p in compared[:5] for kl in p.reprefill_kl[2:]]
    assert min(behind) > 1e-3, "decode against re-prefill of the same model"


def _paged_damage(model):
    """Break a model wherever a sequence is decoded from pages: not in the step of its prompt."""
    forward = model.forward

    @functools.wraps(forward)
    def broken(*args, **kwargs):
        out = forward(*args, **kwargs)
        decoding = kwargs.get("cache") is not None and kwargs["input_ids"].numel() <= 5
        if decoding:
            out.logits[:] = -1e9
            out.logits[..., 17] = 0
        return out

    model.forward = broken
    return model


def test_a_candidate_in_bfloat16_is_near_and_not_equal(reference):
    compared = TransformersModel(
        loaded(tiny_llama().bfloat16(), weights_dtype="bfloat16")
    ).compare_reference(reference, 5)
    assert 20 < sqnr_db(compared) < 60
    assert 0 < mean_kl(compared) < 0.05


def test_another_vocabulary_is_refused(reference):
    model = tiny_llama()
    model.resize_token_embeddings(328, mean_resizing=False)
    with pytest.raises(UsageError, match=r"328 tokens, its reference one of 320"):
        TransformersModel(loaded(model)).compare_reference(reference, 5)


def test_a_file_that_is_no_reference_says_what_to_do(tmp_path):
    session = TransformersModel(loaded(tiny_llama()))
    torn, other = tmp_path / "torn.safetensors", tmp_path / "other.safetensors"
    torn.write_bytes(b"\x08\x00")
    save_file({"a": torch.ones(1)}, other)
    for path in (torn, other, tmp_path / "missing.safetensors"):
        with pytest.raises(WorkerError, match="Delete it; it is made again"):
            session.compare_reference(str(path), 2)


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full_disk(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pytest_llmperf.engines.outputs.reference.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        TransformersModel(loaded(tiny_llama())).make_reference(PROMPTS, 2, 8, str(tmp_path / "ref"))
    assert list(tmp_path.iterdir()) == []


def _logits(*rows):
    return torch.tensor(rows)


def test_scores_are_those_computed_by_hand():
    reference, candidate = _logits([0.0, math.log(3.0)]), _logits([0.0, 0.0])
    scored = score(reference, candidate, torch.tensor([1]), FLOAT32)
    assert scored.kl[0] == pytest.approx(0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5))
    assert scored.reference_logprob[0] == pytest.approx(math.log(0.75))
    assert scored.candidate_logprob[0] == pytest.approx(math.log(0.5))
    half = math.log(3.0) / 2
    assert (scored.signal, scored.noise) == pytest.approx((2 * half**2, 2 * half**2))
    assert scored.max_abs_logit_error == pytest.approx(math.log(3.0))


@given(st.lists(st.floats(-8, 8, width=32), min_size=6, max_size=6), st.floats(-3, 3))
def test_a_shift_of_all_logits_changes_nothing_but_the_largest_error(row, shift):
    reference = torch.tensor([row], dtype=torch.float64)
    scored = score(
        reference, reference + shift, reference.argmax(-1), (torch.float64, torch.float64)
    )
    assert scored.noise == pytest.approx(0.0, abs=1e-20)
    assert scored.kl[0] == pytest.approx(0.0, abs=1e-12)
    assert scored.top1 == (True,)


def test_a_tie_within_one_ulp_of_the_dtype_counts_as_the_same_top_and_two_do_not():
    bfloat16 = (torch.bfloat16, torch.bfloat16)
    step = 2.0**-3  # one ulp of bfloat16 between 16 and 32
    reference = _logits([20.0, 20.0 - step])
    assert same_top(reference, _logits([20.0 - step, 20.0]), bfloat16).tolist() == [True]
    assert same_top(reference, _logits([20.0 - step, 20.0]), FLOAT32).tolist() == [False]
    apart = _logits([20.0, 20.0 - 2 * step])
    assert same_top(apart, _logits([20.0 - 2 * step, 20.0]), bfloat16).tolist() == [False]


@given(st.floats(2**-100, 2**100, width=32))
def test_an_ulp_is_the_distance_to_the_next_value_of_the_dtype(value):
    exact = torch.tensor([value], dtype=torch.float32)
    following = torch.nextafter(exact, torch.tensor([math.inf]))
    assert float(ulp(exact, torch.float32)) == float(following.double() - exact.double())


def test_a_rank_counts_the_tokens_above():
    row = torch.tensor([1.0, 5.0, 3.0, 3.0])
    assert [rank_of(row, token) for token in range(4)] == [3, 0, 1, 1]
