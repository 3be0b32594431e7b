"""Answers of two servers to the same prompts: how far they agree, and when they cannot be one's."""

from __future__ import annotations

from pytest_llmperf.core.agreement.answers import SharedAnswers, shared_answers


def test_texts_are_compared_up_to_where_they_part():
    """Prompts are those of equal repetitions; what one side alone has is not compared."""
    ours = {4: ("the cat sat", "one"), 5: ("alone",)}
    theirs = {4: ("the dog sat", "one"), 6: ("other",)}
    shared = shared_answers(ours, theirs)
    assert (shared.prompts, shared.equal, shared.begin_alike) == (2, 1, 2)
    assert shared.prefix == (4 / 11 + 1) / 2
    assert str(shared).startswith("1 of 2 answers are the same text, 68% of their characters")


def test_pairs_of_blocks_add_up():
    """By prompts: a mean of shares is one of all prompts."""
    total = SharedAnswers() + SharedAnswers(prompts=1, equal=1, begin_alike=1, prefix=1.0)
    total += SharedAnswers(prompts=3, equal=0, begin_alike=2, prefix=0.2)
    assert (total.prompts, total.equal, total.begin_alike, total.prefix) == (4, 1, 3, 0.4)
    assert shared_answers({1: ("",)}, {1: ("",)}) == SharedAnswers()


def test_answers_that_never_begin_alike_are_of_another_model():
    """One that does, or too few of them, say nothing."""
    strangers = shared_answers({1: ("a b",) * 8}, {1: ("c b",) * 8})
    assert "none of 8 answers" in strangers.of_another_model
    assert not shared_answers({1: ("a b",) * 7}, {1: ("c b",) * 7}).of_another_model
    one = shared_answers({1: ("a b",) * 7 + ("c d",)}, {1: ("c b",) * 8})
    assert not one.of_another_model
