"""Prompts as an engine compares them, without a model: alike, broken, or as a test says."""

from __future__ import annotations

from typing import Any

from pytest_llmperf.core.agreement.comparison import PromptComparison

N = 32
"""Positions of each prompt."""


def prompt(index=0, **changes) -> PromptComparison:
    """A prompt on which candidate and reference agree; `changes` replace fields."""
    values: dict[str, Any] = {
        "index": index,
        "prompt": f"prompt {index}",
        "n_prompt_tokens": 10,
        "top1": (True,) * N,
        "top5": (True,) * N,
        "kl": (0.0,) * N,
        "reference_logprob": (-1.0,) * N,
        "candidate_logprob": (-1.0,) * N,
        "signal": 1000.0,
        "noise": 0.0,
        "max_abs_logit_error": 0.0,
        "n_free": N,
        "first_divergence": None,
    }
    return PromptComparison(**{**values, **changes})


def alike(i: int) -> PromptComparison:
    """As fp16 is to fp32: 45 dB, and a near tie that flips late.

    The perplexity is a little better or worse.
    """
    flipped = (
        {"first_divergence": 20, "candidate_rank_in_reference": 1, "reference_rank_in_candidate": 1}
        if i % 4 == 0
        else {}
    )
    top1 = (True,) * 31 + (i % 4 != 0,)
    shift = -1.0 + 0.002 * (-1) ** i
    return prompt(
        i,
        top1=top1,
        kl=(1e-5,) * N,
        candidate_logprob=(shift,) * N,
        noise=1000 / 10**4.5,
        max_abs_logit_error=0.02,
        **flipped,
    )


def broken(i: int) -> PromptComparison:
    """As a model with 30 % of its weights zeroed.

    Another text at once, half the perplexity lost, 5 dB.
    """
    far = {
        "first_divergence": 1,
        "candidate_rank_in_reference": 40,
        "reference_rank_in_candidate": 900,
    }
    gone = (True,) + (False,) * (N - 1)
    return prompt(
        i,
        top1=gone,
        top5=gone,
        kl=(0.8,) * N,
        candidate_logprob=(-1.5,) * N,
        noise=1000 / 10**0.5,
        max_abs_logit_error=6.0,
        **far,
    )
