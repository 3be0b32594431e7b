"""Whether what was judged is what was timed: checks of the decode loop that no rule asks for. Pure.

Two of them, of which a comparison gives one or the other. Where the reference's tokens went through
the loop, its logits must be those of the same model without a cache. Where the loop takes no
tokens, the text that it decodes freely must go as far as the logits of a pass without a cache say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from pytest_llmperf.core.agreement.comparison import PromptComparison
from pytest_llmperf.core.plan import LoadPlan

DECODE_LIMITS_NATS = {"float32": 1e-6, "float16": 1e-4, "bfloat16": 8e-3}
"""KL of decoding from a re-prefill of the same model, by what it computes in.

Chosen here; undamaged loops of the built-in model have at most a quarter of each.
"""
FREE_SHARE = 0.7
"""Share of the tokens that a loop decodes as the pass without a cache says, at least.

Near ties flip between two shapes of the same product, and a text parts where one does.
"""
_EIGHT_BIT_CACHES = frozenset({"int8", "fp8"})
_ROUNDED_ACTIVATIONS = frozenset({"int8", "fp8", "w8a8"})


class DecodeLimit(NamedTuple):
    """How far a loop may differ from the same model without a cache, nats a token."""

    nats: float
    dtype: str


def decode_limit(plan: LoadPlan, dtype: str) -> DecodeLimit | None:
    """Return the limit of a model that computes in `dtype`.

    None where the two may rightly differ: an 8-bit cache holds other values than there were, and
    activations in 8 bits are rounded by what is in a batch. Such a loop is held by the rule alone.
    """
    method = (plan.quantization or "").partition(":")[0]
    if plan.cache in _EIGHT_BIT_CACHES or method in _ROUNDED_ACTIVATIONS:
        return None
    nats = DECODE_LIMITS_NATS.get(dtype)
    return None if nats is None else DecodeLimit(nats, dtype)


def broken_path(prompts: Sequence[PromptComparison], limit: DecodeLimit | None) -> tuple[str, ...]:
    """Say what is wrong with the loop; empty where nothing is, and where nothing is known of it."""
    reasons = (_not_as_without_cache(prompts, limit), _not_as_logits_say(prompts))
    return tuple(reason for reason in reasons if reason is not None)


def _not_as_without_cache(
    prompts: Sequence[PromptComparison], limit: DecodeLimit | None
) -> str | None:
    kls = [kl for row in prompts for kl in row.reprefill_kl]
    if limit is None or not kls:
        return None
    measured = math.fsum(kls) / len(kls)
    if measured <= limit.nats:
        return None
    return (
        f"decode against re-prefill of the same model: KL {measured:.3g} nats, "
        f"at most {limit.nats:g} in {limit.dtype}"
    )


def _not_as_logits_say(prompts: Sequence[PromptComparison]) -> str | None:
    unforced = [row for row in prompts if row.unforced]
    if not unforced:
        return None
    expected = fmean(_expected_share(row) for row in unforced)
    decoded = fmean(_decoded_share(row) for row in unforced)
    least = FREE_SHARE * expected
    if decoded >= least:
        return None
    return (
        f"free-running tokens: {decoded:.3g} of them agree before the first difference, "
        f"at least {least:.3g} by the logits without a cache"
    )


def _expected_share(row: PromptComparison) -> float:
    """Return the share of tokens before the first position whose argmax is another."""
    return row.top1.index(False) / len(row.top1) if False in row.top1 else 1.0


def _decoded_share(row: PromptComparison) -> float:
    return 1.0 if row.first_divergence is None else row.first_divergence / max(1, row.n_free)


def path_text(prompts: Sequence[PromptComparison]) -> str:
    """Say in one line what the logits went through."""
    first = prompts[0]
    if first.unforced:
        return f"not through the loop that is measured: {first.unforced}; it decoded freely"
    if first.path:
        return f"through the loop that is measured: {first.path}"
    return "how the engine decodes was not looked at"
