"""The list of all runs with their claims, the environments they were made in, and the samples to download."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytest_llmperf.core.format import MISSING
from pytest_llmperf.core.record import Record
from pytest_llmperf.report.html.blocks import Cell, Fold, Note, Part, Row, Section, Table
from pytest_llmperf.report.html.content import Content
from pytest_llmperf.report.html.history import difference
from pytest_llmperf.report.html.runs import headline, interval, named, shown, split_test, words
from pytest_llmperf.report.html.strategies import verdict

_MAX_SAMPLES = 200_000
"""Numbers that a report carries for download, about 2 MB; the newest runs come first."""


def runs(records: Sequence[Record]) -> Section | None:
    """Every record of the report. None where there is none."""
    if not records:
        return None
    table = Table(
        caption="Every run of this report",
        header=(
            "test",
            "strategy",
            "work",
            "verdict",
            "claims",
            "value",
            "TTFT p50",
            "memory peak",
        ),
        rows=tuple(map(_row, records)),
        first_number=5,
        note="Value: tokens a second of a run, top-1 of an agreement, accuracy of a task, seconds of a benchmark's round.",
    )
    return Section(
        id="runs", title="All runs", parts=(Part(title="Runs and claims", blocks=(table,)),)
    )


def _row(record: Record) -> Row:
    name, file = split_test(record.test)
    where = ", ".join(
        filter(None, (file, record.label, record.model, record.created[:16].replace("T", " ")))
    )
    doubts = sorted({mark.kind for mark in record.marks})
    claims = "; ".join(f"{claim.outcome}: {claim.text}" for claim in record.claims)
    return Row(
        cells=(
            Cell(name, where),
            Cell(named(record)),
            Cell(record.workload_text, f"marked {', '.join(doubts)}" if doubts else ""),
            verdict(record.outcome),
            Cell(claims or MISSING),
            Cell(shown(record, headline(record)), interval(record, headline(record))),
            Cell(shown(record, "ttft.p50")),
            Cell(shown(record, "memory.peak")),
        ),
        words=words(record),
        outcome=record.outcome,
        run=record.id if record.samples else "",
    )


def samples(records: Sequence[Record]) -> tuple[list[dict[str, Any]], int]:
    """Raw samples by run, newest first, as far as they fit; and how many runs were left out."""
    kept: list[dict[str, Any]] = []
    n_numbers = left_out = 0
    for record in sorted(
        (each for each in records if each.samples), key=lambda each: each.created, reverse=True
    ):
        n_numbers += sum(map(len, record.samples.values()))
        if n_numbers > _MAX_SAMPLES:
            left_out += 1
            continue
        facts = (
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
        units = {
            m.name.partition(".")[0]: m.unit
            for m in record.metrics
            if m.name.partition(".")[0] in record.samples
        }
        numbers = {
            name: [float(f"{x:.9g}") for x in values] for name, values in record.samples.items()
        }
        kept.append(
            {**{name: getattr(record, name) for name in facts}, "units": units, "samples": numbers}
        )
    return kept, left_out


def environments(content: Content) -> Section | None:
    """The facts of each environment; which ones differ where there are several."""
    keys = list(dict.fromkeys(record.environment_key for record in content.records))
    if not keys:
        return None
    parts = [
        Part(title=place(content, key), blocks=(_facts(content, key),), lead=f"Environment {key}")
        for key in keys
    ]
    if len(keys) > 1:
        parts.insert(0, Part(title="What differs", blocks=_differences(content, keys)))
    return Section(id="environment", title="Environment", parts=tuple(parts))


def place(content: Content, key: str) -> str:
    """An environment in words."""
    facts = content.places.get(key, {})
    named = [str(facts[name]) for name in ("device_name", "cpu_model") if facts.get(name)]
    cores = facts.get("cpu_cores_limit")
    words = [
        str(facts.get("device") or ""),
        *dict.fromkeys(named),
        f"{cores:g} cores" if isinstance(cores, int | float) else "",
    ]
    return ", ".join(dict.fromkeys(word for word in words if word)) or f"environment {key}"


def _differences(content: Content, keys: Sequence[str]) -> tuple[Any, ...]:
    said = f"Runs of {len(keys)} environments are in this report. Only those of one environment are compared with each other."
    first = content.places.get(keys[0], {})
    rows = tuple(
        Row(
            cells=(
                Cell(place(content, key)),
                Cell(difference(first, content.places.get(key, {}), content.comparable) or MISSING),
            ),
        )
        for key in keys
    )
    table = Table(
        caption="Facts that differ from the first",
        header=("environment", "differs from the first in"),
        rows=rows,
    )
    return Note(said, "warn"), table


def _facts(content: Content, key: str) -> Fold:
    rows = tuple(
        Row(
            cells=(
                Cell(name),
                Cell(MISSING if fact is None else str(fact)),
                Cell("must match" if name in content.comparable else ""),
            ),
        )
        for name, fact in sorted(content.places.get(key, {}).items())
    )
    table = Table(
        caption=f"Facts of environment {key}",
        header=("fact", "value", "for a comparison"),
        rows=rows,
    )
    return Fold(summary=f"{len(rows)} facts", blocks=(table,))
