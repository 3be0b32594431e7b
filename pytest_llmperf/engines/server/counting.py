"""What was asked for, held against what was served: lengths, counts and times of tokens.

Pure but for the tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from pytest_llmperf.core.trace import Mark, RequestTrace
from pytest_llmperf.engines.server.client import Call, RequestOutcome
from pytest_llmperf.engines.server.stream import Answer
from pytest_llmperf.errors import InvalidRun

TOLERANCE = 0.1
"""Share by which two counts of one text may differ.

Tokens may be cut elsewhere, and special ones are not shown.
"""

MIN_TOKENS = 20

VISIBLE_SHARE = 0.02
"""Share of the tokens that may have no text where all of them are said to be visible."""

TEXT_TOKENS = 8
"""How many tokens more or less a server may make of any text: special ones, other cuts."""

TEMPLATE_TOKENS = 512
"""How many tokens a chat template may have."""

UNREADABLE = "\ufffd"
"""Stands for bytes that are no text.

Several of it may come of one token, so such answers are not counted again.
"""

_LET_END = "If the end-of-sequence token may end an output, say Serve(ignore_eos=False)"


def count_marks(
    outcomes: Sequence[RequestOutcome],
    count: Callable[[str], int | None],
    *,
    fixed: bool,
) -> list[Mark]:
    """Return marks for counts that cannot be right, and for tokens that have no time.

    A server says more tokens than were asked for, or none where text came; or it says fewer than
    our tokenizer makes of all its text; or more, where the outputs end by themselves (with `fixed`
    lengths the rest may be special tokens, whose text is not sent). A server that counts nothing
    sends messages of several tokens each.
    """
    answered = _answered(outcomes)
    reason = (
        _uncounted(answered)
        or _excess(answered)
        or _disagreement(_counted(answered), count, fixed=fixed)
        or _uncounted_bundles(answered, count)
    )
    marks = [Mark(kind="token-counts", detail=reason)] if reason else []
    if any(answer.untimed == "first" for _, answer in answered):
        marks.append(Mark(kind="token-times", detail=_NO_FIRST))
    return marks


_NO_FIRST = (
    "the server does not say when the first token came: tokens have no text before the first that "
    "has one. Ask it for ids or for usage in each message (option 'add_fields')"
)


def require_lengths(outcomes: Sequence[RequestOutcome], *, fixed: bool) -> None:
    """Raise InvalidRun where an output is shorter or longer than was asked for.

    Without a `fixed` length an output may end by itself, but not for its length before it has it.
    """
    for call, answer in _answered(outcomes):
        reason = _wrong_length(call.n_output_tokens, answer, fixed=fixed)
        if reason:
            raise InvalidRun(reason)


def require_length_of_all(requests: Iterable[RequestTrace], n_asked: int) -> None:
    """Raise InvalidRun where a request has another number of output tokens than was asked for."""
    answered = [request for request in requests if request.failure is None and request.events]
    others = sorted({request.n_output_tokens for request in answered} - {n_asked})
    if others:
        lengths = ", ".join(map(str, others[:5]))
        raise InvalidRun(f"outputs of {lengths} tokens came, {n_asked} were asked for. {_LET_END}.")


def require_prompts(outcomes: Sequence[RequestOutcome], *, chat: bool) -> None:
    """Raise InvalidRun where the server counts other prompt tokens than it was sent.

    Ids are counted exactly. A text may be cut in another way, by a tenth or by a few tokens; a chat
    template adds its own.
    """
    for call, answer in _answered(outcomes):
        sent, counted = call.n_prompt_tokens or 0, answer.n_prompt
        if not sent or counted is None or _is_of(call, counted, chat=chat):
            continue
        how = "as token ids" if call.exact_prompt else "as text, by the model's tokenizer"
        raise InvalidRun(
            f"the server counted {counted} prompt tokens, {sent} were sent {how}: it cuts or "
            "changes prompts, it counts wrongly, or option 'tokenizer' names another model's."
        )


def _is_of(call: Call, counted: int, *, chat: bool) -> bool:
    sent = call.n_prompt_tokens or 0
    if call.exact_prompt:
        return counted == sent
    slack = max(TEXT_TOKENS, TOLERANCE * sent)
    most = 2 * sent + TEMPLATE_TOKENS if chat else sent + slack
    return sent - slack <= counted <= most


def _answered(outcomes: Sequence[RequestOutcome]) -> list[tuple[Call, Answer]]:
    """Return the answers of the requests that succeeded, each with its request."""
    return [
        (outcome.call, outcome.answer)
        for outcome in outcomes
        if outcome.answer is not None and outcome.failure is None
    ]


def _uncounted(answered: Sequence[tuple[Call, Answer]]) -> str:
    for _, answer in answered:
        if answer.n_output is not None and answer.n_output <= 0 and answer.text:
            return (
                f"the server counted {answer.n_output} output tokens in an answer of "
                f"{len(answer.events)} messages with text"
            )
    return ""


def _excess(answered: Sequence[tuple[Call, Answer]]) -> str:
    for call, answer in answered:
        if answer.n_output is not None and answer.n_output > call.n_output_tokens:
            return (
                f"the server counted {answer.n_output} output tokens where "
                f"{call.n_output_tokens} were asked for"
            )
    return ""


def _wrong_length(n_asked: int, answer: Answer, *, fixed: bool) -> str:
    n_tokens = sum(event.n_tokens for event in answer.events)
    if n_tokens == n_asked or _is_wrongly_counted(n_asked, answer):
        return ""
    unit = "messages with text, of tokens the server counts none" if _is_guess(answer) else "tokens"
    came = f"an output has {n_tokens} {unit}, {n_asked} were asked for"
    if n_tokens > n_asked:
        return f"{came}."
    ending = f" (finish reason: {answer.finish})" if answer.finish else ""
    if fixed:
        return f"{came}{ending}. {_LET_END}."
    if answer.finish == "length" and not _is_guess(answer):
        return f"{came}{ending}: the server has a limit of its own, perhaps its context."
    return ""


def _is_guess(answer: Answer) -> bool:
    return answer.counted == "messages"


def _is_wrongly_counted(n_asked: int, answer: Answer) -> bool:
    """Whether a total is none: that is a mark (`count_marks`)."""
    return answer.n_output is not None and (answer.n_output <= 0 or answer.n_output > n_asked)


def _disagreement(
    counted: Sequence[tuple[str, int]], count: Callable[[str], int | None], *, fixed: bool
) -> str:
    server_total, own_total = _totals(counted, count)
    if own_total < MIN_TOKENS or _agree(server_total, own_total, fixed=fixed):
        return ""
    return (
        f"the server counted {server_total} output tokens, "
        f"the model's tokenizer makes {own_total} of their text"
    )


def _uncounted_bundles(
    answered: Sequence[tuple[Call, Answer]], count: Callable[[str], int | None]
) -> str:
    """Say that messages were taken for tokens and hold several, by the model's tokenizer."""
    guesses = [answer for _, answer in answered if _is_guess(answer) and answer.n_output is None]
    own_total = sum(count(one.text) or 0 for one in guesses if UNREADABLE not in one.text)
    n_messages = sum(len(answer.events) for answer in guesses)
    if own_total < MIN_TOKENS or n_messages >= own_total * (1 - TOLERANCE):
        return ""
    return (
        f"the server counts no output tokens, and the model's tokenizer makes {own_total} of the "
        f"text of {n_messages} messages, which hold several each. Ask it for usage "
        "(option 'add_fields')"
    )


