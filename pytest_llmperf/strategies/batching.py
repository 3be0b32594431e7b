"""Continuous batching: requests join and leave the running batch at any step.

They do not wait for the longest of it.
"""

from __future__ import annotations

from pytest_llmperf.core.effective import Effective, Promise
from pytest_llmperf.strategies.base import Part

NAME = "continuous"


def batches_continuously(part: str) -> Promise:
    """Promise that the last run's requests were in one running batch, by the times of their tokens.

    Known after warm-up.
    """
    return Promise("batches are continuous", _other_batching, when="warm", part=part)


def _other_batching(effective: Effective) -> str | None:
    if effective.batching == NAME:
        return None
    batching = effective.batching or "not told"
    return f"the last run's batches were {batching}, asked for continuous ones"


CONTINUOUS = Part(
    name=NAME,
    kind="batching",
    summary=(
        "continuous batching: a request joins the running batch as soon as there is room "
        "and leaves it when it is done"
    ),
    fields={"batching": NAME},
    promises=lambda _plan: (batches_continuously(NAME),),
)
