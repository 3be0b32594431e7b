"""Agreement with the reference: a table of each comparison, and its worst prompts in detail."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, TypeGuard

from pytest_llmperf.core.format import MISSING, format_number, format_value
from pytest_llmperf.core.record import AGREEMENT, Record
from pytest_llmperf.report.html.blocks import (
    Block,
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
    ("kl", "KL", ""),
    ("perplexity_ratio", "perplexity", "x"),
    ("prefix_match", "equal prefix", "1"),
    ("sqnr_db", "SQNR", "dB"),
)
"""The columns: name in the agreement, header, unit ("" where the table's note names it)."""
_HEADER = ("strategy", "rule", *(header for _, header, _ in _QUANTITIES))
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
    return _agreement_of_similar(record, records)


def _agreement_of_similar(record: Record, records: Sequence[Record]) -> Mapping[str, Any] | None:
    similar = [other for other in records if other.agreement and _is_similar(other, record)]
    return newest(similar).agreement if similar else None


def _is_similar(other: Record, record: Record) -> bool:
    return all(getattr(other, name) == getattr(record, name) for name in _SAME)


def number(agreement: Mapping[str, Any] | None, name: str, field: str = "value") -> float | None:
    """Return a quantity of an agreement, or an end of its interval.

    None where it is not there or not finite.
    """
    value = _quantity(agreement, name).get(field)
    return float(value) if _is_finite(value) else None


def interval(agreement: Mapping[str, Any] | None, name: str) -> tuple[float, float] | None:
    """Return the ends of a quantity's interval, None where there is none or it has no width."""
    return _ends_apart(number(agreement, name, "low"), number(agreement, name, "high"))


def _ends_apart(low: float | None, high: float | None) -> tuple[float, float] | None:
    if low is None or high is None or low == high:
        return None
    return low, high


def _quantity(agreement: Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
    quantity = (agreement or {}).get(name)
    return quantity if isinstance(quantity, Mapping) else {}


def _is_finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def holds(agreement: Mapping[str, Any] | None) -> bool | None:
    """Whether the rule of the strategy's kind holds; None without an agreement or a rule."""
    ok = (agreement or {}).get("ok")
    return ok if isinstance(ok, bool) else None


def section(records: Sequence[Record]) -> Section | None:
    """Return each agreement that was measured. None where there is none."""
    measured = [record for record in records if _is_measured_agreement(record)]
    if not measured:
        return None
    return Section(id="agreement", title="Agreement", lead=_LEAD, parts=_parts(measured))


def _parts(measured: Sequence[Record]) -> tuple[Part, ...]:
    table = Part(title="Against the reference", blocks=(_table(measured),))
    return table, *_worst_parts(measured)


def _is_measured_agreement(record: Record) -> bool:
    return record.workload.get("type") == AGREEMENT and bool(record.agreement)


def _table(records: Sequence[Record]) -> Table:
    return Table(
        caption="Agreement of each strategy with its reference",
        header=_HEADER,
        rows=tuple(map(_row, records)),
        first_number=2,
        note=_TABLE_NOTE,
    )


def _row(record: Record) -> Row:
    agreement = record.agreement or {}
    strategy = _strategy_cell(record, agreement)
    return record_row(record, strategy, _rule_cell(agreement), *_quantity_cells(agreement))


def _strategy_cell(record: Record, agreement: Mapping[str, Any]) -> Cell:
    return Cell(record.strategy, _comparison_text(record, agreement))


def _quantity_cells(agreement: Mapping[str, Any]) -> list[Cell]:
    return [_quantity_cell(agreement, name, unit) for name, _, unit in _QUANTITIES]


def _comparison_text(record: Record, agreement: Mapping[str, Any]) -> str:
    reference = agreement.get("reference") or "its reference"
    return f"{record.model}, against {reference}: {_extent_text(agreement)}"


def _extent_text(agreement: Mapping[str, Any]) -> str:
    n_tokens, n_prompts = agreement.get("n_tokens", "?"), agreement.get("n_prompts", "?")
    return f"{n_tokens} tokens of {n_prompts} prompts"


def _rule_cell(agreement: Mapping[str, Any]) -> Cell:
    rule_holds = holds(agreement)
    if rule_holds is None:
        return Cell("no rule", "", "quiet")
    if rule_holds:
        return Cell("holds", _rule_text(agreement), "good")
    return _broken_rule_cell(agreement)


def _broken_rule_cell(agreement: Mapping[str, Any]) -> Cell:
    detail = f"{_rule_text(agreement)}: {_reasons_text(agreement)}"
    return Cell("does not hold", detail, "bad")


def _rule_text(agreement: Mapping[str, Any]) -> str:
    return str(agreement.get("rule", ""))


def _reasons_text(agreement: Mapping[str, Any]) -> str:
    return "; ".join(map(str, agreement.get("reasons") or ()))


def _quantity_cell(agreement: Mapping[str, Any], name: str, unit: str) -> Cell:
    value = number(agreement, name)
    if value is None:
        return _unmeasured_cell(agreement, name)
    return _measured_cell(value, interval(agreement, name), unit)


def _measured_cell(value: float, ends: tuple[float, float] | None, unit: str) -> Cell:
    return Cell(format_value(value, unit), _interval_text(ends, unit))


def _unmeasured_cell(agreement: Mapping[str, Any], name: str) -> Cell:
    reason = str(_quantity(agreement, name).get("reason", ""))
    return Cell(MISSING, reason, "quiet")


def _interval_text(ends: tuple[float, float] | None, unit: str) -> str:
    return " to ".join(_end_text(end, unit) for end in ends or ())


def _end_text(end: float, unit: str) -> str:
    return format_number(100 * end) if unit == "1" else format_number(end)


def _worst_parts(records: Sequence[Record]) -> Iterator[Part]:
    for record in records:
        prompts = _worst_prompts(record)
        if prompts:
            yield _worst_part(record, prompts)


def _worst_prompts(record: Record) -> list[Mapping[str, Any]]:
    worst = (record.agreement or {}).get("worst") or ()
    return [prompt for prompt in worst if isinstance(prompt, Mapping)]


def _worst_part(record: Record, prompts: Sequence[Mapping[str, Any]]) -> Part:
    title = f"{record.strategy}: worst prompts"
    return Part(title=title, blocks=(_prompts_fold(record, prompts),), words=search_words(record))


def _prompts_fold(record: Record, prompts: Sequence[Mapping[str, Any]]) -> Fold:
    return Fold(
        summary=f"{len(prompts)} prompts that disagree most",
        blocks=_prompt_blocks(record, prompts),
    )


def _prompt_blocks(record: Record, prompts: Sequence[Mapping[str, Any]]) -> tuple[Block, ...]:
    """Return the prompts whose texts were recorded; a note where there are none."""
    blocks = tuple(_prompt(prompt, record) for prompt in prompts if "text" in prompt)
    return blocks or (Note(_NO_TEXTS, "quiet"),)


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
    return tuple(
        _token(kl, same=is_same, parts=position == divergence)
        for position, (is_same, kl) in enumerate(_flags_and_kls(stored))
    )


def _flags_and_kls(stored: Mapping[str, Any]) -> Iterator[tuple[bool, object]]:
    """Return whether both argmax are equal, and the KL, position by position."""
    return zip(_equal_flags(stored), stored.get("kls") or (), strict=False)


def _equal_flags(stored: Mapping[str, Any]) -> list[bool]:
    return [flag == "1" for flag in str(stored.get("top1", ""))]


def _token(kl: object, *, same: bool, parts: bool) -> Token:
    finite_kl = kl if _is_finite(kl) else None
    return Token(kl=finite_kl, same=same, heat=_heat(finite_kl), parts=parts)


def _heat(kl: float | None) -> int:
    if kl is None:
        return len(_HEAT_LIMITS)
    return sum(kl > limit for limit in _HEAT_LIMITS)


def _worst_text(stored: Mapping[str, Any], record: Record) -> str:
    position, kl = stored.get("position"), stored.get("kl")
    if not isinstance(position, int) or not isinstance(kl, int | float):
        return ""
    return f"Both top 5 at token {position + 1}, {_worst_place_text(record, kl)}"


def _worst_place_text(record: Record, kl: float) -> str:
    return f"where {record.strategy} differs most (KL {format_value(kl, 'nats')})"


def _top5(stored: Mapping[str, Any]) -> tuple[tuple[str, str, str, str], ...]:
    """Return rows of both sides' token and logit; a side that has fewer is left empty."""
    sides = (stored.get(name) or () for name in ("reference_top5", "candidate_top5"))
    rows = zip_longest(*sides, fillvalue=("", None))
    return tuple((*_token_texts(*first), *_token_texts(*second)) for first, second in rows)


def _token_texts(token: object, logit: object) -> tuple[str, str]:
    return str(token), _logit_text(logit)


def _logit_text(logit: object) -> str:
    return f"{logit:.2f}" if isinstance(logit, int | float) else MISSING
