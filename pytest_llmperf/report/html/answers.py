"""Agreement with the reference: a table of each comparison, and its worst prompts in detail."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
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
from pytest_llmperf.report.html.runs import newest, record_row, search_words

_QUANTITIES = (
    ("top1", "top-1", "1"),
    ("top5", "top-5", "1"),
    ("kl", "KL", "nats"),
    ("perplexity_ratio", "perplexity", "x"),
    ("prefix_match", "equal prefix", "1"),
    ("sqnr_db", "SQNR", "dB"),
)
"""The columns: name in the agreement, header, unit."""
_HEAT_LIMITS = (1e-3, 1e-2, 1e-1, 1.0)
"""Limits of the colours of a position, nats."""
_SAME = ("model", "strategy", "engine", "environment_key")
_LEAD = (
    "How often each strategy gives the reference's answer, "
    "teacher-forced on the reference's own continuations."
)
_TABLE_NOTE = (
    "KL in nats. Perplexity is the candidate's over the reference's. "
    "Intervals are bootstrapped over prompts."
)
_NO_TEXTS = "The texts of the worst prompts were not recorded: an older version made this record."


def agreement_of(record: Record, records: Sequence[Record]) -> Mapping[str, Any] | None:
    """Return the agreement of a run's strategy.

    It is that of its own test, else the newest one of the same model, strategy, engine and
    environment.
    """
    if record.agreement is not None:
        return record.agreement
    similar = [
        other
        for other in records
        if other.agreement and all(getattr(other, name) == getattr(record, name) for name in _SAME)
    ]
    return newest(similar).agreement if similar else None


def number(agreement: Mapping[str, Any] | None, name: str, field: str = "value") -> float | None:
    """Return a quantity of an agreement, or an end of its interval.

    None where it is not there or not finite.
    """
    quantity = (agreement or {}).get(name)
    value = quantity.get(field) if isinstance(quantity, Mapping) else None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def holds(agreement: Mapping[str, Any] | None) -> bool | None:
    """Whether the rule of the strategy's kind holds; None without an agreement or a rule."""
    ok = (agreement or {}).get("ok")
    return ok if isinstance(ok, bool) else None


def section(records: Sequence[Record]) -> Section | None:
    """Return each agreement that was measured. None where there is none."""
    measured = [
        record
        for record in records
        if record.workload.get("type") == AGREEMENT and record.agreement
    ]
    if not measured:
        return None
    table = Part(title="Against the reference", blocks=(_table(measured),))
    return Section(
        id="agreement", title="Agreement", lead=_LEAD, parts=(table, *_worst_parts(measured))
    )


def _table(records: Sequence[Record]) -> Table:
    return Table(
        caption="Agreement of each strategy with its reference",
        header=("strategy", "rule", *(header for _, header, _ in _QUANTITIES)),
        rows=tuple(map(_row, records)),
        first_number=2,
        note=_TABLE_NOTE,
    )


def _row(record: Record) -> Row:
    agreement = record.agreement or {}
    quantities = [_quantity_cell(agreement, name, unit) for name, _, unit in _QUANTITIES]
    strategy = Cell(record.strategy, _comparison_text(record, agreement))
    return record_row(record, strategy, _rule_cell(agreement), *quantities)


def _comparison_text(record: Record, agreement: Mapping[str, Any]) -> str:
    n_tokens, n_prompts = agreement.get("n_tokens", "?"), agreement.get("n_prompts", "?")
    reference = agreement.get("reference") or "its reference"
    return f"{record.model}, against {reference}: {n_tokens} tokens of {n_prompts} prompts"


def _rule_cell(agreement: Mapping[str, Any]) -> Cell:
    rule = str(agreement.get("rule", ""))
    rule_holds = holds(agreement)
    if rule_holds is None:
        return Cell("no rule", "", "quiet")
    if rule_holds:
        return Cell("holds", rule, "good")
    reasons = "; ".join(map(str, agreement.get("reasons") or ()))
    return Cell("does not hold", f"{rule}: {reasons}", "bad")


