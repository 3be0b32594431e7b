"""The prompts of an agreement that disagree most, in words and as plain values of a record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pytest_llmperf.core.format import format_value

if TYPE_CHECKING:
    from pytest_llmperf.core.agreement.comparison import PromptComparison, TopToken, WorstPosition

_KEPT_CHARACTERS = 600


def worst_summary(row: PromptComparison) -> dict[str, Any]:
    """What a report needs to show the prompt: its texts, each position of the continuation, both top-5 at the worst one."""
    worst = row.worst
    return {
        "prompt": row.index,
        "position": worst.position if worst else None,
        "kl": worst.kl if worst else None,
        "first_divergence": row.first_divergence,
        "text": _clipped(row.prompt),
        "reference_text": _clipped(row.reference_text),
        "candidate_text": _clipped(row.candidate_text),
        "top1": "".join("1" if same else "0" for same in row.top1),
        "kls": [float(f"{kl:.3g}") for kl in row.kl],
        "reference_top5": [[token.text, token.logit] for token in worst.reference_top5]
        if worst
        else [],
        "candidate_top5": [[token.text, token.logit] for token in worst.candidate_top5]
        if worst
        else [],
    }


def _clipped(text: str) -> str:
    """The start and the end of a long text: records stay small whatever a prompt holds."""
    return (
        text
        if len(text) <= _KEPT_CHARACTERS
        else f"{text[: _KEPT_CHARACTERS // 2]} … {text[-_KEPT_CHARACTERS // 2 :]}"
    )


def worst_text(row: PromptComparison) -> str:
    """Where its texts part, and both top fives at the worst position."""
    divergence = (
        "equal texts"
        if row.first_divergence is None
        else f"texts differ from token {row.first_divergence} of {row.n_free}"
    )
    lines = [f"  prompt {row.index} {_short(row.prompt)!r}: {divergence}"]
    if row.worst is not None:
        lines += [
            f"    position {row.worst.position}: KL {format_value(row.worst.kl, 'nats')}{_gap(row.worst)}"
        ]
        lines += [f"      {side:<9} {_tokens(top)}" for side, top in _sides(row.worst)]
    return "\n".join(lines)


def _sides(worst: WorstPosition) -> tuple[tuple[str, tuple[TopToken, ...]], ...]:
    return ("reference", worst.reference_top5), ("candidate", worst.candidate_top5)


def _gap(worst: WorstPosition) -> str:
    """Both tokens, and how far the candidate puts its own token above the reference's."""
    if not worst.reference_top5 or not worst.candidate_top5:
        return ""
    ours, theirs = worst.candidate_top5[0], worst.reference_top5[0]
    if ours.token_id == theirs.token_id:
        return f", both choose {ours.text!r}"
    logit = next(
        (token.logit for token in worst.candidate_top5 if token.token_id == theirs.token_id), None
    )
    gap = (
        "the reference's is not in its top 5"
        if logit is None
        else f"logit gap {ours.logit - logit:.3g}"
    )
    return f", reference {theirs.text!r}, candidate {ours.text!r}, {gap}"


def _tokens(top: Sequence[TopToken]) -> str:
    return "  ".join(f"{token.text!r} {token.logit:.2f}" for token in top)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."  # noqa: PLR2004 - a line of a terminal
