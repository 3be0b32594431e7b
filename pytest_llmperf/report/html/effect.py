"""What was asked against what was in effect: each strategy's promises, held against what the worker described."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pytest_llmperf.core.effective import Effective, Promise
from pytest_llmperf.core.format import MISSING, format_value
from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.core.record import Record
from pytest_llmperf.errors import LlmperfError
from pytest_llmperf.report.html.blocks import Cell, Fold, Part, Row, Section, Table
from pytest_llmperf.report.html.runs import named, newest, words
from pytest_llmperf.strategies import parse

_WARM = "compilation and cache: seen after the warm-up, before anything was measured"


class Kept(NamedTuple):
    """A promise of a strategy: its text, and why it is not kept ("" where it is)."""

    text: str
    broken: str
    when: str


def promises(record: Record) -> list[Kept] | None:
    """What the strategy promises and whether the record's description bears it out.

    None where that cannot be said.

    Promises that show only once a model is warm were checked then: a run that breaks one leaves no
    record.
    """
    asked = _asked(record)
    if record.effective is None or asked is None:
        return None
    return [Kept(each.text, _broken(each, record.effective), each.when) for each in asked]


def broken(record: Record) -> list[str]:
    """What was asked of the record's strategy and was not in effect."""
    return [f"{kept.text}: {kept.broken}" for kept in promises(record) or () if kept.broken]


def section(records: Sequence[Record]) -> Section | None:
    """One table of all strategies, by model. None where no record describes what was loaded."""
    described: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        if record.effective is not None:
            described.setdefault((record.model, named(record), record.environment_key), []).append(
                record
            )
    found = [newest(same) for same in described.values()]
    if not found:
        return None
    lead = "Each strategy's promises, and what the worker found to be loaded. A promise that is broken ends the test in ERROR."
    return Section(
        id="in-effect",
        title="Asked and in effect",
        lead=lead,
        parts=(
            Part(
                title="By strategy",
                blocks=(_table(found), Fold(summary="What was loaded", blocks=(_loaded(found),))),
            ),
        ),
    )


def _asked(record: Record) -> tuple[Promise, ...] | None:
    plan = LoadPlan(
        model=ModelRef(name=record.model, kind="hub", location=record.model), engine=record.engine
    )
    try:
        strategy = parse(record.strategy)
        return strategy.promises(strategy.apply(plan))
    except LlmperfError:  # a part of another version, or a checkpoint that is not on this machine
        return None


def _broken(promise: Promise, effective: Effective) -> str:
    return "" if promise.when == "warm" else promise.broken(effective) or ""


def _table(found: Sequence[Record]) -> Table:
    return Table(
        caption="What was asked for and what was in effect",
        header=("strategy", "asked for", "in effect", "weights as loaded"),
        rows=tuple(map(_row, found)),
    )


def _row(record: Record) -> Row:
    kept = promises(record)
    asked = Cell("; ".join(each.text for each in kept or ()) or record.strategy)
    weights = Cell(_weights(record.effective) if record.effective is not None else MISSING)
    cells = (Cell(named(record), record.model), asked, _state(kept), weights)
    return Row(cells=cells, words=words(record), outcome=record.outcome)


def _state(kept: Sequence[Kept] | None) -> Cell:
    if kept is None:
        return Cell("not known", "this version cannot read the strategy's parts here", "warn")
    missing = [f"{each.text}: {each.broken}" for each in kept if each.broken]
    if missing:
        return Cell(f"{len(missing)} of {len(kept)} not in effect", "; ".join(missing), "bad")
    warm = _WARM if any(each.when == "warm" for each in kept) else ""
    return Cell(f"all {len(kept)}", warm) if kept else Cell("nothing was promised", "", "quiet")


def _weights(seen: Effective) -> str:
    return ", ".join(
        f"{format_value(n, 'B')} {dtype}" for dtype, n in seen.parameter_bytes_by_dtype.items()
    )


def _loaded(found: Sequence[Record]) -> Table:
    header = (
        "strategy",
        "weights",
        "compute",
        "attention",
        "KV cache",
        "compiled",
        "device",
        "more",
    )
    rows = [
        _loaded_row(record, record.effective) for record in found if record.effective is not None
    ]
    return Table(caption="What the worker found to be loaded", header=header, rows=tuple(rows))


def _loaded_row(record: Record, seen: Effective) -> Row:
    compute = f"{seen.compute_dtype}{f' under {seen.autocast_dtype} autocast' if seen.autocast_dtype else ''}"
    compiled = f"{seen.compile_mode}, {seen.compiled_graphs} graphs" if seen.compile_mode else "no"
    device = seen.device if seen.ranks == 1 else f"{seen.device}, {seen.ranks} ranks"
    texts = (_weights(seen), compute, seen.attention, seen.cache, compiled, device)
    return Row(
        cells=(Cell(named(record), seen.model_class), *map(Cell, texts), Cell(_more(seen))),
        words=words(record),
        outcome=record.outcome,
    )


def _more(seen: Effective) -> str:
    said = [str(seen.quantized)] if seen.quantized is not None else []
    said += [f"{seen.sparsity:.1%} of the weights are zero"] if seen.sparsity else []
    said += [f"adapters {', '.join(seen.adapters)}"] if seen.adapters else []
    said += [f"assisted by {seen.assistance}"] if seen.assistance else []
    said += [f"{seen.batching} batches"] if seen.batching else []
    said += [f"tensor parallel by {seen.tensor_parallel}"] if seen.tensor_parallel else []
    said += [f"{format_value(n, 'B')} on {place}" for place, n in seen.offloaded_bytes.items()]
    return "; ".join([*said, *seen.notes]) or MISSING
