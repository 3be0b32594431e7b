"""The prompts of an agreement that disagree most, in words and as plain values of a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pytest_llmperf.core.format import format_value
from pytest_llmperf.core.verdicts.estimate import Estimate, NotMeasurable

if TYPE_CHECKING:
    from pytest_llmperf.core.agreement.comparison import PromptComparison, TopToken, WorstPosition

_END_CHARACTERS = 300
_MAX_CHARACTERS = 2 * _END_CHARACTERS


def worst_summary(row: PromptComparison) -> dict[str, Any]:
    """Return what a report needs to show the prompt, as plain values.

    That is its texts, each position of the continuation, and both top-5 at the worst one.
    """
    return {
        "prompt": row.index,
        **_worst_position(row.worst),
        "first_divergence": row.first_divergence,
        "text": _clipped(row.prompt),
        "reference_text": _clipped(row.reference_text),
        "candidate_text": _clipped(row.candidate_text),
        "top1": "".join("1" if same else "0" for same in row.top1),
        "kls": [float(f"{kl:.3g}") for kl in row.kl],
    }


def _worst_position(worst: WorstPosition | None) -> dict[str, Any]:
    if worst is None:
        return {"position": None, "kl": None, "reference_top5": [], "candidate_top5": []}
    return {
        "position": worst.position,
        "kl": worst.kl,
        "reference_top5": [[token.text, token.logit] for token in worst.reference_top5],
        "candidate_top5": [[token.text, token.logit] for token in worst.candidate_top5],
    }


def _clipped(text: str) -> str:
    """Return the start and the end of a long text: records stay small whatever a prompt holds."""
    if len(text) <= _MAX_CHARACTERS:
        return text
    return f"{text[:_END_CHARACTERS]} … {text[-_END_CHARACTERS:]}"


def worst_text(row: PromptComparison) -> str:
    """Say where the prompt's texts part, and show both top fives at the worst position."""
    lines = [f"  prompt {row.index} {_short(row.prompt)!r}: {_divergence(row)}"]
    if row.worst is not None:
        lines += _worst_lines(row.worst)
    return "\n".join(lines)


def _divergence(row: PromptComparison) -> str:
    if row.first_divergence is None:
        return "equal texts"
    return f"texts differ from token {row.first_divergence} of {row.n_free}"


def _worst_lines(worst: WorstPosition) -> list[str]:
    kl = format_value(worst.kl, "nats")
    return [
        f"    position {worst.position}: KL {kl}{_gap(worst)}",
        f"      {'reference':<9} {_tokens(worst.reference_top5)}",
        f"      {'candidate':<9} {_tokens(worst.candidate_top5)}",
    ]


def _gap(worst: WorstPosition) -> str:
    """Name both tokens, and how far the candidate puts its own above the reference's."""
    if not worst.reference_top5 or not worst.candidate_top5:
        return ""
    candidate, reference = worst.candidate_top5[0], worst.reference_top5[0]
    if candidate.token_id == reference.token_id:
        return f", both choose {candidate.text!r}"
    gap = "the reference's is not in its top 5"
    for token in worst.candidate_top5:
        if token.token_id == reference.token_id:
            gap = f"logit gap {candidate.logit - token.logit:.3g}"
    return f", reference {reference.text!r}, candidate {candidate.text!r}, {gap}"


def _tokens(top: Sequence[TopToken]) -> str:
    return "  ".join(f"{token.text!r} {token.logit:.2f}" for token in top)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."  # noqa: PLR2004 - a line of a terminal


class Figures(Protocol):
    """What is shown of a part of the prompts; see `core.agreement.agreement.Agreement`."""

    @property
    def n_prompts(self) -> int:
        """Prompts compared."""

    @property
    def n_tokens(self) -> int:
        """Positions compared."""

    @property
    def reach(self) -> int:
        """The most positions before a token that was compared."""


_FIGURES = {
    "top1": "top1",
    "kl": "KL",
    "perplexity_ratio": "perplexity",
    "sqnr_db": "SQNR",
    "end_mae": "end",
}


def part_lines(parts: Mapping[str, Figures]) -> list[str]:
    """Return a line for each part of the prompts, and how far into a text it reaches."""
    return [f"  {name:<19}{_reach(part)}: {_figures(part)}" for name, part in parts.items()]


def _reach(part: Figures) -> str:
    return f"{part.n_tokens} tokens of {part.n_prompts} prompts, up to position {part.reach}"


def _figures(part: Figures) -> str:
    return ", ".join(f"{word} {_value(getattr(part, name))}" for name, word in _FIGURES.items())


def part_summary(part: Figures) -> dict[str, Any]:
    """Return the figures of a part as plain values; None for what is not measurable."""
    figures = {name: plain(getattr(part, name))["value"] for name in _FIGURES}
    return {"n_prompts": part.n_prompts, "n_tokens": part.n_tokens, "reach": part.reach, **figures}


def plain(quantity: Estimate | NotMeasurable) -> dict[str, Any]:
    """Return a quantity as plain values of a record."""
    if isinstance(quantity, NotMeasurable):
        return {"value": None, "reason": quantity.reason}
    return {
        "value": quantity.value,
        "low": quantity.low,
        "high": quantity.high,
        "unit": quantity.unit,
    }


def _value(quantity: object) -> str:
    """Return the number of an Estimate in short; "-" for what is not measurable."""
    return f"{quantity.value:.4g}" if isinstance(quantity, Estimate) else "-"
