"""The likeliest next tokens after one prompt.

Token ids go in; a text becomes ids here, once.
"""

from __future__ import annotations

import torch

from pytest_llmperf.core.agreement.comparison import TopToken
from pytest_llmperf.core.agreement.next_tokens import TopTokens
from pytest_llmperf.engines.outputs.bounds import context_length
from pytest_llmperf.engines.outputs.inputs import left_padded, tokenise
from pytest_llmperf.engines.outputs.scorer import Scorer
from pytest_llmperf.errors import InvalidRun, UsageError
from pytest_llmperf.workloads import PromptSet

_NOTHING_FORCED = torch.zeros((1, 1), dtype=torch.long)


def top_tokens(scorer: Scorer, prompt: str | tuple[int, ...], k: int) -> TopTokens:
    """Run one eager forward over the prompt, as in teacher-forced passes, and return its top k.

    Neither the decode loop nor its cache is asked.

    Raises:
        UsageError: no token, an id outside of the vocabulary, or more tokens than the model has
            positions for.
        InvalidRun: a logit is NaN.
    """
    ids = prompt_ids(scorer, prompt)
    row = _last_logits(scorer, ids)
    order = row.sort(descending=True, stable=True).indices[:k].tolist()
    tokens = tuple(TopToken(token, scorer.token_text(token), float(row[token])) for token in order)
    return TopTokens(prompt_ids=tuple(ids), tokens=tokens)


def _last_logits(scorer: Scorer, ids: list[int]) -> torch.Tensor:
    """Return the [vocab] logits after a prompt."""
    batch = left_padded([ids], scorer.vocabulary.pad, scorer.device)
    logits, _ = scorer.forced_logits(batch, _NOTHING_FORCED)
    row = logits[0, 0]
    if bool(row.isnan().any()):
        raise InvalidRun(
            f"logits are not finite after a prompt of {len(ids)} tokens, "
            f"which begins with {ids[:8]}."
        )
    return row


def prompt_ids(scorer: Scorer, prompt: str | tuple[int, ...]) -> list[int]:
    """Return the ids of a prompt, known to be ones that the model can take."""
    ids = _encode(scorer, prompt)
    config = scorer.model.config.get_text_config()
    size = int(config.vocab_size) if scorer.bounds is None else scorer.bounds.rows
    _require_known_ids(ids, size)
    longest = context_length(config)
    if not ids or (longest is not None and len(ids) > longest):
        subject = f"a text of {len(prompt)} characters" if isinstance(prompt, str) else "the prompt"
        raise UsageError(
            f"{subject} is {len(ids)} tokens long; this model takes 1 to {longest or 'any number'}."
        )
    return ids


def _encode(scorer: Scorer, prompt: str | tuple[int, ...]) -> list[int]:
    if isinstance(prompt, str):
        return tokenise(PromptSet(name="prompt", texts=(prompt,)), scorer.tokenizer)[0]
    return list(prompt)


def _require_known_ids(ids: list[int], size: int) -> None:
    unknown = next((token for token in ids if not 0 <= token < size), None)
    if unknown is not None:
        raise UsageError(f"token id {unknown} is not in the vocabulary: ids are 0 to {size - 1}.")
