"""How much of the hardware a group's runs use: MBU and MFU against the measured ceilings, the roofline, memory of each rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pytest_llmperf.core.format import MISSING, format_number, format_value
from pytest_llmperf.core.record import Record
from pytest_llmperf.report.html.blocks import Block, Cell, Figure, Fold, Note, Part, Row, Table
from pytest_llmperf.report.html.runs import Group, metric, named, shown, value, words

_GAUGES = (
    ("weights", "weights"),
    ("kv_cache", "KV cache"),
    ("peak", "peak"),
    ("reserved", "reserved"),
    ("process", "process"),
)
_GB = 1e9
_OVER = "Above 100 %: the model was faster than the micro-benchmark that measured this device's ceiling."


class _Place(NamedTuple):
    """Where a run stands under its roof: FLOP/byte, FLOP/s, and the two ceilings."""

    name: str
    intensity: float
    flop_per_s: float
    roof_flop_per_s: float
    roof_bytes_per_s: float
    dtype: str


def parts(group: Group) -> list[Part]:
    """Use of bandwidth and arithmetic, and of memory by rank where there are several."""
    found = [
        Part(
            title="Use of the hardware",
            blocks=tuple(_use(group)),
            lead="Shares of what this device itself reached.",
        )
    ]
    ranked = [run for run in group.runs if isinstance(run.extra.get("memory_ranks"), list)]
    return (
        [*found, Part(title="Memory of each rank", blocks=tuple(_ranks(ranked)))]
        if ranked
        else found
    )


def _use(group: Group) -> list[Block]:
    rows = [
        {"name": named(run), "mbu": _percent(run, "mbu"), "mfu": _percent(run, "mfu")}
        for run in group.runs
        if value(run, "mbu") is not None or value(run, "mfu") is not None
    ]
    if not rows:
        return [Note(f"Neither MBU nor MFU could be measured: {_why(group.runs)}", "quiet")]
    seen = ", ".join(
        f"{named(run)} MBU {shown(run, 'mbu', 2)} MFU {shown(run, 'mfu', 2)}" for run in group.runs
    )
    bars = Figure(
        chart="shares",
        title="MBU and MFU",
        alt=f"Shares of the measured copy bandwidth and matmul rate: {seen}.",
        data={"rows": rows},
        note=_OVER
        if any((value(run, name) or 0) > 1 for run in group.runs for name in ("mbu", "mfu"))
        else "",
    )
    return [bars, *_roofline(group)]


def _percent(run: Record, name: str) -> float | None:
    found = value(run, name)
    return None if found is None else 100 * found


def _why(runs: Sequence[Record]) -> str:
    found = (metric(run, "mbu") for run in runs)
    return (
        next(
            (each.reason for each in found if each is not None and each.reason),
            "no reason was recorded",
        )
        + "."
    )


def _roofline(group: Group) -> list[Block]:
    """From shares and ceilings: attained = share x ceiling, intensity = attained FLOP/s over attained bytes/s."""
    places = [place for run in group.runs if (place := _place(run)) is not None]
    if not places:
        return [
            Note(
                "There is no roofline: the device's ceilings were not recorded with these runs.",
                "quiet",
            )
        ]
    roofs: dict[tuple[float, float], list[str]] = {}
    for place in places:
        dtypes = roofs.setdefault((place.roof_flop_per_s, place.roof_bytes_per_s), [])
        dtypes += [place.dtype] if place.dtype not in dtypes else []
    seen = ", ".join(f"{p.name} at {format_number(p.intensity)} FLOP/B" for p in places)
    figure = Figure(
        chart="roofline",
        title="Roofline of a step",
        alt=f"Arithmetic against bytes moved, below the roof of this device: {seen}.",
        data={
            "points": [
                {"name": p.name, "x": p.intensity, "y": p.flop_per_s / 1e9, "tip": _tip(p)}
                for p in places
            ],
            "roofs": [
                {"flops": f / 1e9, "bytes": b / 1e9, "dtype": ", ".join(dtypes)}
                for (f, b), dtypes in sorted(roofs.items())
            ],
        },
        note="Left of the corner the memory bandwidth is the limit, right of it the arithmetic. Both were measured here.",
    )
    return [figure, Fold(summary="Roofline as a table", blocks=(_roofline_table(places),))]


def _place(run: Record) -> _Place | None:
    kept, mbu, mfu = run.extra.get("ceilings"), value(run, "mbu"), value(run, "mfu")
    if not isinstance(kept, dict) or not mbu or not mfu:
        return None
    bytes_per_s, flop_per_s = mbu * kept["copy_bytes_per_s"], mfu * kept["flop_per_s"]
    return _Place(
        named(run),
        flop_per_s / bytes_per_s,
        flop_per_s,
        kept["flop_per_s"],
        kept["copy_bytes_per_s"],
        str(kept["dtype"]),
    )


def _tip(place: _Place) -> str:
    attained = f"{format_number(place.flop_per_s / 1e9)} of {format_number(place.roof_flop_per_s / 1e9)} GFLOP/s"
    return f"{place.name}\n{attained}\n{format_number(place.intensity)} FLOP per byte"


def _roofline_table(places: Sequence[_Place]) -> Table:
    rows = [
        Row(
            cells=(
                Cell(p.name),
                Cell(f"{format_number(p.intensity)} FLOP/B"),
                Cell(f"{format_number(p.flop_per_s / 1e9)} GFLOP/s"),
                Cell(f"{format_number(p.roof_flop_per_s / 1e9)} GFLOP/s", p.dtype),
                Cell(f"{format_value(p.roof_bytes_per_s, 'B')}/s"),
            ),
        )
        for p in places
    ]
    header = ("strategy", "intensity", "attained", "matmul ceiling", "copy ceiling")
    return Table(caption="Roofline of a step", header=header, rows=tuple(rows), first_number=1)


def _ranks(runs: Sequence[Record]) -> list[Block]:
    bars = [
        {"name": named(run), "rank": f"rank {rank}", "gauge": title, "gb": gauges[gauge] / _GB}
        for run in runs
        for rank, gauges in enumerate(run.extra["memory_ranks"])
        for gauge, title in _GAUGES[:3]
        if isinstance(gauges.get(gauge), int)
    ]
    rows = [
        Row(
            cells=(
                Cell(named(run)),
                Cell(str(rank)),
                *(_bytes(gauges, gauge) for gauge, _ in _GAUGES),
            ),
            words=words(run),
            outcome=run.outcome,
        )
        for run in runs
        for rank, gauges in enumerate(run.extra["memory_ranks"])
    ]
    alt = f"Weights, KV cache and peak of each rank, for {', '.join(named(run) for run in runs)}. The same as a table below."
    figure = Figure(chart="ranks", title="Memory of each rank", alt=alt, data={"rows": bars})
    header = ("strategy", "rank", *(title for _, title in _GAUGES))
    return [
        figure,
        Table(caption="Memory of each rank", header=header, rows=tuple(rows), first_number=2),
    ]


def _bytes(gauges: dict[str, Any], name: str) -> Cell:
    found = gauges.get(name)
    reason = (gauges.get("reasons") or {}).get(name, "")
    return (
        Cell(format_value(found, "B"))
        if isinstance(found, int)
        else Cell(MISSING, str(reason), "quiet")
    )
