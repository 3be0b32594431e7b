"""Agreement with the reference: a table of each comparison, and its worst prompts position by position."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_llmperf.core.format import MISSING, format_number, format_value
from pytest_llmperf.core.record import AGREEMENT, Record
from pytest_llmperf.report.html.blocks import (
    Cell,
    Fold,
    Note,
    Part,
    Prompt,
    Row,
    Section,
    Table,
    Token,
)
from pytest_llmperf.report.html.runs import newest, words

_COLUMNS = (
    ("top1", "top-1", "1"),
    ("top5", "top-5", "1"),
    ("kl", "KL", "nats"),
    ("perplexity_ratio", "perplexity", "x"),
)
_MORE = (("prefix_match", "equal prefix", "1"), ("sqnr_db", "SQNR", "dB"))
_HEAT = (1e-3, 1e-2, 1e-1, 1.0)
"""Limits of the colours of a position, nats."""


def of_run(record: Record, records: Sequence[Record]) -> Mapping[str, Any] | None:
    """The agreement of a run's strategy: of its own test, else the newest of the same model, strategy, engine and environment."""
    if record.agreement is not None:
        return record.agreement
    same = ("model", "strategy", "engine", "environment_key")
    found = [
        each
        for each in records
        if each.agreement and all(getattr(each, name) == getattr(record, name) for name in same)
    ]
    return newest(found).agreement if found else None


def number(agreement: Mapping[str, Any] | None, name: str, field: str = "value") -> float | None:
    """A quantity of an agreement, or an end of its interval.

    None where it is not there or not finite.
    """
    kept = (agreement or {}).get(name)
    found = kept.get(field) if isinstance(kept, Mapping) else None
    return float(found) if isinstance(found, int | float) and math.isfinite(found) else None


def holds(agreement: Mapping[str, Any] | None) -> bool | None:
    """Whether the rule of the strategy's kind holds; None where there is no agreement or no rule."""
    found = (agreement or {}).get("ok")
    return found if isinstance(found, bool) else None


def section(records: Sequence[Record]) -> Section | None:
    """Each agreement that was measured. None where there is none."""
    found = [
        record
        for record in records
        if record.workload.get("type") == AGREEMENT and record.agreement
    ]
    if not found:
        return None
    return Section(
        id="agreement",
        title="Agreement",
        lead="How often each strategy gives the reference's answer, teacher-forced on the reference's own continuations.",
        parts=(Part(title="Against the reference", blocks=(_table(found),)), *_worst_parts(found)),
    )


def _table(found: Sequence[Record]) -> Table:
    names = [header for _, header, _ in (*_COLUMNS, *_MORE)]
    return Table(
        caption="Agreement of each strategy with its reference",
        header=("strategy", "rule", *names),
        rows=tuple(map(_row, found)),
        first_number=2,
        note="KL in nats. Perplexity is the candidate's over the reference's. Intervals are bootstrapped over prompts.",
    )


def _row(record: Record) -> Row:
    agreement = record.agreement or {}
    held = holds(agreement)
    verdict = {
        True: Cell("holds", str(agreement.get("rule", "")), "good"),
        None: Cell("no rule", "", "quiet"),
    }
    reasons = "; ".join(map(str, agreement.get("reasons") or ()))
    rule = verdict.get(held) or Cell(
        "does not hold", f"{agreement.get('rule', '')}: {reasons}", "bad"
    )
    counted = (
        f"{agreement.get('n_tokens', '?')} tokens of {agreement.get('n_prompts', '?')} prompts"
    )
    against = f"{record.model}, against {agreement.get('reference') or 'its reference'}: {counted}"
    return Row(
        cells=(
            Cell(record.strategy, against),
            rule,
            *(_cell(agreement, name, unit) for name, _, unit in (*_COLUMNS, *_MORE)),
        ),
        words=words(record),
        outcome=record.outcome,
    )


def _cell(agreement: Mapping[str, Any], name: str, unit: str) -> Cell:
    found, low, high = (number(agreement, name, field) for field in ("value", "low", "high"))
    if found is None:
        kept = agreement.get(name)
        return Cell(
            MISSING, str(kept.get("reason", "")) if isinstance(kept, Mapping) else "", "quiet"
        )
    text = format_value(found, "" if unit == "nats" else unit)
    return Cell(
        text,
        ""
        if low is None or high is None or low == high
        else f"{_short(low, unit)} to {_short(high, unit)}",
    )


def _short(end: float, unit: str) -> str:
    return format_number(100 * end) if unit == "1" else format_number(end)


def _worst_parts(found: Sequence[Record]) -> list[Part]:
    parts = []
    for record in found:
        kept = (record.agreement or {}).get("worst") or ()
        prompts = [each for each in kept if isinstance(each, Mapping)]
        if not prompts:
            continue
        blocks = [_prompt(each, record) for each in prompts if "text" in each]
        old = Note(
            "The texts of the worst prompts were not recorded: an older version made this record.",
            "quiet",
        )
        folded = Fold(
            summary=f"{len(prompts)} prompts that disagree most", blocks=tuple(blocks) or (old,)
        )
        parts.append(
            Part(title=f"{record.strategy}: worst prompts", blocks=(folded,), words=words(record))
        )
    return parts


def _prompt(kept: Mapping[str, Any], record: Record) -> Prompt:
    parted = kept.get("first_divergence")
    apart = f"texts part at token {parted + 1}" if isinstance(parted, int) else "equal texts"
    return Prompt(
        title=f"Prompt {kept.get('prompt')}: {apart}",
        text=str(kept.get("text", "")),
        reference=str(kept.get("reference_text", "")),
        candidate=str(kept.get("candidate_text", "")),
        tokens=_tokens(kept, parted),
        worst=_worst(kept, record),
        top5=_top5(kept),
    )


def _tokens(kept: Mapping[str, Any], parted: object) -> tuple[Token, ...]:
    same, kls = str(kept.get("top1", "")), list(kept.get("kls") or ())
    return tuple(
        _token(kl, same=equal == "1", parts=at == parted)
        for at, (equal, kl) in enumerate(zip(same, kls, strict=False))
    )


def _token(kl: object, *, same: bool, parts: bool) -> Token:
    finite = isinstance(kl, int | float) and math.isfinite(kl)
    heat = (
        sum(kl > limit for limit in _HEAT) if isinstance(kl, int | float) and finite else len(_HEAT)
    )
    return Token(
        kl=kl if isinstance(kl, int | float) and finite else None, same=same, heat=heat, parts=parts
    )


def _worst(kept: Mapping[str, Any], record: Record) -> str:
    position, kl = kept.get("position"), kept.get("kl")
    if not isinstance(position, int) or not isinstance(kl, int | float):
        return ""
    return f"Both top 5 at token {position + 1}, where {record.strategy} differs most (KL {format_value(kl, 'nats')})"


def _top5(kept: Mapping[str, Any]) -> tuple[tuple[str, str, str, str], ...]:
    """Rows of both sides' token and logit; a side that has fewer is left empty."""
    sides = [list(kept.get(name) or ()) for name in ("reference_top5", "candidate_top5")]
    rows = []
    for at in range(max(map(len, sides))):
        cells = [side[at] if at < len(side) else ("", None) for side in sides]
        (theirs, their_logit), (ours, our_logit) = cells
        rows.append((str(theirs), _logit(their_logit), str(ours), _logit(our_logit)))
    return tuple(rows)


def _logit(logit: object) -> str:
    return f"{logit:.2f}" if isinstance(logit, int | float) else MISSING
