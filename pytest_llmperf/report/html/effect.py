"""What each strategy promised, and what the worker found to be in effect."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pytest_llmperf.core.effective import Effective, Promise
from pytest_llmperf.core.format import MISSING, format_value
from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.core.record import Record
from pytest_llmperf.errors import LlmperfError
from pytest_llmperf.report.html.blocks import Cell, Fold, Part, Row, Section, Table
from pytest_llmperf.report.html.runs import newest, record_row, strategy_name
from pytest_llmperf.strategies import parse

_LEAD = (
    "Each strategy's promises, and what the worker found to be loaded. "
    "A promise that is broken ends the test in ERROR."
)
_WARM = "compilation and cache: seen after the warm-up, before anything was measured"
_LOADED = (
    "strategy",
    "weights",
    "compute",
    "attention",
    "KV cache",
    "compiled",
    "device",
    "more",
)


class CheckedPromise(NamedTuple):
    """A promise of a strategy. `broken` says why it is not kept, "" where it is."""

    text: str
    broken: str
    when: str


def checked_promises(record: Record) -> list[CheckedPromise] | None:
    """Return what the strategy promises, checked against the record's description.

    None where that cannot be said. Promises that show only once a model is warm were checked then:
    a run that breaks one leaves no record.
    """
    if record.effective is None or (promises := _promises(record)) is None:
        return None
    return [_checked(promise, record.effective) for promise in promises]


def _checked(promise: Promise, effective: Effective) -> CheckedPromise:
    return CheckedPromise(promise.text, _why_broken(promise, effective), promise.when)


def broken(record: Record) -> list[str]:
    """Return what the record's strategy promised and was not in effect."""
    return _broken_texts(checked_promises(record) or ())


def section(records: Sequence[Record]) -> Section | None:
    """Return one table of all strategies. None where no record describes what was loaded."""
    described = _newest_described(records)
    if not described:
        return None
    parts = (_strategies_part(described),)
    return Section(id="in-effect", title="Asked and in effect", lead=_LEAD, parts=parts)


def _strategies_part(described: Sequence[Record]) -> Part:
    fold = Fold(summary="What was loaded", blocks=(_loaded(described),))
    return Part(title="By strategy", blocks=(_table(described), fold))


def _newest_described(records: Sequence[Record]) -> list[Record]:
    """Return the newest description of each strategy, by model and environment."""
    described: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        if record.effective is not None:
            key = (record.model, strategy_name(record), record.environment_key)
            described.setdefault(key, []).append(record)
    return [newest(similar) for similar in described.values()]


def _promises(record: Record) -> tuple[Promise, ...] | None:
    try:
        strategy = parse(record.strategy)
        return strategy.promises(strategy.apply(_plan(record)))
    except LlmperfError:  # a part of another version, or a checkpoint that is not on this machine
        return None


def _plan(record: Record) -> LoadPlan:
    model = ModelRef(name=record.model, kind="hub", location=record.model)
    return LoadPlan(model=model, engine=record.engine)


def _why_broken(promise: Promise, effective: Effective) -> str:
    return "" if promise.when == "warm" else promise.broken(effective) or ""


def _broken_texts(promises: Sequence[CheckedPromise]) -> list[str]:
    return [f"{promise.text}: {promise.broken}" for promise in promises if promise.broken]


def _table(records: Sequence[Record]) -> Table:
    return Table(
        caption="What was asked for and what was in effect",
        header=("strategy", "asked for", "in effect", "weights as loaded"),
        rows=tuple(map(_row, records)),
    )


def _row(record: Record) -> Row:
    promises = checked_promises(record)
    promised = "; ".join(promise.text for promise in promises or ())
    weights = MISSING if record.effective is None else _weights(record.effective)
    return record_row(
        record,
        Cell(strategy_name(record), record.model),
        Cell(promised or record.strategy),
        _state(promises),
        Cell(weights),
    )


def _state(promises: Sequence[CheckedPromise] | None) -> Cell:
    if promises is None:
        return Cell("not known", "this version cannot read the strategy's parts here", "warn")
    if not promises:
        return Cell("nothing was promised", "", "quiet")
    missing = _broken_texts(promises)
    if missing:
        count = f"{len(missing)} of {len(promises)} not in effect"
        return Cell(count, "; ".join(missing), "bad")
    is_warm = any(promise.when == "warm" for promise in promises)
    return Cell(f"all {len(promises)}", _WARM if is_warm else "")


def _weights(effective: Effective) -> str:
    return ", ".join(
        f"{format_value(n_bytes, 'B')} {dtype}"
        for dtype, n_bytes in effective.parameter_bytes_by_dtype.items()
    )


def _loaded(records: Sequence[Record]) -> Table:
    rows = [
        _loaded_row(record, record.effective) for record in records if record.effective is not None
    ]
    return Table(caption="What the worker found to be loaded", header=_LOADED, rows=tuple(rows))


def _loaded_row(record: Record, effective: Effective) -> Row:
    strategy = Cell(strategy_name(record), effective.model_class)
    return record_row(record, strategy, *map(Cell, _loaded_texts(effective)))


def _loaded_texts(effective: Effective) -> tuple[str, ...]:
    """Return the columns of `_LOADED` after the strategy."""
    return (
        _weights(effective),
        _compute(effective),
        effective.attention,
        effective.cache,
        _compiled(effective),
        _device(effective),
        _more(effective),
    )


def _compute(effective: Effective) -> str:
    if not effective.autocast_dtype:
        return effective.compute_dtype
    return f"{effective.compute_dtype} under {effective.autocast_dtype} autocast"


def _compiled(effective: Effective) -> str:
    if not effective.compile_mode:
        return "no"
    return f"{effective.compile_mode}, {effective.compiled_graphs} graphs"


def _device(effective: Effective) -> str:
    if effective.ranks == 1:
        return effective.device
    return f"{effective.device}, {effective.ranks} ranks"


def _more(effective: Effective) -> str:
    return "; ".join([*_facts(effective), *effective.notes]) or MISSING


def _facts(effective: Effective) -> list[str]:
    return [*_weight_facts(effective), *_run_facts(effective), *_offloaded(effective)]


def _weight_facts(effective: Effective) -> Iterator[str]:
    if effective.quantized is not None:
        yield str(effective.quantized)
    if effective.sparsity:
        yield f"{effective.sparsity:.1%} of the weights are zero"


def _run_facts(effective: Effective) -> Iterator[str]:
    if effective.adapters:
        yield f"adapters {', '.join(effective.adapters)}"
    if effective.assistance:
        yield f"assisted by {effective.assistance}"
    if effective.batching:
        yield f"{effective.batching} batches"
    if effective.tensor_parallel:
        yield f"tensor parallel by {effective.tensor_parallel}"


def _offloaded(effective: Effective) -> Iterator[str]:
    for place, n_bytes in effective.offloaded_bytes.items():
        yield f"{format_value(n_bytes, 'B')} on {place}"
