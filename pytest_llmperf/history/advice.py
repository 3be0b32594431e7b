"""What is stored of one model in one environment, as choices to advise on.

Where several could be meant, the user chooses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct

from pytest_llmperf.core.advice import Choice, Reading
from pytest_llmperf.core.metrics.quantities import CPU_GROWTH
from pytest_llmperf.errors import UsageError, did_you_mean
from pytest_llmperf.history.results import MeasuredMetric

if TYPE_CHECKING:
    from pytest_llmperf.history.store import Store

_SPEEDS = ("throughput", "prefill_throughput")
_PEAK = "memory.peak"
_DIRECT = {"agreement.top1": "top1", "agreement.perplexity_ratio": "perplexity", "ttft.p50": "ttft"}
_NAMES = (*_SPEEDS, _PEAK, *_DIRECT)
_NULL = "not measurable when it was last measured"

_RowsByStrategy = dict[tuple[str, str], list[MeasuredMetric]]
"""Rows by strategy and engine."""


class Selection(Struct, frozen=True, kw_only=True):
    """What the user chose, by key or by a part of its text. None: the only one there is."""

    model: str | None = None
    environment: str | None = None
    workload: str | None = None
    agreement: str | None = None


class Candidates(Struct, frozen=True, kw_only=True):
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


class _Place(NamedTuple):
    """An environment, in words too, and whether it computes on a CPU."""

    key: str
    text: str
    on_cpu: bool


class _Workload(NamedTuple):
    key: str
    text: str


class _Comparison(NamedTuple):
    """An agreement in words, and its series with the strategy that each was compared with."""

    text: str
    references: dict[str, str]


def find(store: Store, selection: Selection) -> Candidates:
    """Return the strategies of one model, environment, workload and agreement.

    Each is judged by its newest values.

    Raises:
        UsageError: nothing is stored, nothing is what was selected, or several are and none was
            named: all are listed.
    """
    rows = _measured(store)
    rows, model = _select_model(rows, selection.model)
    rows, place = _select_environment(store, rows, selection.environment)
    workload = _select_workload(rows, selection.workload)
    comparison = _select_agreement(store, rows, selection.agreement)
    references = comparison.references
    chosen = [
        row for row in rows if row.workload_key == workload.key or row.series_key in references
    ]
    return Candidates(
        choices=_choices(chosen, set(references.values()), on_cpu=place.on_cpu),
        model=model,
        environment_key=place.key,
        environment=place.text,
        workload=workload.text,
        agreement=comparison.text,
        memory="peak of a run",
    )


def _measured(store: Store) -> list[MeasuredMetric]:
    """Return every metric that advice may rest on. Raises UsageError where no run has a speed."""
    rows = store.measured(_NAMES)
    if not any(map(_is_speed, rows)):
        raise UsageError(
            f"{store.public_url} holds no run that was measured. "
            "A pytest run with llmperf tests fills it."
        )
    return rows


def _is_speed(row: MeasuredMetric) -> bool:
    return row.name in _SPEEDS and row.value is not None


def _select_model(
    rows: Sequence[MeasuredMetric], text: str | None
) -> tuple[list[MeasuredMetric], str]:
    models = {row.model: row.model for row in rows if _is_speed(row)}
    model = _select("model", models, text)
    return [row for row in rows if row.model == model], model


def _select_environment(
    store: Store, rows: Sequence[MeasuredMetric], text: str | None
) -> tuple[list[MeasuredMetric], _Place]:
    keys = dict.fromkeys(row.environment_key for row in rows if _is_speed(row))
    places = {key: _place(store, key) for key in keys}
    key = _select("environment", {key: place.text for key, place in places.items()}, text)
    return [row for row in rows if row.environment_key == key], places[key]


def _select_workload(rows: Sequence[MeasuredMetric], text: str | None) -> _Workload:
    runs = [row for row in rows if _is_speed(row)]
    key = _select("workload", {row.workload_key: row.workload_text for row in runs}, text)
    return _Workload(key, next(row.workload_text for row in runs if row.workload_key == key))


def _select_agreement(
    store: Store, rows: Sequence[MeasuredMetric], text: str | None
) -> _Comparison:
    """Return the agreement by which strategies are compared, an empty one without any."""
    references_by_text: dict[str, dict[str, str]] = {}
    for row in _newest_top1_of_each_series(rows):
        reference = _reference(store, row)
        comparison = _comparison_text(row, reference)
        references_by_text.setdefault(comparison, {})[row.series_key] = reference
    if not references_by_text:
        return _Comparison("", {})
    chosen = _select("agreement", {name: name for name in references_by_text}, text)
    return _Comparison(chosen, references_by_text[chosen])


def _newest_top1_of_each_series(rows: Sequence[MeasuredMetric]) -> list[MeasuredMetric]:
    newest: dict[str, MeasuredMetric] = {}
    for row in rows:
        if row.name == "agreement.top1":
            newest.setdefault(row.series_key, row)
    return list(newest.values())


def _reference(store: Store, row: MeasuredMetric) -> str:
    """Return the strategy that an agreement was measured against, "" where it is not known."""
    record = next(store.records(series=row.series_key, environment=row.environment_key, limit=1))
    return str((record.agreement or {}).get("reference") or "")


def _comparison_text(row: MeasuredMetric, reference: str) -> str:
    against = reference or "an unnamed reference"
    return f"{row.workload_text} {row.workload_key[:6]} against {against}"


def _choices(
    rows: Sequence[MeasuredMetric], references: set[str], *, on_cpu: bool
) -> tuple[Choice, ...]:
    rows_by_strategy = _by_strategy(rows)
    several_engines = len({engine for _, engine in rows_by_strategy}) > 1
    choices = []
    for strategy, engine in sorted(rows_by_strategy):
        name = f"{strategy} [{engine}]" if several_engines else strategy
        same_strategy = rows_by_strategy[strategy, engine]
        is_reference = strategy in references
        choices.append(_choice(name, same_strategy, is_reference=is_reference, on_cpu=on_cpu))
    return tuple(choices)


def _by_strategy(rows: Iterable[MeasuredMetric]) -> _RowsByStrategy:
    rows_by_strategy: _RowsByStrategy = {}
    for row in rows:
        rows_by_strategy.setdefault((row.strategy, row.engine), []).append(row)
    return rows_by_strategy


def _choice(
    name: str, rows: Sequence[MeasuredMetric], *, is_reference: bool, on_cpu: bool
) -> Choice:
    # Rows come newest first: read backwards, the newest of each metric is the one that stays.
    newest = {row.name: row for row in reversed(rows)}
    readings = _readings(newest, on_cpu=on_cpu)
    # A reference agrees with itself in every position, whether or not a test says so.
    if is_reference:
        for axis in ("top1", "perplexity"):
            readings[axis] = readings.get(axis) or Reading(value=1.0)
    known = {axis: reading for axis, reading in readings.items() if reading is not None}
    reasons = {axis: _NULL for axis in readings if axis not in known}
    return Choice(name=name, readings=known, reasons=reasons)


def _readings(newest: Mapping[str, MeasuredMetric], *, on_cpu: bool) -> dict[str, Reading | None]:
    """Return a reading of each axis that was ever measured, None where the newest has no value."""
    axes = {**_DIRECT, _speed_name(newest.values()): "speed"}
    readings = {axis: _reading(newest[name]) for name, axis in axes.items() if name in newest}
    if _PEAK in newest:
        readings["memory"] = _memory(newest, on_cpu=on_cpu)
    return readings


def _speed_name(rows: Iterable[MeasuredMetric]) -> str:
    is_prefill = any(row.workload_text.startswith("prefill") for row in rows)
    return "prefill_throughput" if is_prefill else "throughput"


def _memory(newest: Mapping[str, MeasuredMetric], *, on_cpu: bool) -> Reading | None:
    """Return the memory of a run.

    It is the peak, which holds the weights. On a CPU the first definition was the growth alone:
    that is another quantity, and no memory is known of a run that was measured so.
    """
    peak = newest.get(_PEAK)
    if peak is None or peak.value is None or (on_cpu and peak.formula == CPU_GROWTH):
        return None
    return Reading(value=peak.value, created=peak.created)


def _reading(row: MeasuredMetric) -> Reading | None:
    if row.value is None:
        return None
    return Reading(value=row.value, low=row.low, high=row.high, created=row.created)


def _place(store: Store, key: str) -> _Place:
    facts = next(store.records(environment=key, limit=1)).environment.facts
    device = str(facts.get("device") or "")
    return _Place(key, _place_text(device, facts), on_cpu=device.startswith("cpu"))


def _place_text(device: str, facts: Mapping[str, Any]) -> str:
    names = [str(facts[name]) for name in ("device_name", "cpu_model") if facts.get(name)]
    words = [device, *dict.fromkeys(names)]
    if facts.get("cpu_cores_limit"):
        words.append(f"{facts['cpu_cores_limit']:g} cores")
    return ", ".join(word for word in words if word)


def _select(kind: str, known: Mapping[str, str], text: str | None) -> str:
    """Return the key that is meant. Raises UsageError with all of them unless it is exactly one."""
    matches = list(known) if text is None else _matches(known, text)
    if len(matches) == 1:
        return matches[0]
    listed = _listed(known)
    if text is None:
        raise UsageError(
            f"the history holds several {kind}s: choose one with --{kind} TEXT.{listed}"
        )
    problem = "several match." if matches else f"none is.{did_you_mean(text, known.values())}"
    raise UsageError(f"--{kind} {text!r}: {problem} There are:{listed}")


def _listed(known: Mapping[str, str]) -> str:
    """Return all keys with their texts, one a line."""
    return "".join(f"\n  {_key_and_text(key, name)}" for key, name in known.items())


def _key_and_text(key: str, name: str) -> str:
    return key if key == name else f"{key}  {name}"


def _matches(known: Mapping[str, str], text: str) -> list[str]:
    """Return the keys that are this text, else those that it is a part of."""
    return _exact_matches(known, text) or _partial_matches(known, text)


def _exact_matches(known: Mapping[str, str], text: str) -> list[str]:
    return [key for key, name in known.items() if text in (key, name)]


def _partial_matches(known: Mapping[str, str], text: str) -> list[str]:
    return [key for key, name in known.items() if text in key or text in name]
