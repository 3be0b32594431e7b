"""A task set answered by the loaded model.

An answer is the likeliest of an item's choices, or its greedy text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from pytest_llmperf.engines.outputs.inputs import left_padded, tokenise
from pytest_llmperf.engines.outputs.scorer import Scorer
from pytest_llmperf.errors import UsageError
from pytest_llmperf.workloads import PromptSet, Task, TaskAnswer, TaskSet


@dataclass(frozen=True)
class ScoredRow:
    """One forward pass of an item: its prompt, and the token ids of one choice.

    `singles` are the ids of all choices where each is a single token: one pass scores them all.
    """

    item: int
    prompt: list[int]
    choice: int
    ids: list[int]
    singles: tuple[int, ...] = ()

    def scores(self, logprobs: Tensor) -> dict[int, float]:
        """Return choice -> its log-probability, from the row's [n, vocab] log-probabilities."""
        if self.singles:
            return self._scores_of_singles(logprobs)
        return {self.choice: self._sum_over_ids(logprobs)}

    def _scores_of_singles(self, logprobs: Tensor) -> dict[int, float]:
        return dict(enumerate(logprobs[0, list(self.singles)].tolist()))

    def _sum_over_ids(self, logprobs: Tensor) -> float:
        return float(logprobs[range(len(self.ids)), self.ids].sum())


def answer_tasks(scorer: Scorer, tasks: TaskSet, batch: int) -> tuple[TaskAnswer, ...]:
    """Return one answer an item, in order. Raises UsageError for a model without a tokenizer."""
    prompts = tokenise(_prompt_set(tasks), scorer.tokenizer)
    choices = _likeliest_choices(scorer, tasks, prompts, batch)
    lines = _greedy_lines(scorer, tasks, prompts, batch)
    texts = [choices.get(i) or lines[i] for i in range(len(tasks.items))]
    return tuple(
        TaskAnswer(text=text, correct=_is_correct(text, item))
        for text, item in zip(texts, tasks.items, strict=True)
    )


def _prompt_set(tasks: TaskSet) -> PromptSet:
    texts = tuple(item.prompt for item in tasks.items)
    return PromptSet(name=tasks.name, texts=texts, chat=tasks.chat)


def _is_correct(text: str, item: Task) -> bool:
    return text == (item.answer if item.choices else item.answer.strip())


# Choices


def _likeliest_choices(
    scorer: Scorer, tasks: TaskSet, prompts: list[list[int]], batch: int
) -> dict[int, str]:
    """Return item -> the choice whose tokens have the largest summed log-probability.

    The first of equal ones.
    """
    scores: dict[int, dict[int, float]] = {}
    rows = _scored_rows(scorer.tokenizer, tasks, prompts)
    scorer.require_fits([row.prompt + row.ids[:-1] for row in rows], 1)
    for group in _groups(rows, batch):
        for row, logprobs in zip(group, _logprobs(scorer, group), strict=True):
            scores.setdefault(row.item, {}).update(row.scores(logprobs))
    return {
        item: tasks.items[item].choices[_first_largest(by_choice)]
        for item, by_choice in scores.items()
    }


def _first_largest(scores: dict[int, float]) -> int:
    return max(scores, key=lambda choice: (scores[choice], -choice))


def _scored_rows(tokenizer: Any, tasks: TaskSet, prompts: list[list[int]]) -> list[ScoredRow]:
    """Return the rows of all items, so sorted that a batch has one length and little padding."""
    rows = [row for i, ids in enumerate(prompts) for row in _rows_of(tokenizer, tasks, i, ids)]
    return sorted(rows, key=lambda row: (len(row.ids), len(row.prompt)))


def _rows_of(tokenizer: Any, tasks: TaskSet, item: int, prompt: list[int]) -> list[ScoredRow]:
    continuations = _continuations(tokenizer, tasks.items[item], chat=tasks.chat)
    if continuations and all(len(ids) == 1 for ids in continuations):
        singles = tuple(ids[0] for ids in continuations)
        return [ScoredRow(item, prompt, 0, continuations[0], singles)]
    return [ScoredRow(item, prompt, choice, ids) for choice, ids in enumerate(continuations)]


def _continuations(tokenizer: Any, task: Task, *, chat: bool) -> list[list[int]]:
    return [_continuation(tokenizer, task.prompt, choice, chat=chat) for choice in task.choices]


def _continuation(tokenizer: Any, prompt: str, choice: str, *, chat: bool) -> list[int]:
    """Return the ids of `choice` as it goes on from `prompt`.

    After a chat's prompt it starts a text of its own.
    """
    if chat and getattr(tokenizer, "chat_template", None):
        ids = list(tokenizer(choice, add_special_tokens=False)["input_ids"])
    else:
        n_prompt = len(tokenizer(prompt)["input_ids"])
        ids = list(tokenizer(prompt + choice, add_special_tokens=True)["input_ids"])[n_prompt:]
    if not ids:
        raise UsageError(
            f"choice {choice!r} gives no tokens of its own after {prompt[-40:]!r}. "
            "Give choices that add text."
        )
    return ids


def _logprobs(scorer: Scorer, rows: list[ScoredRow]) -> Tensor:
    """Return [rows, n, vocab] log-probabilities at the places of the rows' n continuation ids."""
    batch = left_padded([row.prompt for row in rows], scorer.vocabulary.pad, scorer.device)
    logits, _ = scorer.forced_logits(batch, torch.tensor([row.ids for row in rows]))
    return logits.log_softmax(-1)


def _groups(rows: list[ScoredRow], batch: int) -> Iterator[list[ScoredRow]]:
    """Yield up to `batch` neighbours with continuations of one length."""
    group: list[ScoredRow] = []
    for row in rows:
        if group and (len(group) == batch or len(row.ids) != len(group[0].ids)):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


# Texts


def _greedy_lines(
    scorer: Scorer, tasks: TaskSet, prompts: list[list[int]], batch: int
) -> dict[int, str]:
    """Return item without choices -> the first line of its greedy continuation.

    Spaces around the line are cut off.
    """
    items = [i for i, item in enumerate(tasks.items) if not item.choices]
    items.sort(key=lambda i: len(prompts[i]))
    scorer.require_fits([prompts[i] for i in items], tasks.max_new_tokens)
    lines: dict[int, str] = {}
    for first in range(0, len(items), batch):
        chosen = items[first : first + batch]
        texts = _lines_of_batch(scorer, [prompts[i] for i in chosen], tasks.max_new_tokens)
        lines |= zip(chosen, texts, strict=True)
    return lines


def _lines_of_batch(scorer: Scorer, prompts: list[list[int]], new_tokens: int) -> list[str]:
    batch = left_padded(prompts, scorer.vocabulary.pad, scorer.device)
    rows = scorer.free(batch, new_tokens).tolist()
    return [_first_line(scorer, ids) for ids in rows]


def _first_line(scorer: Scorer, ids: list[int]) -> str:
    text = scorer.text(_before_special(ids, scorer.vocabulary.special))
    return text.strip().partition("\n")[0].strip()


def _before_special(ids: list[int], special: frozenset[int]) -> list[int]:
    """Return the ids in front of the first special one."""
    return list(takewhile(lambda token: token not in special, ids))
