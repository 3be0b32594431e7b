"""Task sets answered by a model.

It answers with the likeliest choice, however it is tokenised and batched, or the greedy text.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.generating import VOCAB, loaded, tiny_llama
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pytest_llmperf.engines.transformers import TransformersModel
from pytest_llmperf.errors import UsageError
from pytest_llmperf.workloads import Task, TaskSet

SPECIAL = {"pad_token": "<pad>", "eos_token": "<end>", "unk_token": "<what>"}
WORDS = [*SPECIAL.values(), *(f"w{i}" for i in range(len(SPECIAL), VOCAB))]
PROMPTS = ("w5 w6 w7", "w8", "w9 w10 w11 w12 w13", "w14 w15")


def tokenizer():
    """One word, one token."""
    vocabulary = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, SPECIAL["unk_token"])
    )
    vocabulary.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=vocabulary, padding_side="left", **SPECIAL)


@pytest.fixture(scope="module")
def session():
    return TransformersModel(dataclasses.replace(loaded(tiny_llama()), tokenizer=tokenizer()))


def logprob(prompt: str, choice: str) -> float:
    """Summed log-probability of the choice's words, one forward pass for each."""
    model, total = tiny_llama(), 0.0
    ids = [WORDS.index(word) for word in prompt.split()]
    for word in choice.split():
        total += float(model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[WORDS.index(word)])
        ids.append(WORDS.index(word))
    return total


@pytest.mark.parametrize(
    "choices",
    [(" w20", " w21", " w22"), (" w20 w21", " w22", " w23 w24 w25")],
    ids=["single", "longer"],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_likeliest_choice_is_given(session, choices, batch):
    likeliest = [max(choices, key=lambda choice: logprob(prompt, choice)) for prompt in PROMPTS]
    wrong = [next(c for c in choices if c != best) for best in likeliest]
    items = tuple(
        Task(prompt=p, answer=a, choices=choices)
        for p, a in zip(PROMPTS, [*likeliest[:2], *wrong[2:]], strict=True)
    )
    answers = session.answer_tasks(TaskSet(name="t", items=items), batch)
    assert [answer.text for answer in answers] == likeliest
    assert [answer.correct for answer in answers] == [True, True, False, False]


def test_without_choices_the_first_line_of_the_greedy_text_counts(session):
    model, ids = tiny_llama(), [WORDS.index(word) for word in PROMPTS[0].split()]
    for _ in range(4):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    text = " ".join(WORDS[i] for i in ids[3:])
    items = (Task(prompt=PROMPTS[0], answer=f" {text} "), Task(prompt=PROMPTS[1], answer="w1"))
    answers = session.answer_tasks(TaskSet(name="t", items=items, max_new_tokens=4), 2)
    assert answers[0].text == text
    assert [answer.correct for answer in answers] == [True, False]


def test_choices_and_texts_mix_in_one_set(session):
    items = (
        Task(prompt="w5", answer="none"),
        Task(prompt="w6", answer=" w20", choices=(" w20", " w21")),
        Task(prompt="w7", answer="none"),
    )
    answers = session.answer_tasks(TaskSet(name="t", items=items, max_new_tokens=2), 8)
    assert answers[1].text in (" w20", " w21")
    assert all(len(answers[i].text.split()) == 2 for i in (0, 2))


def test_a_model_without_a_tokenizer_cannot_answer():
    bare = TransformersModel(loaded(tiny_llama()))
    with pytest.raises(UsageError, match="no tokenizer"):
        bare.answer_tasks(TaskSet(name="t", items=(Task(prompt="w5", answer="w6"),)), 1)
