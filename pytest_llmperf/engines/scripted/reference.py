"""A scripted model's outputs: deterministic tokens, a small real reference file, and the disagreement asked for."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path

import msgspec

from pytest_llmperf.core.agreement.comparison import PromptComparison, TopToken, WorstPosition
from pytest_llmperf.core.agreement.next_tokens import TopTokens
from pytest_llmperf.engines.scripted.options import ScriptedOptions
from pytest_llmperf.errors import LoadError, UsageError
from pytest_llmperf.workloads import PromptSet, TaskAnswer, TaskSet

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
    """Write the reference; returns prompts and positions. The file appears whole or not at all."""
    texts = prompts.texts or tuple(
        f"synthetic {prompts.seed} #{i}" for i in range(N_SYNTHETIC_PROMPTS)
    )
    rows = tuple(_prompt_reference(options, text, new_tokens) for text in texts)
    fresh = Path(f"{path}.{os.getpid()}.tmp")
    fresh.write_bytes(msgspec.json.encode(ReferenceFile(batch=batch, prompts=rows)))
    fresh.replace(path)
    return len(rows), len(rows) * new_tokens


def read_reference(path: str) -> ReferenceFile:
    """Read what `write_reference` wrote.

    Raises LoadError for a file that is missing or something else.
    """
    try:
        found = msgspec.json.decode(Path(path).read_bytes(), type=ReferenceFile)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LoadError(
            f"the reference {path!r} cannot be read: {error}. Remove it and it is made again."
        ) from error
    if found.format != FORMAT:
        raise LoadError(
            f"the reference {path!r} is {found.format!r}, not {FORMAT!r}. Remove it and it is made again."
        )
    return found


def compare(
    options: ScriptedOptions, reference: ReferenceFile, batch: int
) -> tuple[PromptComparison, ...]:
    """One row a prompt.

    Position j of all positions is wrong where the running count of wrong ones, j (1 - quality),
    steps up.
    """
    quality = options.quality
    if batch != reference.batch and options.batch_quality is not None:
        quality = options.batch_quality
    rows, start = [], 0
    for index, row in enumerate(reference.prompts):
        right = tuple(not _steps_up(start + i, 1 - quality) for i in range(len(row.tokens)))
        rows.append(_row(options, quality, index, row, right))
        start += len(row.tokens)
    return tuple(rows)


def answers(options: ScriptedOptions, tasks: TaskSet) -> tuple[TaskAnswer, ...]:
    """One answer an item.

    Item i is wrong where the running count of wrong ones, i (1 - quality), steps up.
    """
    right = [not _steps_up(i, 1 - options.quality) for i in range(len(tasks.items))]
    return tuple(
        TaskAnswer(
            text=item.answer if ok else next((c for c in item.choices if c != item.answer), ""),
            correct=ok,
        )
        for ok, item in zip(right, tasks.items, strict=True)
    )


def token(options: ScriptedOptions, text: str, position: int) -> int:
    """Greedy token of a prompt at a position: a hash of seed, text and position."""
    digest = hashlib.sha256(f"{options.seed}|{text}|{position}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % max(1, options.vocab)


def top_tokens(options: ScriptedOptions, prompt: str | tuple[int, ...], k: int) -> TopTokens:
    """Ids in a row from a hash of the prompt's.

    Half a vocabulary further where the prompt holds the id `astray`.
    """
    ids = tuple(ord(c) % options.vocab for c in prompt) if isinstance(prompt, str) else prompt
    strange = [i for i in ids if not 0 <= i < options.vocab]
    if not ids or strange:
        what = (
            f"token id {strange[0]} is not in the vocabulary: ids are 0 to {options.vocab - 1}"
            if ids
            else "no prompt token"
        )
        raise UsageError(f"{what}. Give at least one id.")
    first = token(options, str(ids), 0) + (options.vocab // 2 if options.astray in ids else 0)
    found = ((first + i) % options.vocab for i in range(min(k, options.vocab)))
    return TopTokens(
        prompt_ids=ids, tokens=tuple(TopToken(t, f"t{t}", 10.0 - i) for i, t in enumerate(found))
    )


def _prompt_reference(options: ScriptedOptions, text: str, new_tokens: int) -> PromptReference:
    tokens = tuple(token(options, text, i) for i in range(new_tokens))
    return PromptReference(
        prompt=text, tokens=tokens, logprobs=tuple(-0.1 - t / max(1, options.vocab) for t in tokens)
    )


def _steps_up(position: int, share: float) -> bool:
    tolerance = 1e-9  # so that ten times 0.1 is one
    return math.floor((position + 1) * share + tolerance) > math.floor(position * share + tolerance)


def _row(
    options: ScriptedOptions,
    quality: float,
    index: int,
    row: PromptReference,
    right: tuple[bool, ...],
) -> PromptComparison:
    kl = tuple(options.kl if options.kl is not None else (0.0 if ok else WRONG_KL) for ok in right)
    first = right.index(False) if False in right else None
    signal = SIGNAL_PER_POSITION * len(right)
    noise = (
        signal * (1 - quality) if options.sqnr_db is None else signal / 10 ** (options.sqnr_db / 10)
    )
    return PromptComparison(
        index=index,
        prompt=row.prompt,
        n_prompt_tokens=len(row.prompt.split()),
        top1=right,
        top5=tuple(ok or options.rank < _TOP5 for ok in right),
        kl=kl,
        reference_logprob=row.logprobs,
        candidate_logprob=_candidate_logprobs(options, row, right),
        signal=signal,
        noise=noise,
        max_abs_logit_error=math.sqrt(noise / signal) if signal else 0.0,
        candidate_signal=signal + noise,  # an error that has nothing to do with the signal
        n_free=len(right),
        first_divergence=first,
        candidate_rank_in_reference=None if first is None else options.rank,
        reference_rank_in_candidate=None if first is None else options.rank,
        reference_text=_text(row.tokens),
        candidate_text=_text(
            tuple(t if ok else t + 1 for t, ok in zip(row.tokens, right, strict=True))
        ),
        worst=_worst(row, kl, right),
    )


def _candidate_logprobs(
    options: ScriptedOptions, row: PromptReference, right: tuple[bool, ...]
) -> tuple[float, ...]:
    if options.perplexity is not None:
        return tuple(value - math.log(options.perplexity) for value in row.logprobs)
    return tuple(
        value if ok else value - 1.0 for value, ok in zip(row.logprobs, right, strict=True)
    )


def _text(tokens: tuple[int, ...]) -> str:
    return " ".join(f"t{t}" for t in tokens)


def _worst(
    row: PromptReference, kl: tuple[float, ...], right: tuple[bool, ...]
) -> WorstPosition | None:
    if not kl or max(kl) == 0:
        return None
    position = kl.index(max(kl))
    first = row.tokens[position]
    reference = tuple(TopToken(first + i, f"t{first + i}", 10.0 - i) for i in range(_TOP5))
    swapped = (reference[1], reference[0], *reference[2:])
    logits = (10.0 - i for i in range(_TOP5))
    candidate = tuple(
        TopToken(t.token_id, t.text, logit) for t, logit in zip(swapped, logits, strict=True)
    )
    return WorstPosition(
        position=position,
        reference_top5=reference,
        candidate_top5=reference if right[position] else candidate,
        kl=kl[position],
    )
