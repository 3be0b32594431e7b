"""Token ids of a workload."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.generating import CPU, ROWS, tiny_llama

from pytest_llmperf.engines.outputs.inputs import (
    TokenBatch,
    Vocabulary,
    exact_length,
    left_padded,
    synthetic_rows,
    token_batch,
)
from pytest_llmperf.errors import UsageError
from pytest_llmperf.workloads import Decode, PromptSet

SMALL = Vocabulary(size=40, special=frozenset({0, 1, 39}), pad=0)


class Words:
    """A tokenizer of one id a word, the word's length."""

    def __call__(self, texts: list[str]) -> dict[str, list[list[int]]]:
        return {"input_ids": [[len(word) for word in text.split()] for text in texts]}


TEXTS = PromptSet(name="t", texts=("aa bb cc", "ddd", "eeee ffff", "ggggg hhhhh iiiii jjjjj"))


@given(st.integers(0, 2**31), st.integers(-3, 1000))
def test_synthetic_ids_depend_on_seed_and_repetition_alone_and_hold_no_special_token(
    seed, repetition
):
    rows = synthetic_rows(seed, repetition, 2, 16, SMALL)
    assert torch.equal(rows, synthetic_rows(seed, repetition, 2, 16, SMALL))
    assert not set(rows.flatten().tolist()) & SMALL.special
    assert not torch.equal(rows, synthetic_rows(seed, repetition + 1, 2, 16, SMALL))


def test_synthetic_ids_reach_the_whole_vocabulary():
    drawn = set(synthetic_rows(0, 0, 8, 400, SMALL).flatten().tolist())
    assert drawn == set(range(40)) - SMALL.special


def test_special_tokens_come_from_the_config_when_there_is_no_tokenizer():
    vocabulary = Vocabulary.of(tiny_llama(), None)
    assert vocabulary.special == {1, 2}
    assert vocabulary.size == 320


@given(
    st.lists(st.lists(st.integers(3, 38), min_size=1, max_size=9), min_size=1, max_size=6),
    st.integers(0, 20),
    st.integers(1, 60),
)
def test_an_exact_length_starts_with_the_text_and_goes_on_with_the_next(encoded, index, length):
    ids = exact_length(encoded, index, length)
    own = encoded[index % len(encoded)]
    assert len(ids) == length
    assert ids[: len(own)] == own[:length]
    following = encoded[(index + 1) % len(encoded)]
    assert ids[len(own) : len(own) + len(following)] == following[: max(0, length - len(own))]


@given(
    st.lists(st.lists(st.integers(3, 38), min_size=1, max_size=9), min_size=1, max_size=6),
    st.integers(0, 5),
)
def test_left_padding_keeps_every_row_at_the_right_end(rows, extra):
    width = max(map(len, rows)) + extra
    padded = left_padded(rows, 0, CPU, width)
    assert [
        ids[width - len(row) :] for ids, row in zip(padded.ids.tolist(), rows, strict=True)
    ] == rows
    assert padded.lengths == tuple(map(len, rows))
    if padded.mask is None:
        assert set(padded.lengths) == {width}
    else:
        assert padded.mask.sum(1).tolist() == list(padded.lengths)


@given(st.lists(st.integers(0, 1), min_size=2, max_size=8))
def test_a_mask_is_refused_exactly_when_padding_follows_a_token(mask):
    ids = torch.zeros(1, len(mask), dtype=torch.long)
    left = mask == sorted(mask) and mask[-1] == 1
    if left:
        TokenBatch(ids, torch.tensor([mask]), (sum(mask),))
    else:
        with pytest.raises(UsageError, match="left"):
            TokenBatch(ids, torch.tensor([mask]), (sum(mask),))


def test_texts_of_exact_length_rotate_with_the_repetition():
    work = Decode(batch=2, prompt_tokens=3, new_tokens=2, prompts=TEXTS)
    first = token_batch(work, 0, SMALL, Words(), CPU)
    assert first.ids.tolist() == [[2, 2, 2], [3, 4, 4]]
    assert first.mask is None
    second = token_batch(work, 1, SMALL, Words(), CPU)
    assert second.ids.tolist() == [[4, 4, 5], [5, 5, 5]]


def test_texts_with_their_own_lengths_are_padded_on_the_left():
    work = Decode(batch=2, prompt_tokens=None, new_tokens=2, prompts=TEXTS)
    given_ids = token_batch(work, 0, SMALL, Words(), CPU)
    assert given_ids.ids.tolist() == [[2, 2, 2], [0, 0, 3]]
    assert given_ids.mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_texts_without_a_tokenizer_say_what_to_use():
    with pytest.raises(UsageError, match=r"no tokenizer.*PromptSet\.synthetic"):
        token_batch(Decode(prompts=TEXTS, prompt_tokens=4), 0, SMALL, None, CPU)


def test_a_text_without_tokens_is_named():
    with pytest.raises(UsageError, match=r"prompts \[1\]"):
        token_batch(
            Decode(prompts=PromptSet(name="x", texts=("a", " ")), prompt_tokens=4),
            0,
            SMALL,
            Words(),
            CPU,
        )


def _greedy(model, ids, mask):
    width = ids.shape[1]
    return model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[
        :,
        width:,
    ]


def test_padding_on_the_right_would_have_changed_the_outputs_and_on_the_left_does_not():
    """The reason why right padding is refused, seen on the model itself."""
    model = tiny_llama()
    row = ROWS[1]
    alone = _greedy(model, torch.tensor([row]), torch.ones(1, 4, dtype=torch.long))
    left = _greedy(model, torch.tensor([[0, 0, 0, *row]]), torch.tensor([[0, 0, 0, 1, 1, 1, 1]]))
    right = _greedy(model, torch.tensor([[*row, 0, 0, 0]]), torch.tensor([[1, 1, 1, 1, 0, 0, 0]]))
    assert torch.equal(left, alone)
    assert not torch.equal(right, alone)
