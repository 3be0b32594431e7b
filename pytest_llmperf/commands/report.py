"""`llmperf report`: stored runs as something to look at or to hand on.

The formats are a table: one row each.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click
from msgspec import Struct

from pytest_llmperf.commands.shared import (
    as_text,
    example,
    open_history,
    project_root,
    require_known,
    require_metric,
    store_option,
)
from pytest_llmperf.core.format import format_value
from pytest_llmperf.errors import UsageError

if TYPE_CHECKING:
    from pytest_llmperf.core.record import Record
    from pytest_llmperf.history.store import Store

_SPANS_H = {"h": 1, "d": 24, "w": 24 * 7}


class Chosen(Struct, frozen=True, kw_only=True):
    """What a format shows: records of the open store, and in words which these are."""

    store: Store
    records: tuple[Record, ...]
    scope: str
    metric: str | None = None


class Format(Struct, frozen=True, kw_only=True):
    """A format of the command. `file` is where it is written by default; "-" is standard output."""

    name: str
    summary: str
    file: str
    text: Callable[[Chosen], str]


def _html(chosen: Chosen) -> str:
    from pytest_llmperf.plugin.files.content import content  # noqa: PLC0415
    from pytest_llmperf.report.html import build  # noqa: PLC0415 - each format loads what it needs

    return build(
        content(
            chosen.records,
            scope=chosen.scope,
            store=chosen.store,
            root=project_root(),
            metric=chosen.metric,
        )
    )


def _markdown(chosen: Chosen) -> str:
    from pytest_llmperf.gate.lineage import Lineage  # noqa: PLC0415
    from pytest_llmperf.history import accept  # noqa: PLC0415
    from pytest_llmperf.plugin.files.before_after import compared, gate_limits  # noqa: PLC0415
    from pytest_llmperf.report.markdown import comment, origin  # noqa: PLC0415

    limits = gate_limits(project_root(), chosen.metric)
    return comment(
        compared(
            chosen.records,
            chosen.store,
            accept.reviewed(project_root()),
            limits,
            Lineage(project_root()),
        ),
        origin=origin(chosen.records),
        notes=[chosen.scope],
    )


def _openmetrics(chosen: Chosen) -> str:
    from pytest_llmperf.report.openmetrics import exposition  # noqa: PLC0415

    return exposition(chosen.records)


def _json(chosen: Chosen) -> str:
    return as_text({"scope": chosen.scope, "records": chosen.records}) + "\n"


FORMATS = (
    Format(
        name="html",
        summary="One HTML file that needs no network (the default).",
        file="llmperf-report.html",
        text=_html,
    ),
    Format(
        name="markdown",
        summary="Body of a comment: each run beside what was before it.",
        file="-",
        text=_markdown,
    ),
    Format(
        name="openmetrics", summary="OpenMetrics text, for Prometheus.", file="-", text=_openmetrics
    ),
    Format(
        name="json",
        summary="One JSON document with the records ('llmperf schema').",
        file="-",
        text=_json,
    ),
)


def _format_options(command: Callable[..., None]) -> Callable[..., None]:
    for row in reversed(FORMATS):
        command = click.option(f"--{row.name}", is_flag=True, help=row.summary)(command)
    return command


@click.command(
    "report",
    short_help="Stored runs as one HTML file, or in another format.",
    epilog=example(
        "llmperf report --since 7d --strategy bf16", "llmperf report --markdown --session last"
    ),
)
@click.argument("tests", nargs=-1, metavar="[TEST]…")
@_format_options
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write it; - is standard output.",
)
@click.option(
    "--since",
    metavar="TIME",
    help="Only runs from then on: ISO 8601, or a span such as 12h, 7d, 2w.",
)
@click.option(
    "--session",
    metavar="ID",
    help="Only the runs of this session (the start of its id), or 'last'.",
)
@click.option("--model", metavar="TEXT", help="Only models with this in their name.")
@click.option("--strategy", metavar="TEXT", help="Only this strategy.")
@click.option(
    "--metric", metavar="NAME", help="Metric of the histories (default: the speed of the work)."
)
@store_option
def report_command(
    tests: tuple[str, ...],
    out: Path | None,
    since: str | None,
    session: str | None,
    model: str | None,
    strategy: str | None,
    metric: str | None,
    store: str | None,
    **formats: bool,
) -> None:
    """Stored runs as one HTML file, or in another format. TEST is a node id or a part of one.

    Shown are the runs of each series' newest session, and the history of these series.
    """
    chosen_format = _format(formats)
    names = ", ".join(tests)
    filters = _filters(tests=names, since=since, session=session, model=model, strategy=strategy)
    with open_history(store) as opened:
        require_metric(opened, metric)
        records = _matching(_records(opened, tests, _time(since), session), model, strategy)
        scope = "; ".join([_extent(records), *filters])
        text = chosen_format.text(Chosen(store=opened, records=records, scope=scope, metric=metric))
    _write(text, out or Path(chosen_format.file), len(records))


def _format(flags: Mapping[str, bool]) -> Format:
    chosen = [row for row in FORMATS if flags[row.name]] or [FORMATS[0]]
    _require_one(chosen)
    return chosen[0]


def _require_one(chosen: Sequence[Format]) -> None:
    if len(chosen) > 1:
        names = " and ".join(f"--{row.name}" for row in chosen)
        raise UsageError(f"{names} cannot both be made at once: take one.")


# Which records


def _records(
    store: Store, parts: tuple[str, ...], since: str | None, session: str | None
) -> list[Record]:
    """The records of tests that have one of the parts in their name; all without parts."""
    from pytest_llmperf.plugin.files.content import newest_of_each  # noqa: PLC0415

    def matches(test: str) -> bool:
        return not parts or any(part in test for part in parts)

    if session is not None:
        return [record for record in _session_records(store, session) if matches(record.test)]
    require_known(parts, store)
    return newest_of_each(store, (row for row in store.series() if matches(row.test)), since)


def _matching(
    records: Sequence[Record], model: str | None, strategy: str | None
) -> tuple[Record, ...]:
    """The records of models with this in their name, and of this strategy."""
    return tuple(
        record
        for record in records
        if (model or "") in record.model and strategy in (None, record.strategy)
    )


def _session_records(store: Store, start: str) -> list[Record]:
    if start == "last":
        newest = next(iter(store.records(limit=1)), None)
        start = newest.session_id if newest is not None else ""
        if not start:
            return []
    records = [record for record in store.find(start) if record.session_id.startswith(start)]
    if not records:
        raise UsageError(
            f"no session in {store.public_url} begins with {start!r}. "
            "'llmperf export' shows the ids of all records."
        )
    return records


def _time(text: str | None) -> str | None:
    """ISO 8601 of a time, or of a span before now. Raises UsageError for anything else."""
    if text is None:
        return None
    if _is_span(text):
        return _time_before_now(text)
    return _iso_time(text)


def _is_span(text: str) -> bool:
    return text[-1:] in _SPANS_H and text[:-1].isdigit()


def _time_before_now(span: str) -> str:
    return (datetime.now(UTC) - timedelta(hours=_hours(span))).isoformat()


def _hours(span: str) -> int:
    return int(span[:-1]) * _SPANS_H[span[-1]]


def _iso_time(text: str) -> str:
    try:
        return datetime.fromisoformat(text).isoformat()
    except ValueError as error:
        raise UsageError(
            f"--since {text!r} is neither a time such as 2026-11-23 "
            "nor a span such as 12h, 7d or 2w."
        ) from error


# In words


def _filters(**values: str | None) -> list[str]:
    """For example: `since 7d`."""
    return [f"{name} {value}" for name, value in values.items() if value]


def _extent(records: Sequence[Record]) -> str:
    """For example: `12 records of 2 sessions, 2026-11-20 to 2026-11-23`."""
    if not records:
        return "no stored run"
    return f"{_runs(records)}, {_first_and_last_day(records)}"


def _runs(records: Sequence[Record]) -> str:
    n_sessions = len({record.session_id for record in records})
    return f"{_count(len(records), 'record')} of {_count(n_sessions, 'session')}"


def _first_and_last_day(records: Sequence[Record]) -> str:
    days = [record.created[:10] for record in records]
    return " to ".join(dict.fromkeys((min(days), max(days))))


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _write(text: str, out: Path, n: int) -> None:
    encoded = text.encode("utf-8", "replace")
    if str(out) == "-":
        sys.stdout.buffer.write(encoded)
        return
    _write_file(encoded, out)
    click.echo(f"{_count(n, 'record')} in {out} ({format_value(len(encoded), 'B')})")


def _write_file(encoded: bytes, out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(encoded)
    except OSError as error:
        raise UsageError(
            f"{out} cannot be written: {error}. Name another file with --out."
        ) from error
