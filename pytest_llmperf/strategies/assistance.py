"""Assisted (speculative) decoding: the measured model checks tokens that others propose.

A smaller model proposes them, or the text so far.
"""

from __future__ import annotations

from pytest_llmperf.core.effective import Effective, Promise
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.errors import UsageError
from pytest_llmperf.strategies.base import Part

LOOKUP = "prompt-lookup"


def assisted_by(part: str, source: str) -> Promise:
    """Promise that the last run asked `source` for proposals, as the run itself saw it.

    Known after warm-up.
    """
    return Promise(
        f"assisted by {source}",
        lambda effective: _other_source(effective, source),
        when="warm",
        part=part,
    )


def _other_source(effective: Effective, source: str) -> str | None:
    if effective.assistance == source:
        return None
    assistance = effective.assistance or "nothing"
    return f"the last run was assisted by {assistance}, asked for {source}"


def _assistant(argument: str) -> dict[str, object]:
    if not argument:
        raise UsageError(
            "strategy part 'assisted' needs a model that proposes tokens, "
            "for example 'assisted:smollm2-135m'."
        )
    return {"assist": argument}


def _assisted(plan: LoadPlan) -> tuple[Promise, ...]:
    return (assisted_by("assisted", plan.assist or ""),)


def _looked_up(plan: LoadPlan) -> tuple[Promise, ...]:
    return (assisted_by(LOOKUP, plan.assist or ""),)


ASSISTED = Part(
    name="assisted",
    kind="assistance",
    summary=(
        "a smaller model with the same tokens proposes some, "
        "and the model checks them in one forward pass"
    ),
    fields={},
    promises=_assisted,
    argument=_assistant,
    example="smollm2-135m",
)

PROMPT_LOOKUP = Part(
    name=LOOKUP,
    kind="assistance",
    summary=(
        "what followed the same tokens earlier in the text is proposed, "
        "and the model checks it in one forward pass"
    ),
    fields={"assist": LOOKUP},
    promises=_looked_up,
)
