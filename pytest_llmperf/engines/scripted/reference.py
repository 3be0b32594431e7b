"""A scripted model's outputs: deterministic tokens, a small reference file, and a disagreement."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from pytest_llmperf.core.agreement.comparison import PromptComparison, TopToken, WorstPosition
from pytest_llmperf.core.agreement.next_tokens import TopTokens
from pytest_llmperf.engines.scripted.options import ScriptedOptions
from pytest_llmperf.errors import LoadError, UsageError
from pytest_llmperf.workloads import PromptSet, Task, TaskAnswer, TaskSet

FORMAT = "pytest-llmperf scripted reference 1"
SIGNAL_PER_POSITION = 100.0
WRONG_KL = 1.0
N_SYNTHETIC_PROMPTS = 8
_TOP5 = 5


class PromptReference(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt with its greedy continuation."""

    prompt: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


class ReferenceFile(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file, as JSON."""

    format: str = FORMAT
    batch: int
    prompts: tuple[PromptReference, ...]


def write_reference(
    options: ScriptedOptions, prompts: PromptSet, new_tokens: int, batch: int, path: str
) -> tuple[int, int]:
    """Write the reference, and return the numbers of prompts and positions.

    The file appears whole or not at all.
    """
    texts = prompts.texts or _synthetic_texts(prompts)
    rows = tuple(_prompt_reference(options, text, new_tokens) for text in texts)
    temporary = Path(f"{path}.{os.getpid()}.tmp")
    temporary.write_bytes(msgspec.json.encode(ReferenceFile(batch=batch, prompts=rows)))
    temporary.replace(path)
    return len(rows), len(rows) * new_tokens


def _synthetic_texts(prompts: PromptSet) -> tuple[str, ...]:
    return tuple(f"synthetic {prompts.seed} #{index}" for index in range(N_SYNTHETIC_PROMPTS))


def read_reference(path: str) -> ReferenceFile:
    """Read what `write_reference` wrote.

    Raises LoadError for a file that is missing or something else.
    """
    try:
        reference = msgspec.json.decode(Path(path).read_bytes(), type=ReferenceFile)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LoadError(
            f"the reference {path!r} cannot be read: {error}. Remove it and it is made again."
        ) from error
    if reference.format != FORMAT:
        raise LoadError(
            f"the reference {path!r} is {reference.format!r}, not {FORMAT!r}. "
            "Remove it and it is made again."
        )
    return reference


def compare(
    options: ScriptedOptions, reference: ReferenceFile, batch: int
) -> tuple[PromptComparison, ...]:
    """Return one row for each prompt.

    Position j of all positions is wrong where the running count of wrong ones, j (1 - quality),
    steps up.
    """
    quality = _quality(options, same_batch=batch == reference.batch)
    comparisons, first = [], 0
    for index, row in enumerate(reference.prompts):
        positions = range(first, first + len(row.tokens))
        right = tuple(not _steps_up(position, 1 - quality) for position in positions)
        comparisons.append(_comparison(options, quality, index, row, right))
        first += len(row.tokens)
    return tuple(comparisons)


def _quality(options: ScriptedOptions, *, same_batch: bool) -> float:
    if same_batch or options.batch_quality is None:
        return options.quality
    return options.batch_quality


def answers(options: ScriptedOptions, tasks: TaskSet) -> tuple[TaskAnswer, ...]:
    """Return one answer for each item.

    Item i is wrong where the running count of wrong ones, i (1 - quality), steps up.
    """
    wrong_share = 1 - options.quality
    return tuple(
        _answer(item, correct=not _steps_up(index, wrong_share))
        for index, item in enumerate(tasks.items)
    )


def _answer(item: Task, *, correct: bool) -> TaskAnswer:
    """Return the right answer, or the first of the other choices."""
    others = (choice for choice in item.choices if choice != item.answer)
    return TaskAnswer(text=item.answer if correct else next(others, ""), correct=correct)


def token(options: ScriptedOptions, text: str, position: int) -> int:
    """Return the greedy token of a prompt at a position: a hash of seed, text and position."""
    digest = hashlib.sha256(f"{options.seed}|{text}|{position}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % max(1, options.vocab)


def top_tokens(options: ScriptedOptions, prompt: str | tuple[int, ...], k: int) -> TopTokens:
    """Return ids in a row from a hash of the prompt's.

    They start half a vocabulary further where the prompt holds the id `astray`. A text has one id a
    character. Raises UsageError for a prompt without ids, and for ids that are not in the
    vocabulary.
    """
    ids = prompt
    if isinstance(ids, str):
        ids = tuple(ord(character) % options.vocab for character in ids)
    _require_in_vocabulary(ids, options.vocab)
    first = token(options, str(ids), 0)
    if options.astray in ids:
        first += options.vocab // 2
    tokens = [(first + index) % options.vocab for index in range(min(k, options.vocab))]
    return TopTokens(prompt_ids=ids, tokens=_falling(tokens))


def _require_in_vocabulary(ids: Sequence[int], vocab: int) -> None:
    if not ids:
        raise UsageError("no prompt token. Give at least one id.")
    for token_id in ids:
        if not 0 <= token_id < vocab:
            raise UsageError(
                f"token id {token_id} is not in the vocabulary: ids are 0 to {vocab - 1}. "
                "Give at least one id."
            )


def _falling(tokens: Sequence[int]) -> tuple[TopToken, ...]:
    """Return tokens with logits that fall from 10 by 1."""
    return tuple(
        TopToken(token_id, f"t{token_id}", 10.0 - index) for index, token_id in enumerate(tokens)
    )


def _prompt_reference(options: ScriptedOptions, text: str, new_tokens: int) -> PromptReference:
    tokens = tuple(token(options, text, position) for position in range(new_tokens))
    logprobs = tuple(-0.1 - token_id / max(1, options.vocab) for token_id in tokens)
    return PromptReference(prompt=text, tokens=tokens, logprobs=logprobs)


def _steps_up(position: int, share: float) -> bool:
    tolerance = 1e-9  # so that ten times 0.1 is one
    return math.floor((position + 1) * share + tolerance) > math.floor(position * share + tolerance)


def _comparison(
    options: ScriptedOptions,
    quality: float,
    index: int,
    row: PromptReference,
    right: tuple[bool, ...],
) -> PromptComparison:
    """Return the row of a prompt whose positions are `right` or wrong."""
    kl = tuple(_kl(options, correct=correct) for correct in right)
    signal = SIGNAL_PER_POSITION * len(right)
    noise = _noise(options, quality, signal)
    return PromptComparison(
        index=index,
        prompt=row.prompt,
        n_prompt_tokens=len(row.prompt.split()),
        top1=right,
        top5=tuple(correct or options.rank < _TOP5 for correct in right),
        kl=kl,
        reference_logprob=row.logprobs,
        candidate_logprob=_candidate_logprobs(options, row, right),
        signal=signal,
        noise=noise,
        max_abs_logit_error=math.sqrt(noise / signal) if signal else 0.0,
        candidate_signal=signal + noise,  # an error that has nothing to do with the signal
        reference_text=_text(row.tokens),
        candidate_text=_text(_candidate_tokens(row, right)),
        worst=_worst(row, kl, right),
        **_divergence(options, right),
    )


def _divergence(options: ScriptedOptions, right: tuple[bool, ...]) -> dict[str, Any]:
    """Return where the free-running tokens part: at the first position that is wrong."""
    diverges = False in right
    rank = options.rank if diverges else None
    return {
        "n_free": len(right),
        "first_divergence": right.index(False) if diverges else None,
        "candidate_rank_in_reference": rank,
        "reference_rank_in_candidate": rank,
    }


def _kl(options: ScriptedOptions, *, correct: bool) -> float:
    if options.kl is not None:
        return options.kl
    return 0.0 if correct else WRONG_KL


def _noise(options: ScriptedOptions, quality: float, signal: float) -> float:
    if options.sqnr_db is not None:
        return signal / 10 ** (options.sqnr_db / 10)
    return signal * (1 - quality)


def _candidate_logprobs(
    options: ScriptedOptions, row: PromptReference, right: tuple[bool, ...]
) -> tuple[float, ...]:
    if options.perplexity is not None:
        return tuple(logprob - math.log(options.perplexity) for logprob in row.logprobs)
    return tuple(
        logprob if correct else logprob - 1.0
        for logprob, correct in zip(row.logprobs, right, strict=True)
    )


def _candidate_tokens(row: PromptReference, right: tuple[bool, ...]) -> tuple[int, ...]:
    return tuple(
        token_id if correct else token_id + 1
        for token_id, correct in zip(row.tokens, right, strict=True)
    )


def _text(tokens: tuple[int, ...]) -> str:
    return " ".join(f"t{token_id}" for token_id in tokens)


def _worst(
    row: PromptReference, kl: tuple[float, ...], right: tuple[bool, ...]
) -> WorstPosition | None:
    """Return the position of the largest KL; where it is wrong, two tokens are swapped."""
    if not kl or max(kl) == 0:
        return None
    position = kl.index(max(kl))
    first = row.tokens[position]
    ids = [first + index for index in range(_TOP5)]
    swapped = [ids[1], ids[0], *ids[2:]]
    return WorstPosition(
        position=position,
        reference_top5=_falling(ids),
        candidate_top5=_falling(ids if right[position] else swapped),
        kl=kl[position],
    )
