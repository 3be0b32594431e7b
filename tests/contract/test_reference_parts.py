"""The parts of a prompt set: long prompts alone and cut to the context, chats in their template."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from msgspec import structs
from support.generating import loaded, tiny_llama

from pytest_llmperf.core.agreement.agreement import Agreement
from pytest_llmperf.core.agreement.rules import parse_rule
from pytest_llmperf.engines.outputs.bounds import Bounds
from pytest_llmperf.engines.outputs.inputs import left_padded, tokenise
from pytest_llmperf.engines.outputs.reference import LONG_NEW_TOKENS, Questions, batches
from pytest_llmperf.engines.outputs.rounding import Rounded, rounded
from pytest_llmperf.engines.transformers import TransformersModel
from pytest_llmperf.errors import UsageError
from pytest_llmperf.workloads import PromptSet

SET = PromptSet(
    name="s",
    texts=("abc", "defgh", "xyzab" * 20, "pqrst" * 60, "pqrst" * 40),
    parts=("chat", "code", "long", "long", "long"),
    chat=True,
)


class Letters:
    """A tokenizer of one id a letter, whose template puts a 7 in front."""

    chat_template = "yes"
    all_special_ids = (2,)
    eos_token_id = 2
    padding_side = "left"

    def __call__(self, texts, **_options):
        return {"input_ids": [[ord(letter) % 300 + 5 for letter in text] for text in texts]}

    def apply_chat_template(self, messages, **_options):
        return "\x02" + messages[0]["content"]

    def decode(self, ids):
        return " ".join(map(str, ids))

    def __len__(self):
        return 320


def scorer(positions: int):
    session = TransformersModel(dataclasses.replace(loaded(tiny_llama()), tokenizer=Letters()))
    return dataclasses.replace(session._scorer(), bounds=Bounds(positions, 320, "the model"))


def test_chats_alone_are_put_into_the_template():
    """A text of code goes on as it is."""
    rows = tokenise(SET, Letters())
    assert rows[0][0] == 7
    assert [len(row) for row in rows] == [4, 5, 100, 300, 200]


def test_a_long_prompt_is_cut_to_the_context_and_asked_once():
    """Two of three long texts are the same where the model has 150 positions."""
    questions = Questions.of(SET, scorer(150), 12)
    assert questions.counts == (12, 12, LONG_NEW_TOKENS, LONG_NEW_TOKENS)
    longest = 150 - LONG_NEW_TOKENS + 1
    assert [len(row) for row in questions.rows] == [4, 5, 100, longest]
    assert len(Questions.of(SET, scorer(1000), 12).rows) == 5


def test_another_prompt_that_is_too_long_is_refused():
    """Nobody said that the end of a chat may be left out."""
    with pytest.raises(UsageError, match="needs 16 positions"):
        Questions.of(SET, scorer(15), 12)


def test_a_long_prompt_is_a_batch_of_its_own():
    """It would pad all others to its width."""
    questions = Questions.of(SET, scorer(150), 12)
    shapes = [
        (tuple(batch.tokens.ids.shape), batch.indices, batch.repeated)
        for batch in batches(questions.rows, questions.parts, 3, scorer(150))
    ]
    assert shapes == [((3, 5), (0, 1), (0,)), ((1, 100), (2,), ()), ((1, 143), (3,), ())]


def _moved_from(position, model):
    """Break the positions of a model from one on."""
    rotary = model.model.rotary_emb
    forward = rotary.forward
    rotary.forward = lambda x, position_ids: forward(
        x, torch.where(position_ids >= position, position_ids + 100, position_ids)
    )
    return model


def test_figures_by_part_show_what_is_broken_in_long_texts_alone(tmp_path):
    """Negative control: positions from 64 on are moved, and short prompts agree."""
    path = str(tmp_path / "ref")
    whole = dataclasses.replace(loaded(tiny_llama()), tokenizer=Letters())
    assert TransformersModel(whole).make_reference(SET, 12, 2, path) == (5, 48)
    broken = dataclasses.replace(whole, model=_moved_from(64, tiny_llama()))
    seen = {}
    for name, model in (("whole", whole), ("broken", broken)):
        rows = TransformersModel(model).compare_reference(path, 2)
        seen[name] = Agreement(rows, rule=parse_rule("worst_kl(0.0001)"))
    assert seen["whole"].ok, seen["whole"].reasons
    assert seen["whole"].reach == 249 + LONG_NEW_TOKENS - 1
    parts = seen["broken"].parts
    assert max(float(parts[name].kl) for name in ("chat", "code")) < 1e-6
    assert float(parts["long"].kl) > 1e-4
    assert not seen["broken"].ok
    assert "(long)" in seen["broken"].reasons[0]


def test_masks_of_padding_stay_finite_when_they_are_rounded():
    """Attention that adds a mask of float32's least number gives a padded row no NaN."""
    model = loaded(tiny_llama())
    model.model.set_attn_implementation("eager")
    batch = left_padded([[5], [6, 7, 8, 9]], 0, torch.device("cpu"))
    with Rounded(), torch.no_grad():
        logits = model.model(input_ids=batch.ids, attention_mask=batch.mask).logits
    assert torch.isfinite(logits).all()
    least = torch.tensor(torch.finfo(torch.float32).min)
    assert rounded(least) == torch.finfo(torch.bfloat16).min
    assert least.to(torch.bfloat16).isinf(), "the control: plain rounding gives no number"


def test_the_noise_of_bf16_that_a_reference_measures_is_that_of_a_model_in_bf16(tmp_path):
    """It is rounding in fp32, and within a factor of 2.5 of the real thing."""
    path = str(tmp_path / "ref")
    prompts = PromptSet.synthetic(3)
    TransformersModel(loaded(tiny_llama())).make_reference(prompts, 12, 8, path)
    half = loaded(tiny_llama().bfloat16(), weights_dtype="bfloat16")
    rows = TransformersModel(half).compare_reference(path, 8)[:8]
    noise = sum(row.noise for row in rows) / sum(row.signal for row in rows)
    assert 0.4 < rows[0].rounding_noise / noise < 2.5
    agreement = Agreement(rows, rule=parse_rule("dtype_noise(4)"), dtype="bfloat16")
    assert agreement.ok, agreement.reasons
    doubled = [structs.replace(row, noise=10 * row.noise) for row in rows]
    assert not Agreement(doubled, rule=agreement.rule, dtype="bfloat16").ok
