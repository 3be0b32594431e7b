"""Which messages of an answer are tokens, how many each holds, and what of that is not known. Pure.

A message is a token by any sign: token ids, usage that grows, a text, or a choice without text
where the total says that there are more tokens than messages with text (special tokens, halves of
characters). Text is decoration. What no sign tells is not spread over the answer but named
(`RequestTrace.untimed`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pytest_llmperf.core.trace import TokenEvent, Untimed
from pytest_llmperf.engines.server.messages.piece import Piece

HIDDEN_SHARE = 0.02
"""Share of the tokens that may have no message of their own before TPOT is not known."""

Timed = tuple[int, Piece]
"""A message and when it came (ns)."""


@dataclass(frozen=True, kw_only=True)
class TokenTimes:
    """The tokens of one answer.

    `counted` says by which sign: "ids", "usage", "total" (one a message, as many as the server
    counted), "spread" (a total that is not the number of messages) or "messages" (no total).
    `t_last_ns` is when the message came that bounds the output; 0 where that is the last event.
    """

    events: tuple[TokenEvent, ...]
    counted: str
    untimed: Untimed = ""
    t_last_ns: int = 0


def token_times(timed: Sequence[Timed], n_output: int | None) -> TokenTimes:
    """Return the tokens of an answer of which the server counted `n_output` (None: it did not)."""
    return (
        _by_ids(timed, n_output)
        or _by_usage(timed)
        or _by_total(timed, n_output)
        or _not_counted(timed, n_output)
    )


def spread(total: int, weights: Sequence[int]) -> list[int]:
    """Return `total` tokens over messages: one each, the rest in proportion to the weights.

    Remainders go to the largest first. With fewer tokens than messages, a token ended in as many
    messages, evenly spread and the last among them; the others are 0.
    """
    n = len(weights)
    if total <= n:
        return _differences([i * total // n for i in range(n + 1)]) if n else []
    return [1 + extra for extra in _in_proportion(total - n, weights)]


def _by_ids(timed: Sequence[Timed], n_output: int | None) -> TokenTimes | None:
    """Count the token ids of the messages; None where a text came without, or some are missing."""
    if any(piece.text and piece.n_tokens is None for _, piece in timed):
        return None
    counts = [piece.n_tokens or 0 for _, piece in timed]
    if not any(counts) or (n_output is not None and n_output != sum(counts)):
        return None
    return TokenTimes(events=_events([t_ns for t_ns, _ in timed], counts), counted="ids")


def _by_usage(timed: Sequence[Timed]) -> TokenTimes | None:
    """Count by the usage so far that the messages carry.

    None where a message with text does not carry it, or none grows it; the total that comes once at
    the end is no usage so far.
    """
    running = [(t_ns, piece) for t_ns, piece in timed if piece.n_output is not None]
    counts = _differences([0, *(piece.n_output or 0 for _, piece in running)])
    grown = [(n, piece) for n, (_, piece) in zip(counts, running, strict=True)]
    n_steps = sum(n > 0 and _has_choice(piece) for n, piece in grown)
    lacks_usage = any(piece.text and piece.n_output is None for _, piece in timed)
    stands_still = any(n < 0 or (n == 0 and bool(piece.text)) for n, piece in grown)
    if n_steps <= 1 or lacks_usage or stands_still:
        return None
    return TokenTimes(events=_events([t_ns for t_ns, _ in running], counts), counted="usage")


def _has_choice(piece: Piece) -> bool:
    return bool(piece.text) or piece.empty != "none"


_KINDS: tuple[Callable[[Piece], bool], ...] = (
    lambda piece: bool(piece.text),
    lambda piece: piece.empty == "empty" and not piece.finish,
    lambda piece: piece.empty == "empty" and bool(piece.finish),
    lambda piece: piece.empty == "end",
)
"""Kinds of messages that may be tokens, from the surest on."""


def _by_total(timed: Sequence[Timed], n_output: int | None) -> TokenTimes | None:
    """Take one token a message, of as many kinds as make the server's total; None where none do."""
    for n_kinds in range(1, len(_KINDS) + 1):
        kinds = _KINDS[:n_kinds]
        times_ns = [t_ns for t_ns, piece in timed if any(kind(piece) for kind in kinds)]
        if times_ns and len(times_ns) == n_output:
            return TokenTimes(events=_events(times_ns, [1] * len(times_ns)), counted="total")
    return None


def _not_counted(timed: Sequence[Timed], n_output: int | None) -> TokenTimes:
    """Take the messages with text, or all choices without a role where none has text.

    The time of the message that says why the answer ended bounds the output.
    """
    shown = [(t_ns, piece) for t_ns, piece in timed if piece.text]
    carriers = shown or [(t_ns, piece) for t_ns, piece in timed if piece.empty == "empty"]
    if n_output is None:
        carriers = shown
    weights = [len(piece.text) for _, piece in carriers]
    counts = [1] * len(carriers) if n_output is None else spread(n_output, weights)
    return TokenTimes(
        events=_events([t_ns for t_ns, _ in carriers], counts),
        counted="messages" if n_output is None else "spread",
        untimed=_untimed(timed, n_output, len(shown)),
        t_last_ns=_bound_ns(timed),
    )


def _untimed(timed: Sequence[Timed], n_output: int | None, n_shown: int) -> Untimed:
    """Say what is not known of the tokens' times, from the total and the messages without text."""
    first_empty = _index(timed, lambda piece: piece.empty == "empty" and not piece.finish)
    first_shown = _index(timed, lambda piece: bool(piece.text))
    if n_output is None:
        return "tokens" if first_empty < len(timed) else ""
    if first_empty < first_shown and (n_shown or n_output < len(timed)):
        return "first"
    n_hidden = n_output - n_shown
    if 0 <= n_hidden <= HIDDEN_SHARE * (n_output - 1):
        return "gaps"
    return "gaps" if n_hidden < 0 else "tokens"


def _index(timed: Sequence[Timed], is_meant: Callable[[Piece], bool]) -> int:
    """Return the index of the first message of a kind; how many there are for none."""
    return next((i for i, (_, piece) in enumerate(timed) if is_meant(piece)), len(timed))


def _bound_ns(timed: Sequence[Timed]) -> int:
    """Return when the first message came that says that the answer ended, else the last choice."""
    ends_ns = [t_ns for t_ns, piece in timed if piece.finish]
    choices_ns = [t_ns for t_ns, piece in timed if _has_choice(piece)]
    return ends_ns[0] if ends_ns else max(choices_ns, default=0)


def _events(times_ns: Sequence[int], counts: Sequence[int]) -> tuple[TokenEvent, ...]:
    """Return the events of the messages that hold a token."""
    return tuple(TokenEvent(t, n) for t, n in zip(times_ns, counts, strict=True) if n)


def _in_proportion(total: int, weights: Sequence[int]) -> list[int]:
    """Return whole shares of `total` by the largest remainders; equal weights where all are 0."""
    if not any(weights):
        weights = [1] * len(weights)
    scale = sum(weights)
    shares = [total * weight / scale for weight in weights]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _differences(values: Sequence[int]) -> list[int]:
    return [after - before for before, after in pairwise(values)]
