"""The likeliest next tokens after one prompt. Token ids go in; a text becomes ids here, once."""

from __future__ import annotations

import torch

from pytest_llmperf.core.agreement.comparison import TopToken
from pytest_llmperf.core.agreement.next_tokens import TopTokens
from pytest_llmperf.engines.outputs.inputs import left_padded, tokenise
from pytest_llmperf.engines.outputs.reference import Scorer
from pytest_llmperf.errors import InvalidRun, UsageError
from pytest_llmperf.workloads import PromptSet

_NOTHING_FORCED = torch.zeros((1, 1), dtype=torch.long)


def top_tokens(scorer: Scorer, prompt: str | tuple[int, ...], k: int) -> TopTokens:
    """One eager forward over the prompt, as in teacher-forced passes: neither the decode loop nor its cache is asked.

    Raises:
        UsageError: no token, an id outside of the vocabulary, or more tokens than the model has positions for.
        InvalidRun: a logit is NaN.

    """
    ids = prompt_ids(scorer, prompt)
    logits, _ = scorer.forced_logits(
        left_padded([ids], scorer.vocabulary.pad, scorer.device), _NOTHING_FORCED
    )
    row = logits[0, 0]
    if bool(row.isnan().any()):
        raise InvalidRun(
            f"logits are not finite after a prompt of {len(ids)} tokens, which begins with {ids[:8]}."
        )
    order = row.sort(descending=True, stable=True).indices[:k].tolist()
    tokens = tuple(TopToken(i, scorer.token_text(i), float(row[i])) for i in order)
    return TopTokens(prompt_ids=tuple(ids), tokens=tokens)


def prompt_ids(scorer: Scorer, prompt: str | tuple[int, ...]) -> list[int]:
    """The ids of a prompt, known to be ones that the model can take."""
    text = isinstance(prompt, str)
    ids = (
        tokenise(PromptSet(name="prompt", texts=(prompt,)), scorer.tokenizer)[0]
        if isinstance(prompt, str)
        else list(prompt)
    )
    config = scorer.model.config.get_text_config()
    size, longest = int(config.vocab_size), getattr(config, "max_position_embeddings", None)
    strange = next((i for i in ids if not 0 <= i < size), None)
    if strange is not None:
        raise UsageError(f"token id {strange} is not in the vocabulary: ids are 0 to {size - 1}.")
    if not ids or (longest is not None and len(ids) > longest):
        what = f"a text of {len(prompt)} characters" if text else "the prompt"
        raise UsageError(
            f"{what} is {len(ids)} tokens long; this model takes 1 to {longest or 'any number'}."
        )
    return ids
