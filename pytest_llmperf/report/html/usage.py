"""How much of the hardware a group's runs use: MBU and MFU, the roofline, memory of each rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import starmap
from typing import Any, NamedTuple

from pytest_llmperf.core.format import MISSING, format_number, format_value
from pytest_llmperf.core.record import Record
from pytest_llmperf.report.html.blocks import Block, Cell, Figure, Fold, Note, Part, Row, Table
from pytest_llmperf.report.html.groups import GroupView
from pytest_llmperf.report.html.runs import metric, record_row, strategy_name, value, value_text

_GAUGES = (
    ("weights", "weights"),
    ("kv_cache", "KV cache"),
    ("peak", "peak"),
    ("reserved", "reserved"),
    ("process", "process"),
)
_DRAWN_GAUGES = _GAUGES[:3]
_RANKS_HEADER = ("strategy", "rank", *(title for _, title in _GAUGES))
_SHARES = ("mbu", "mfu")
_GB = 1e9
_OVER = (
    "Above 100 %: the model was faster than "
    "the micro-benchmark that measured this device's ceiling."
)
_NO_ROOFLINE = "There is no roofline: the device's ceilings were not recorded with these runs."
_ROOFLINE_NOTE = (
    "Left of the corner the memory bandwidth is the limit, right of it the arithmetic. "
    "Both were measured here."
)


class _Place(NamedTuple):
    """Where a run is placed under its roof: FLOP/byte, FLOP/s, and the two ceilings."""

    name: str
    intensity: float
    flop_per_s: float
    roof_flop_per_s: float
    roof_bytes_per_s: float
    dtype: str


def parts(group: GroupView) -> list[Part]:
    """Return the use of bandwidth and arithmetic, and of memory by rank where there are several."""
    use = Part(
        title="Use of the hardware",
        blocks=tuple(_use(group.runs)),
        lead="Shares of what this device itself reached.",
    )
    ranked = [run for run in group.runs if isinstance(run.extra.get("memory_ranks"), list)]
    if not ranked:
        return [use]
    blocks = (_ranks_figure(ranked), _ranks_table(ranked))
    return [use, Part(title="Memory of each rank", blocks=blocks)]


def _use(runs: Sequence[Record]) -> list[Block]:
    measured = [run for run in runs if any(value(run, name) is not None for name in _SHARES)]
    if not measured:
        return [Note(f"Neither MBU nor MFU could be measured: {_reason(runs)}.", "quiet")]
    bars = Figure(
        chart="shares",
        title="MBU and MFU",
        alt=f"Shares of the measured bandwidth and matmul rate: {_shares_text(runs)}.",
        data={"rows": list(map(_shares_data, measured))},
        note=_OVER if _is_over_ceiling(runs) else "",
    )
    return [bars, *_roofline(runs)]


def _shares_data(run: Record) -> dict[str, Any]:
    return {"name": strategy_name(run), "mbu": _percent(run, "mbu"), "mfu": _percent(run, "mfu")}


def _is_over_ceiling(runs: Sequence[Record]) -> bool:
    return any((value(run, name) or 0) > 1 for run in runs for name in _SHARES)


def _shares_text(runs: Sequence[Record]) -> str:
    return ", ".join(
        f"{strategy_name(run)} MBU {value_text(run, 'mbu', 2)} MFU {value_text(run, 'mfu', 2)}"
        for run in runs
    )


def _percent(run: Record, name: str) -> float | None:
    share = value(run, name)
    return None if share is None else 100 * share


def _reason(runs: Sequence[Record]) -> str:
    """Return why the first run that says so has no MBU."""
    for run in runs:
        mbu = metric(run, "mbu")
        if mbu is not None and mbu.reason:
            return mbu.reason
    return "no reason was recorded"


def _roofline(runs: Sequence[Record]) -> list[Block]:
    """Return the roofline, drawn from shares and ceilings.

    Attained = share x ceiling, intensity = attained FLOP/s over attained bytes/s.
    """
    places = _places(runs)
    if not places:
        return [Note(_NO_ROOFLINE, "quiet")]
    return [_roofline_figure(places), _roofline_fold(places)]


def _roofline_fold(places: Sequence[_Place]) -> Fold:
    return Fold(summary="Roofline as a table", blocks=(_roofline_table(places),))


def _places(runs: Sequence[Record]) -> list[_Place]:
    return [place for run in runs if (place := _place(run)) is not None]


def _roofline_figure(places: Sequence[_Place]) -> Figure:
    texts = ", ".join(map(_intensity_text, places))
    return Figure(
        chart="roofline",
        title="Roofline of a step",
        alt=f"Arithmetic against bytes moved, below the roof of this device: {texts}.",
        data=_roofline_data(places),
        note=_ROOFLINE_NOTE,
    )


def _intensity_text(place: _Place) -> str:
    return f"{place.name} at {format_number(place.intensity)} FLOP/B"


def _roofline_data(places: Sequence[_Place]) -> dict[str, Any]:
    return {"points": [_point(place) for place in places], "roofs": _roofs(places)}


def _place(run: Record) -> _Place | None:
    mbu, mfu = value(run, "mbu"), value(run, "mfu")
    ceilings = run.extra.get("ceilings")
    if not isinstance(ceilings, dict) or not mbu or not mfu:
        return None
    roof_flop_per_s: float = ceilings["flop_per_s"]
    # Before mbu/3 the roof was the bandwidth of a copy.
    roof_bytes_per_s: float = ceilings.get("bytes_per_s") or ceilings["copy_bytes_per_s"]
    flop_per_s, bytes_per_s = mfu * roof_flop_per_s, mbu * roof_bytes_per_s
    return _Place(
        name=strategy_name(run),
        intensity=flop_per_s / bytes_per_s,
        flop_per_s=flop_per_s,
        roof_flop_per_s=roof_flop_per_s,
        roof_bytes_per_s=roof_bytes_per_s,
        dtype=str(ceilings["dtype"]),
    )


def _point(place: _Place) -> dict[str, Any]:
    return {
        "name": place.name,
        "x": place.intensity,
        "y": place.flop_per_s / 1e9,
        "tip": _tip(place),
    }


def _tip(place: _Place) -> str:
    intensity = f"{format_number(place.intensity)} FLOP per byte"
    return f"{place.name}\n{_attained_text(place)}\n{intensity}"


def _attained_text(place: _Place) -> str:
    attained, roof = _giga_text(place.flop_per_s), _giga_text(place.roof_flop_per_s)
    return f"{attained} of {roof} GFLOP/s"


def _giga_text(flop_per_s: float) -> str:
    return format_number(flop_per_s / 1e9)


def _roofs(places: Sequence[_Place]) -> list[dict[str, Any]]:
    """Return each roof once, with the dtypes that were measured under it."""
    dtypes_by_roof: dict[tuple[float, float], list[str]] = {}
    for place in places:
        roof = (place.roof_flop_per_s, place.roof_bytes_per_s)
        dtypes = dtypes_by_roof.setdefault(roof, [])
        if place.dtype not in dtypes:
            dtypes.append(place.dtype)
    return [
        {"flops": flop_per_s / 1e9, "bytes": bytes_per_s / 1e9, "dtype": ", ".join(dtypes)}
        for (flop_per_s, bytes_per_s), dtypes in sorted(dtypes_by_roof.items())
    ]


def _roofline_table(places: Sequence[_Place]) -> Table:
    return Table(
        caption="Roofline of a step",
        header=("strategy", "intensity", "attained", "matmul ceiling", "copy ceiling"),
        rows=tuple(map(_roofline_row, places)),
        first_number=1,
    )


def _roofline_row(place: _Place) -> Row:
    attained = f"{_giga_text(place.flop_per_s)} GFLOP/s"
    roof = f"{_giga_text(place.roof_flop_per_s)} GFLOP/s"
    cells = (
        Cell(place.name),
        Cell(f"{format_number(place.intensity)} FLOP/B"),
        Cell(attained),
        Cell(roof, place.dtype),
        Cell(f"{format_value(place.roof_bytes_per_s, 'B')}/s"),
    )
    return Row(cells=cells)


def _ranks(runs: Sequence[Record]) -> Iterator[tuple[Record, int, dict[str, Any]]]:
    """Yield each rank of each run, with what its gauges read."""
    for run in runs:
        for rank, gauges in enumerate(run.extra["memory_ranks"]):
            yield run, rank, gauges


def _ranks_figure(runs: Sequence[Record]) -> Figure:
    bars = [
        {
            "name": strategy_name(run),
            "rank": f"rank {rank}",
            "gauge": title,
            "gb": gauges[gauge] / _GB,
        }
        for run, rank, gauges in _ranks(runs)
        for gauge, title in _DRAWN_GAUGES
        if isinstance(gauges.get(gauge), int)
    ]
    names = ", ".join(map(strategy_name, runs))
    alt = f"Weights, KV cache and peak of each rank, for {names}. The same as a table below."
    return Figure(chart="ranks", title="Memory of each rank", alt=alt, data={"rows": bars})


def _ranks_table(runs: Sequence[Record]) -> Table:
    return Table(
        caption="Memory of each rank",
        header=_RANKS_HEADER,
        rows=tuple(starmap(_rank_row, _ranks(runs))),
        first_number=2,
    )


def _rank_row(run: Record, rank: int, gauges: dict[str, Any]) -> Row:
    names = Cell(strategy_name(run)), Cell(str(rank))
    return record_row(run, *names, *_gauge_cells(gauges))


def _gauge_cells(gauges: dict[str, Any]) -> list[Cell]:
    return [_gauge_cell(gauges, name) for name, _ in _GAUGES]


def _gauge_cell(gauges: dict[str, Any], name: str) -> Cell:
    n_bytes = gauges.get(name)
    if isinstance(n_bytes, int):
        return Cell(format_value(n_bytes, "B"))
    return _missing_gauge_cell(gauges, name)


def _missing_gauge_cell(gauges: dict[str, Any], name: str) -> Cell:
    reason = (gauges.get("reasons") or {}).get(name, "")
    return Cell(MISSING, str(reason), "quiet")