def _agree(server_total: int, own_total: int, *, fixed: bool) -> bool:
    if server_total < own_total * (1 - TOLERANCE):
        return False
    return fixed or server_total <= own_total * (1 + TOLERANCE)


def _counted(answered: Sequence[tuple[Call, Answer]]) -> list[tuple[str, int]]:
    """Return text and output tokens of each answer that the server counted."""
    return [(answer.text, answer.n_output) for _, answer in answered if answer.n_output is not None]


def _totals(
    counted: Sequence[tuple[str, int]], count: Callable[[str], int | None]
) -> tuple[int, int]:
    """Return the tokens of all readable texts as the server and as our tokenizer count them."""
    readable = [(text, n) for text, n in counted if UNREADABLE not in text]
    own_counts = [count(text) for text, _ in readable]
    return sum(n for _, n in readable), sum(n for n in own_counts if n is not None)


def with_visible_bundles(
    outcomes: Sequence[RequestOutcome], count: Callable[[str], int | None]
) -> None:
    """Say of answers in bundles that the first token is in the first message.

    Where our tokenizer makes as many tokens of the text as the server counted, no token was hidden
    before it: the mean time of a token is known, the gaps are not.
    """
    for outcome in outcomes:
        answer = outcome.answer
        if answer is not None and answer.untimed == "tokens" and _all_visible(answer, count):
            outcome.answer = replace(answer, untimed="gaps")


def _all_visible(answer: Answer, count: Callable[[str], int | None]) -> bool:
    own = count(answer.text)
    if own is None or answer.n_output is None or UNREADABLE in answer.text:
        return False
    return abs(own - answer.n_output) <= VISIBLE_SHARE * answer.n_output
