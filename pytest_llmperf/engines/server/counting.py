"""The token counts of a server held against what was asked for and against our own tokenizer.

Pure but for the tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pytest_llmperf.core.trace import Mark
from pytest_llmperf.engines.server.client import Outcome

TOLERANCE = 0.1
"""What two counts of one text may differ by: tokens that were cut elsewhere, and special ones that are not shown."""

MIN_TOKENS = 20

UNREADABLE = "\ufffd"
"""Stands for bytes that are no text: one token of theirs reads as several of this.

Such answers are not counted again.
"""


def count_marks(
    outcomes: Sequence[Outcome], count: Callable[[str], int | None], n_asked: int, *, fixed: bool
) -> list[Mark]:
    """Marks for counts that cannot be right.

    A server says more tokens than were asked for; or it says fewer than our tokenizer makes of all
    its text; or more, where the outputs end by themselves (with `fixed` lengths the rest may be
    special tokens, whose text is not sent).
    """
    answers = [o.answer for o in outcomes if o.answer is not None and o.answer.n_output is not None]
    most = max((a.n_output or 0 for a in answers), default=0)
    if most > n_asked:
        return [
            Mark(
                kind="token-counts",
                detail=f"the server counted {most} output tokens where {n_asked} were asked for",
            )
        ]
    readable = [a for a in answers if UNREADABLE not in a.text]
    said = sum(a.n_output or 0 for a in readable)
    own = sum(n for a in readable if (n := count(a.text)) is not None)
    if own < MIN_TOKENS:
        return []
    if said < own * (1 - TOLERANCE) or (not fixed and said > own * (1 + TOLERANCE)):
        detail = f"the server counted {said} output tokens, the model's tokenizer makes {own} of their text"
        return [Mark(kind="token-counts", detail=detail)]
    return []
