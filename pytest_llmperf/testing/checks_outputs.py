"""Checks of what a model answers: its own reference, which it must match, and its next tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pytest_llmperf.core.agreement.comparison import PromptComparison
from pytest_llmperf.core.agreement.next_tokens import TopTokens
from pytest_llmperf.core.loaded import ModelFacts
from pytest_llmperf.engines.base import (
    ComparesReferences,
    LoadedModel,
    MakesReferences,
    PredictsTokens,
)
from pytest_llmperf.testing.bench import Bench, Findings
from pytest_llmperf.workloads import PromptSet

NEW_TOKENS = 4
TOP = 3
EXACT_LOGPROB = 1e-6


def exact_against_itself(model: LoadedModel, bench: Bench) -> Findings:
    """Yield where a model disagrees with the reference that it made itself."""
    if not isinstance(model, MakesReferences) or not isinstance(model, ComparesReferences):
        yield "make_reference() and compare_reference() are needed"
        return
    path = bench.directory / "reference"
    counts = model.make_reference(PromptSet.synthetic(0), NEW_TOKENS, 2, str(path))
    if not path.is_file():
        yield f"make_reference wrote no file at {path}"
        return
    rows = model.compare_reference(str(path), 2)
    yield from _exact_counts(counts, len(rows))
    for row in rows:
        yield from _exact_row(row)


def _exact_counts(counts: tuple[int, int], n_rows: int) -> Findings:
    if counts != (n_rows, n_rows * NEW_TOKENS) or not n_rows:
        yield (
            f"make_reference says (prompts, positions) = {counts}; "
            f"{n_rows} prompts of {NEW_TOKENS} tokens were compared"
        )


def _exact_row(row: PromptComparison) -> Findings:
    sequences = (row.top1, row.top5, row.kl, row.reference_logprob, row.candidate_logprob)
    lengths = set(map(len, sequences))
    if lengths != {NEW_TOKENS}:
        yield (
            f"prompt {row.index}: sequences of {sorted(lengths)} positions, "
            f"{NEW_TOKENS} expected in each"
        )
        return
    yield from _exact_tokens(row)
    yield from _exact_logits(row)


def _agrees_everywhere(row: PromptComparison) -> bool:
    return all(row.top1) and all(row.top5) and row.first_divergence is None


def _exact_tokens(row: PromptComparison) -> Findings:
    if not _agrees_everywhere(row):
        yield (
            f"prompt {row.index}: a model disagrees with itself: top1 {row.top1}, "
            f"first divergence {row.first_divergence}"
        )


def _exact_logits(row: PromptComparison) -> Findings:
    kl = max(map(abs, row.kl))
    logprob = _largest_difference(row.reference_logprob, row.candidate_logprob)
    if max(kl, logprob) > EXACT_LOGPROB or row.noise > EXACT_LOGPROB * row.signal:
        yield (
            f"prompt {row.index}: not exact: KL {max(row.kl):g}, "
            f"log-probability off by {logprob:g}, noise {row.noise:g}"
        )


def _largest_difference(values: Sequence[float], others: Sequence[float]) -> float:
    return max(abs(value - other) for value, other in zip(values, others, strict=True))


def next_tokens(model: LoadedModel, _bench: Bench) -> Findings:
    """Yield where token ids do not go in as they are, or the likeliest do not come out in order."""
    if not isinstance(model, PredictsTokens):
        yield "top_tokens() is needed"
        return
    prompt = _plain_ids(model.opened())[:3]
    top, repeated = model.top_tokens(prompt, TOP), model.top_tokens(prompt, TOP)
    yield from _of_prompt(top, prompt)
    if top != repeated:
        yield f"top_tokens: the same prompt gave {top}, then {repeated}"
    if model.top_tokens(prompt, 1).ids != top.ids[:1]:
        yield "top_tokens: the likeliest one is not the first of several"


def _of_prompt(top: TopTokens, prompt: tuple[int, ...]) -> Findings:
    if top.prompt_ids != prompt:
        yield (
            f"top_tokens: the prompt {prompt} went in as {top.prompt_ids}; "
            "token ids go in as they are"
        )
    if not _in_order(top):
        yield f"top_tokens: {TOP} different tokens, the likeliest first, are needed: {top}"


def _plain_ids(facts: ModelFacts) -> tuple[int, ...]:
    special_ids = set(facts.special_ids)
    return tuple(token for token in range(facts.vocab_size) if token not in special_ids)


def _in_order(top: TopTokens) -> bool:
    logits = [token.logit for token in top.tokens]
    finite = all(map(math.isfinite, logits))
    return finite and len(set(top.ids)) == TOP and logits == sorted(logits, reverse=True)