def _quantity_cell(agreement: Mapping[str, Any], name: str, unit: str) -> Cell:
    value = number(agreement, name)
    if value is None:
        quantity = agreement.get(name)
        reason = str(quantity.get("reason", "")) if isinstance(quantity, Mapping) else ""
        return Cell(MISSING, reason, "quiet")
    text = format_value(value, "" if unit == "nats" else unit)
    return Cell(text, _interval_text(agreement, name, unit))


def _interval_text(agreement: Mapping[str, Any], name: str, unit: str) -> str:
    low, high = number(agreement, name, "low"), number(agreement, name, "high")
    if low is None or high is None or low == high:
        return ""
    return f"{_end_text(low, unit)} to {_end_text(high, unit)}"


def _end_text(end: float, unit: str) -> str:
    return format_number(100 * end) if unit == "1" else format_number(end)


def _worst_parts(records: Sequence[Record]) -> list[Part]:
    parts = []
    for record in records:
        worst = (record.agreement or {}).get("worst") or ()
        prompts = [prompt for prompt in worst if isinstance(prompt, Mapping)]
        if prompts:
            parts.append(_worst_part(record, prompts))
    return parts


def _worst_part(record: Record, prompts: Sequence[Mapping[str, Any]]) -> Part:
    blocks = tuple(_prompt(prompt, record) for prompt in prompts if "text" in prompt)
    fold = Fold(
        summary=f"{len(prompts)} prompts that disagree most",
        blocks=blocks or (Note(_NO_TEXTS, "quiet"),),
    )
    title = f"{record.strategy}: worst prompts"
    return Part(title=title, blocks=(fold,), words=search_words(record))


def _prompt(stored: Mapping[str, Any], record: Record) -> Prompt:
    divergence = stored.get("first_divergence")
    if isinstance(divergence, int):
        summary = f"texts part at token {divergence + 1}"
    else:
        summary = "equal texts"
    return Prompt(
        title=f"Prompt {stored.get('prompt')}: {summary}",
        text=str(stored.get("text", "")),
        reference=str(stored.get("reference_text", "")),
        candidate=str(stored.get("candidate_text", "")),
        tokens=_tokens(stored, divergence),
        worst=_worst_text(stored, record),
        top5=_top5(stored),
    )


def _tokens(stored: Mapping[str, Any], divergence: object) -> tuple[Token, ...]:
    equal_flags, kls = str(stored.get("top1", "")), list(stored.get("kls") or ())
    return tuple(
        _token(kl, same=flag == "1", parts=position == divergence)
        for position, (flag, kl) in enumerate(zip(equal_flags, kls, strict=False))
    )


def _token(kl: object, *, same: bool, parts: bool) -> Token:
    if not isinstance(kl, int | float) or not math.isfinite(kl):
        return Token(kl=None, same=same, heat=len(_HEAT_LIMITS), parts=parts)
    heat = sum(kl > limit for limit in _HEAT_LIMITS)
    return Token(kl=kl, same=same, heat=heat, parts=parts)


def _worst_text(stored: Mapping[str, Any], record: Record) -> str:
    position, kl = stored.get("position"), stored.get("kl")
    if not isinstance(position, int) or not isinstance(kl, int | float):
        return ""
    where = f"where {record.strategy} differs most (KL {format_value(kl, 'nats')})"
    return f"Both top 5 at token {position + 1}, {where}"


def _top5(stored: Mapping[str, Any]) -> tuple[tuple[str, str, str, str], ...]:
    """Return rows of both sides' token and logit; a side that has fewer is left empty."""
    reference, candidate = (stored.get(name) or () for name in ("reference_top5", "candidate_top5"))
    rows = zip_longest(reference, candidate, fillvalue=("", None))
    return tuple((*_token_texts(*first), *_token_texts(*second)) for first, second in rows)


def _token_texts(token: object, logit: object) -> tuple[str, str]:
    return str(token), _logit_text(logit)


def _logit_text(logit: object) -> str:
    return f"{logit:.2f}" if isinstance(logit, int | float) else MISSING
