"""What is stored of one model in one environment, as choices to advise on.

Where several could be meant, the user chooses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from pytest_llmperf.core.advice import Choice, Reading
from pytest_llmperf.errors import UsageError, did_you_mean
from pytest_llmperf.history.results import MeasuredMetric

if TYPE_CHECKING:
    from pytest_llmperf.history.store import Store

_SPEEDS = ("throughput", "prefill_throughput")
_PARTS = ("memory.weights", "memory.peak")
_DIRECT = {"agreement.top1": "top1", "agreement.perplexity_ratio": "perplexity", "ttft.p50": "ttft"}
_NAMES = (*_SPEEDS, *_PARTS, *_DIRECT)
_NULL = "not measurable when it was last measured"


class Wanted(Struct, frozen=True, kw_only=True):
    """What the user chose, by key or by a part of its text. None: the only one there is."""

    model: str | None = None
    environment: str | None = None
    workload: str | None = None
    agreement: str | None = None


class Found(Struct, frozen=True, kw_only=True):
    """The choices, and in words what they are choices for.

    `agreement` is "" where none was measured.
    """

    choices: tuple[Choice, ...]
    model: str
    environment_key: str
    environment: str
    workload: str
    agreement: str
    memory: str


def find(store: Store, wanted: Wanted) -> Found:
    """The strategies of one model, environment, workload and agreement, each by its newest values.

    Raises:
        UsageError: nothing is stored, nothing is what was wanted, or several are and none was
            named: all are listed.
    """
    rows = store.measured(_NAMES)
    runs = [row for row in rows if row.name in _SPEEDS and row.value is not None]
    if not runs:
        raise UsageError(
            f"{store.shown} holds no run that was measured. A pytest run with llmperf tests fills it."
        )
    model = _one("model", {row.model: row.model for row in runs}, wanted.model)
    rows, runs = (
        [row for row in rows if row.model == model],
        [row for row in runs if row.model == model],
    )
    places = {key: _place(store, key) for key in dict.fromkeys(row.environment_key for row in runs)}
    place = _one(
        "environment", {key: text for key, (text, _) in places.items()}, wanted.environment
    )
    rows, runs = (
        [row for row in rows if row.environment_key == place],
        [row for row in runs if row.environment_key == place],
    )
    workload = _one(
        "workload", {row.workload_key: row.workload_text for row in runs}, wanted.workload
    )
    question, references = _question(store, rows, wanted.agreement)
    text, on_cpu = places[place]
    chosen = [row for row in rows if row.workload_key == workload or row.series_key in references]
    return Found(
        choices=_choices(chosen, set(references.values()), on_cpu=on_cpu),
        model=model,
        environment_key=place,
        environment=text,
        workload=next(row.workload_text for row in runs if row.workload_key == workload),
        agreement=question,
        memory="weights + peak growth of a run" if on_cpu else "peak of a run",
    )


def _choices(
    rows: Sequence[MeasuredMetric], references: set[str], *, on_cpu: bool
) -> tuple[Choice, ...]:
    engines = {row.engine for row in rows}
    names = {
        (row.strategy, row.engine): f"{row.strategy} [{row.engine}]"
        if len(engines) > 1
        else row.strategy
        for row in rows
    }
    return tuple(
        _choice(
            name,
            [row for row in rows if (row.strategy, row.engine) == key],
            key[0] in references,
            on_cpu=on_cpu,
        )
        for key, name in sorted(names.items())
    )


def _choice(
    name: str, rows: Iterable[MeasuredMetric], is_reference: bool, *, on_cpu: bool
) -> Choice:
    newest: dict[str, MeasuredMetric] = {}
    for row in rows:
        newest.setdefault(row.name, row)
    speed = (
        "prefill_throughput"
        if any(row.workload_text.startswith("prefill") for row in newest.values())
        else "throughput"
    )
    readings = {
        axis: _reading(newest[metric])
        for metric, axis in {**_DIRECT, speed: "speed"}.items()
        if metric in newest
    }
    if not newest.keys().isdisjoint(_PARTS):
        readings["memory"] = _memory(newest, on_cpu=on_cpu)
    if is_reference:  # it agrees with itself in every position, whether or not a test says so
        readings |= {
            axis: readings.get(axis) or Reading(value=1.0) for axis in ("top1", "perplexity")
        }
    known = {axis: reading for axis, reading in readings.items() if reading is not None}
    return Choice(
        name=name, readings=known, reasons={axis: _NULL for axis in readings if axis not in known}
    )


def _memory(newest: Mapping[str, MeasuredMetric], *, on_cpu: bool) -> Reading | None:
    """A GPU's peak holds the weights.

    That of a CPU is the growth over a run, to which they are added.
    """
    parts = [newest[name] for name in (_PARTS if on_cpu else _PARTS[1:]) if name in newest]
    values = [part.value for part in parts if part.value is not None]
    if len(values) < (2 if on_cpu else 1):
        return None
    return Reading(value=sum(values), created=parts[0].created)


def _reading(row: MeasuredMetric) -> Reading | None:
    return (
        None
        if row.value is None
        else Reading(value=row.value, low=row.low, high=row.high, created=row.created)
    )


def _question(
    store: Store, rows: Sequence[MeasuredMetric], wanted: str | None
) -> tuple[str, dict[str, str]]:
    """The agreement that is compared, in words, and its series with the strategy that each was compared with."""
    asked: dict[str, dict[str, str]] = {}
    for row in rows:
        if row.name == "agreement.top1" and not any(
            row.series_key in series for series in asked.values()
        ):
            record = next(
                store.records(series=row.series_key, environment=row.environment_key, limit=1)
            )
            reference = str((record.agreement or {}).get("reference") or "")
            text = f"{row.workload_text} {row.workload_key[:6]} against {reference or 'an unnamed reference'}"
            asked.setdefault(text, {})[row.series_key] = reference
    if not asked:
        return "", {}
    chosen = _one("agreement", {text: text for text in asked}, wanted)
    return chosen, asked[chosen]


def _place(store: Store, key: str) -> tuple[str, bool]:
    """An environment in words, and whether it computes on a CPU."""
    facts = next(store.records(environment=key, limit=1)).environment.facts
    device = str(facts.get("device") or "")
    named = [str(facts[name]) for name in ("device_name", "cpu_model") if facts.get(name)]
    words = [
        device,
        *dict.fromkeys(named),
        *([f"{facts['cpu_cores_limit']:g} cores"] if facts.get("cpu_cores_limit") else []),
    ]
    return ", ".join(word for word in words if word), device.startswith("cpu")


def _one(what: str, known: Mapping[str, str], wanted: str | None) -> str:
    """The key that is meant. Raises UsageError with all of them unless it is exactly one."""
    if wanted is None:
        found = list(known)
    else:
        found = [key for key, text in known.items() if wanted in (key, text)] or [
            key for key, text in known.items() if wanted in key or wanted in text
        ]
    if len(found) == 1:
        return found[0]
    listed = "".join(
        f"\n  {key}" if key == text else f"\n  {key}  {text}" for key, text in known.items()
    )
    if wanted is None:
        raise UsageError(
            f"the history holds several {what}s: choose one with --{what} TEXT.{listed}"
        )
    how = "several match" if found else "none is"
    near = "" if found else did_you_mean(wanted, known.values())
    raise UsageError(f"--{what} {wanted!r}: {how}.{near} There are:{listed}")
