"""The model that proposes tokens to the measured one: how it is loaded, and whether both mean the same by a token."""

from __future__ import annotations

from typing import Any

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.errors import LoadError

LOOKUP = "prompt-lookup"


def assistant_plan(plan: LoadPlan) -> LoadPlan | None:
    """What loads the assistant of `plan`: on its device, in its dtype, plain.

    None where no model assists.
    """
    if plan.assist is None or plan.assist == LOOKUP:
        return None
    kept = {
        name: getattr(plan, name)
        for name in ("device", "weights_dtype", "autocast_dtype", "attention", "seed")
    }
    return LoadPlan(model=model_ref(plan.assist), strategy="auto", **kept)


def require_same_tokens(plan: LoadPlan, ours: tuple[Any, Any], theirs: tuple[Any, Any]) -> None:
    """Raise LoadError unless two (model, tokenizer) have one vocabulary: an id proposed must mean the same to both."""
    sizes = [int(model.config.get_text_config().vocab_size) for model, _ in (ours, theirs)]
    vocabularies = [
        tokenizer.get_vocab() for _, tokenizer in (ours, theirs) if tokenizer is not None
    ]
    if sizes[0] != sizes[1] or any(vocabulary != vocabularies[0] for vocabulary in vocabularies):
        raise LoadError(
            f"assistant {plan.assist!r} ({sizes[1]} tokens) has another vocabulary than {plan.model.name!r} ({sizes[0]} tokens): "
            "what it proposes would mean something else. Take a smaller model of the same family, or 'prompt-lookup'.",
        )
