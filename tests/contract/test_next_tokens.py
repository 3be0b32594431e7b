"""The likeliest next tokens of a prompt are those of a plain forward pass.

They come from ids, or from a text that is tokenised once.
"""

from __future__ import annotations

import pytest
import torch
from msgspec.structs import replace
from support.generating import loaded, tiny_llama

from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.engines.outputs.inputs import Vocabulary
from pytest_llmperf.engines.transformers import TransformersModel
from pytest_llmperf.errors import InvalidRun, UsageError
from pytest_llmperf.testing import for_any, token_ids

IDS = (11, 12, 13)


class Characters:
    """A tokenizer of one id a character, with a begin token in front, as real ones have."""

    padding_side, chat_template, all_special_ids = "left", None, [1]

    def __len__(self):
        return 300

    def __call__(self, texts, **_):
        return {"input_ids": [[1, *(ord(c) % 256 for c in text)] for text in texts]}

    def decode(self, ids):
        return "".join(map(chr, ids))


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.fixture
def session(model):
    return TransformersModel(loaded(model))


@for_any(ids=token_ids(320), max_examples=20)
def test_they_are_those_of_a_plain_forward_pass(model, session, ids):
    """For any ids: the same order and the same logits."""
    logits = model(torch.tensor([ids])).logits[0, -1]
    top = session.top_tokens(ids, 5)
    assert top.ids == tuple(logits.topk(5).indices.tolist())
    assert [token.logit for token in top.tokens] == pytest.approx(logits.topk(5).values.tolist())
    assert top.prompt_ids == ids


def test_a_text_is_tokenised_once_with_its_special_tokens(model):
    """The ids that come back give the same answer: the begin token is not put in front again."""
    session = TransformersModel(_with_tokenizer(model))
    top = session.top_tokens("ab", 2)
    assert top.prompt_ids == (1, 97, 98)
    assert session.top_tokens(top.prompt_ids, 2) == top
    assert top.first.text == chr(top.first.token_id)


def test_special_ids_are_the_tokenizers_and_the_rows_it_never_gives(model):
    """Rows of the embedding past the tokenizer's last id are no prompt."""
    session = TransformersModel(_with_tokenizer(model))
    assert session.opened().special_ids == (1, 2, *range(300, 320))
    assert Vocabulary(size=5, special=frozenset({-1, 3, 9}), pad=0).special_below(6) == (3, 5)


def test_more_than_the_vocabulary_is_the_vocabulary(session):
    """All of it, each once."""
    assert sorted(session.top_tokens(IDS, 1000).ids) == list(range(320))


def test_logits_that_are_nan_are_no_order(model):
    """A model that overflows has no likeliest token."""
    broken = tiny_llama()
    broken.lm_head.weight.data[5] = torch.nan
    with pytest.raises(
        InvalidRun, match=r"not finite after a prompt of 3 tokens, which begins with \[11, 12, 13\]"
    ):
        TransformersModel(loaded(broken)).top_tokens(IDS, 5)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ((320,), "token id 320 is not in the vocabulary: ids are 0 to 319"),
        ((), "the prompt is 0 tokens long; this model takes 1 to 256"),
        ((5,) * 257, "the prompt is 257 tokens long"),
        ("text", "this model has no tokenizer"),
    ],
)
def test_a_prompt_that_the_model_cannot_take_is_named(session, prompt, message):
    """With what it could take."""
    with pytest.raises(UsageError, match=message):
        session.top_tokens(prompt, 1)


def _with_tokenizer(model):
    plan = LoadPlan(model=ModelRef(name="tiny", kind="factory", location="tests:tiny"))
    found = loaded(model)
    return type(found)(**{**vars(found), "tokenizer": Characters(), "plan": replace(plan, seed=0)})
