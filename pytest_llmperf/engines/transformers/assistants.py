"""The model that proposes tokens to the measured one: its load plan and its vocabulary."""

from __future__ import annotations

from typing import Any

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.errors import LoadError

LOOKUP = "prompt-lookup"


def assistant_plan(plan: LoadPlan) -> LoadPlan | None:
    """Return the plan that loads the assistant of `plan`, plain, on its device and in its dtype.

    None where no model assists.
    """
    if plan.assist is None or plan.assist == LOOKUP:
        return None
    return LoadPlan(
        model=model_ref(plan.assist),
        strategy="auto",
        device=plan.device,
        weights_dtype=plan.weights_dtype,
        autocast_dtype=plan.autocast_dtype,
        attention=plan.attention,
        seed=plan.seed,
    )


def require_same_tokens(
    plan: LoadPlan, measured: tuple[Any, Any], assistant: tuple[Any, Any]
) -> None:
    """Raise LoadError unless two (model, tokenizer) pairs have one vocabulary.

    A token id that the assistant proposes must mean the same to the measured model.
    """
    size = _vocabulary_size(measured[0])
    assistant_size = _vocabulary_size(assistant[0])
    if size != assistant_size or not _same_vocabulary(measured[1], assistant[1]):
        raise LoadError(
            f"assistant {plan.assist!r} ({assistant_size} tokens) has another vocabulary than "
            f"{plan.model.name!r} ({size} tokens): what it proposes would mean something else. "
            "Take a smaller model of the same family, or 'prompt-lookup'.",
        )


def _vocabulary_size(model: Any) -> int:
    return int(model.config.get_text_config().vocab_size)


def _same_vocabulary(tokenizer: Any, assistants_tokenizer: Any) -> bool:
    """Compare two tokenizers; a model without one has nothing to compare."""
    if tokenizer is None or assistants_tokenizer is None:
        return True
    return bool(tokenizer.get_vocab() == assistants_tokenizer.get_vocab())
