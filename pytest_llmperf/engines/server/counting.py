"""The token counts of a server, checked against what was asked for and our own tokenizer.

Pure but for the tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pytest_llmperf.core.trace import Mark
from pytest_llmperf.engines.server.client import RequestOutcome

TOLERANCE = 0.1
"""Share by which two counts of one text may differ.

Tokens may be cut elsewhere, and special ones are not shown.
"""

MIN_TOKENS = 20

UNREADABLE = "\ufffd"
"""Stands for bytes that are no text.

Several of it may come of one token, so such answers are not counted again.
"""


def count_marks(
    outcomes: Sequence[RequestOutcome],
    count: Callable[[str], int | None],
    n_asked: int,
    *,
    fixed: bool,
) -> list[Mark]:
    """Return marks for counts that cannot be right.

    A server says more tokens than were asked for; or it says fewer than our tokenizer makes of all
    its text; or more, where the outputs end by themselves (with `fixed` lengths the rest may be
    special tokens, whose text is not sent).
    """
    counted = _counted_answers(outcomes)
    most = max((n for _, n in counted), default=0)
    if most > n_asked:
        return _mark(f"the server counted {most} output tokens where {n_asked} were asked for")
    server_total, own_total = _totals(counted, count)
    if own_total < MIN_TOKENS or _agree(server_total, own_total, fixed=fixed):
        return []
    return _mark(
        f"the server counted {server_total} output tokens, "
        f"the model's tokenizer makes {own_total} of their text"
    )


def _agree(server_total: int, own_total: int, *, fixed: bool) -> bool:
    if server_total < own_total * (1 - TOLERANCE):
        return False
    return fixed or server_total <= own_total * (1 + TOLERANCE)


def _counted_answers(outcomes: Sequence[RequestOutcome]) -> list[tuple[str, int]]:
    """Return text and output tokens of each answer that the server counted."""
    answers = [outcome.answer for outcome in outcomes if outcome.answer is not None]
    return [(answer.text, answer.n_output) for answer in answers if answer.n_output is not None]


def _totals(
    counted: Sequence[tuple[str, int]], count: Callable[[str], int | None]
) -> tuple[int, int]:
    """Return the tokens of all readable texts as the server and as our tokenizer count them."""
    readable = [(text, n) for text, n in counted if UNREADABLE not in text]
    own_counts = [count(text) for text, _ in readable]
    return sum(n for _, n in readable), sum(n for n in own_counts if n is not None)


def _mark(detail: str) -> list[Mark]:
    return [Mark(kind="token-counts", detail=detail)]
