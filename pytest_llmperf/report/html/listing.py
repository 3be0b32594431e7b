"""The list of all runs with their claims, their environments, and the samples to download."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pytest_llmperf.core.format import MISSING, format_percent
from pytest_llmperf.core.record import Fact, Record
from pytest_llmperf.report.html.blocks import Cell, Fold, Note, Part, Row, Section, Table
from pytest_llmperf.report.html.content import Content
from pytest_llmperf.report.html.history import difference
from pytest_llmperf.report.html.runs import (
    headline,
    interval_text,
    minute_text,
    record_row,
    split_test,
    strategy_name,
    text_row,
    value_text,
)
from pytest_llmperf.report.html.strategies import verdict

_MAX_SAMPLES = 200_000
"""Numbers that a report carries for download, about 2 MB; the newest runs come first."""
_SAMPLE_FACTS = (
    "id",
    "session_id",
    "created",
    "test",
    "label",
    "model",
    "strategy",
    "engine",
    "workload_text",
    "outcome",
)
_RUNS_HEADER = (
    "test",
    "strategy",
    "work",
    "verdict",
    "claims",
    "value",
    "TTFT p50",
    "memory peak",
)
_RUNS_NOTE = (
    "Value: tokens a second of a run, top-1 of an agreement, accuracy of a task, "
    "seconds of a benchmark's round."
)


def runs(records: Sequence[Record]) -> Section | None:
    """Return every record of the report. None where there is none."""
    if not records:
        return None
    part = Part(title="Runs and claims", blocks=(_runs_table(records),))
    return Section(id="runs", title="All runs", parts=(part,))


def _runs_table(records: Sequence[Record]) -> Table:
    return Table(
        caption="Every run of this report",
        header=_RUNS_HEADER,
        rows=tuple(map(_row, records)),
        first_number=5,
        note=_RUNS_NOTE,
    )


def _row(record: Record) -> Row:
    return record_row(
        record,
        _test_cell(record),
        Cell(strategy_name(record)),
        _workload_cell(record),
        verdict(record.outcome),
        _claims_cell(record),
        Cell(value_text(record, headline(record)), interval_text(record, headline(record))),
        Cell(value_text(record, "ttft.p50")),
        Cell(value_text(record, "memory.peak")),
        run=record.id if record.samples else "",
        anchor=f"run-{record.id}",
    )


def _test_cell(record: Record) -> Cell:
    name, file = split_test(record.test)
    return Cell(name, _origin_text(record, file))


def _origin_text(record: Record, file: str) -> str:
    texts = (file, record.label, record.model, minute_text(record.created))
    return ", ".join(filter(None, texts))


def _workload_cell(record: Record) -> Cell:
    doubts = sorted({mark.kind for mark in record.marks})
    marked = f"marked {', '.join(doubts)}" if doubts else ""
    return Cell(record.workload_text, "; ".join(filter(None, (_processes_text(record), marked))))


def _processes_text(record: Record) -> str:
    """Say how far apart a run's processes are, or why there was one alone."""
    facts = record.in_processes
    if facts.apart is not None:
        return f"{facts.count} processes, {format_percent(facts.apart, 2)} apart"
    if facts.known is not None:
        spread = format_percent(facts.known, 2)
        return f"one process; processes vary by {spread} ({facts.known_from})"
    return f"one process; others may differ: {facts.note}" if facts.note else ""


def _claims_cell(record: Record) -> Cell:
    claims = "; ".join(f"{claim.outcome}: {claim.text}" for claim in record.claims)
    return Cell(claims or MISSING)


def samples(records: Sequence[Record]) -> tuple[list[dict[str, Any]], int]:
    """Return raw samples by run, newest first, as far as they fit; and how many were left out."""
    carried: list[dict[str, Any]] = []
    n_numbers = n_left_out = 0
    sampled = [record for record in records if record.samples]
    for record in sorted(sampled, key=lambda record: record.created, reverse=True):
        n_numbers += sum(map(len, record.samples.values()))
        if n_numbers > _MAX_SAMPLES:
            n_left_out += 1
        else:
            carried.append(_download(record))
    return carried, n_left_out


def _download(record: Record) -> dict[str, Any]:
    units = {metric.name.partition(".")[0]: metric.unit for metric in record.metrics}
    numbers = {
        name: [float(f"{sample:.9g}") for sample in values]
        for name, values in record.samples.items()
    }
    return {
        **{name: getattr(record, name) for name in _SAMPLE_FACTS},
        "units": {name: unit for name, unit in units.items() if name in record.samples},
        "samples": numbers,
    }


def environments(content: Content) -> Section | None:
    """Return the facts of each environment; which ones differ where there are several."""
    keys = list(dict.fromkeys(record.environment_key for record in content.records))
    if not keys:
        return None
    parts = [
        Part(
            title=place_name(content, key),
            blocks=(_facts(content, key),),
            lead=f"Environment {key}",
        )
        for key in keys
    ]
    if len(keys) > 1:
        parts.insert(0, Part(title="What differs", blocks=_differences(content, keys)))
    return Section(id="environment", title="Environment", parts=tuple(parts))


def place_name(content: Content, key: str) -> str:
    """Return an environment in words."""
    facts = _place_facts(content, key)
    names = [facts.get(name) for name in ("device", "device_name", "cpu_model")]
    words = [str(name) for name in names if name]
    n_cores = facts.get("cpu_cores_limit")
    if isinstance(n_cores, int | float):
        words.append(f"{n_cores:g} cores")
    return ", ".join(dict.fromkeys(words)) or f"environment {key}"


def _differences(content: Content, keys: Sequence[str]) -> tuple[Note, Table]:
    return _mixture_note(len(keys)), _differences_table(content, keys)


def _differences_table(content: Content, keys: Sequence[str]) -> Table:
    return Table(
        caption="Facts that differ from the first",
        header=("environment", "differs from the first in"),
        rows=tuple(_difference_row(content, keys[0], key) for key in keys),
    )


def _mixture_note(n_environments: int) -> Note:
    warning = (
        f"Runs of {n_environments} environments are in this report. "
        "Only those of one environment are compared with each other."
    )
    return Note(warning, "warn")


def _difference_row(content: Content, first_key: str, key: str) -> Row:
    return text_row(place_name(content, key), _difference_text(content, first_key, key))


def _difference_text(content: Content, first_key: str, key: str) -> str:
    first, facts = _place_facts(content, first_key), _place_facts(content, key)
    return difference(first, facts, content.comparable) or MISSING


def _place_facts(content: Content, key: str) -> dict[str, Fact]:
    return content.places.get(key, {})


def _facts(content: Content, key: str) -> Fold:
    summary = f"{len(_place_facts(content, key))} facts"
    return Fold(summary=summary, blocks=(_facts_table(content, key),))


def _facts_table(content: Content, key: str) -> Table:
    return Table(
        caption=f"Facts of environment {key}",
        header=("fact", "value", "for a comparison"),
        rows=tuple(_fact_rows(content, key)),
    )


def _fact_rows(content: Content, key: str) -> Iterator[Row]:
    for name, fact in sorted(_place_facts(content, key).items()):
        yield _fact_row(name, fact, content.comparable)


def _fact_row(name: str, fact: Fact, comparable: Sequence[str]) -> Row:
    rule = "must match" if name in comparable else ""
    return text_row(name, _fact_text(fact), rule)


def _fact_text(fact: Fact) -> str:
    return MISSING if fact is None else str(fact)
