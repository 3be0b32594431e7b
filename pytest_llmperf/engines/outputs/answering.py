"""A task set answered by the loaded model: the likeliest of an item's choices, or its greedy text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_llmperf.engines.outputs.inputs import TokenBatch, left_padded, tokenise
from pytest_llmperf.engines.outputs.reference import Scorer
from pytest_llmperf.errors import UsageError
from pytest_llmperf.workloads import PromptSet, TaskAnswer, TaskSet


@dataclass(frozen=True)
class Row:
    """One forward pass of an item: its prompt, and the token ids of one choice.

    `choices` where each is a single token.
    """

    item: int
    prompt: list[int]
    choice: int
    ids: list[int]
    singles: tuple[int, ...] = ()


def answer_tasks(scorer: Scorer, tasks: TaskSet, batch: int) -> tuple[TaskAnswer, ...]:
    """One answer an item, in order. Raises UsageError for a model without a tokenizer."""
    texts = PromptSet(
        name=tasks.name, texts=tuple(item.prompt for item in tasks.items), chat=tasks.chat
    )
    prompts = tokenise(texts, scorer.tokenizer)
    chosen = _chosen(scorer, tasks, prompts, batch)
    written = _written(scorer, tasks, prompts, batch)
    given = [chosen.get(i) or written[i] for i in range(len(tasks.items))]
    return tuple(
        TaskAnswer(
            text=text,
            correct=text == item.answer.strip() if not item.choices else text == item.answer,
        )
        for text, item in zip(given, tasks.items, strict=True)
    )


def _chosen(scorer: Scorer, tasks: TaskSet, prompts: list[list[int]], batch: int) -> dict[int, str]:
    """Item -> the choice whose tokens have the largest summed log-probability.

    The first of equal ones.
    """
    scores: dict[int, dict[int, float]] = {}
    rows = [
        row for i, prompt in enumerate(prompts) for row in _rows(scorer.tokenizer, tasks, i, prompt)
    ]
    # So that a batch has one continuation length and little padding.
    rows.sort(key=lambda row: (len(row.ids), len(row.prompt)))
    for group in _groups(rows, batch):
        for row, logprobs in zip(group, _logprobs(scorer, group), strict=True):
            found = scores.setdefault(row.item, {})
            if row.singles:
                found.update(enumerate(logprobs[0, list(row.singles)].tolist()))
            else:
                found[row.choice] = float(logprobs[range(len(row.ids)), row.ids].sum())
    return {
        item: tasks.items[item].choices[max(found, key=lambda c: (found[c], -c))]
        for item, found in scores.items()
    }


def _rows(tokenizer: Any, tasks: TaskSet, item: int, prompt: list[int]) -> list[Row]:
    ids = [
        _continuation(tokenizer, tasks.items[item].prompt, choice, chat=tasks.chat)
        for choice in tasks.items[item].choices
    ]
    if ids and all(len(each) == 1 for each in ids):  # one pass tells the probabilities of all
        return [Row(item, prompt, 0, ids[0], tuple(each[0] for each in ids))]
    return [Row(item, prompt, choice, each) for choice, each in enumerate(ids)]


def _continuation(tokenizer: Any, prompt: str, choice: str, *, chat: bool) -> list[int]:
    """Ids of `choice` as it goes on from `prompt`.

    After a chat's prompt it starts a text of its own.
    """
    templated = chat and getattr(tokenizer, "chat_template", None)
    before = [] if templated else list(tokenizer(prompt)["input_ids"])
    text = choice if templated else prompt + choice
    ids = list(tokenizer(text, add_special_tokens=not templated)["input_ids"])[len(before) :]
    if not ids:
        raise UsageError(
            f"choice {choice!r} gives no tokens of its own after {prompt[-40:]!r}. Give choices that add text."
        )
    return ids


def _logprobs(scorer: Scorer, rows: list[Row]) -> Tensor:
    """[rows, n, vocab] log-probabilities at the places of the rows' n continuation tokens."""
    batch = left_padded([row.prompt for row in rows], scorer.vocabulary.pad, scorer.device)
    logits, _ = scorer.forced_logits(batch, torch.tensor([row.ids for row in rows]))
    return logits.log_softmax(-1)


def _written(
    scorer: Scorer, tasks: TaskSet, prompts: list[list[int]], batch: int
) -> dict[int, str]:
    """Item without choices -> the first line of its greedy continuation, without spaces around it."""
    items = sorted(
        (i for i, item in enumerate(tasks.items) if not item.choices), key=lambda i: len(prompts[i])
    )
    answers: dict[int, str] = {}
    for first in range(0, len(items), batch):
        chosen = items[first : first + batch]
        tokens: TokenBatch = left_padded(
            [prompts[i] for i in chosen], scorer.vocabulary.pad, scorer.device
        )
        free = scorer.free(tokens, tasks.max_new_tokens)
        answers |= {
            i: _first_line(scorer, row) for i, row in zip(chosen, free.tolist(), strict=True)
        }
    return answers


def _first_line(scorer: Scorer, ids: list[int]) -> str:
    end = next((i for i, token in enumerate(ids) if token in scorer.vocabulary.special), len(ids))
    return scorer.text(ids[:end]).strip().partition("\n")[0].strip()


def _groups(rows: list[Row], batch: int) -> Iterator[list[Row]]:
    """Up to `batch` neighbours with continuations of one length."""
    group: list[Row] = []
    for row in rows:
        if group and (len(group) == batch or len(row.ids) != len(group[0].ids)):
            yield group
            group = []
        group.append(row)
    if group:
        yield group
