"""The runs by what may be compared: a page builds a view of each group once, for all sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from pytest_llmperf.core import advice
from pytest_llmperf.core.change import ratio_fields
from pytest_llmperf.core.format import format_value
from pytest_llmperf.core.record import Record
from pytest_llmperf.core.recorded_ratio import recorded_ratio
from pytest_llmperf.report.html.answers import agreement_of, number
from pytest_llmperf.report.html.runs import (
    headline,
    interval_text,
    is_run,
    memory_bytes,
    metric,
    newest,
    strategy_name,
    value,
    value_text,
)

DEFAULT_REFERENCE = "fp32"
MEMORY = "memory"
TOP1 = "top1"
AXES = (MEMORY, TOP1)
"""What speed is traded for: memory, and agreement with the reference."""


class Ratio(Struct, frozen=True, kw_only=True):
    """A speed over the reference's.

    The ends are None where there are too few samples for an interval.
    """

    ratio: float
    low: float | None = None
    high: float | None = None
    paired: bool

    @property
    def text(self) -> str:
        """The ratio in words, without its interval."""
        return format_value(self.ratio, "x")


class Standing(Struct, frozen=True, kw_only=True):
    """A strategy of a group by its newest run. What was not measured is None.

    `speed` is in the unit of the run's headline, and its interval reaches from `speed_low` to
    `speed_high`. `ratio` is None for the reference itself. `fronts` are the axes (of `AXES`) on
    which no other strategy beats it.
    """

    run: Record
    name: str
    speed: float
    speed_low: float | None = None
    speed_high: float | None = None
    speed_text: str = ""
    interval_text: str = ""
    memory_bytes: float | None = None
    top1: float | None = None
    agreement: Mapping[str, Any] | None = None
    ratio: Ratio | None = None
    fronts: frozenset[str] = frozenset()

    def traded(self, axis: str) -> float | None:
        """Return what speed is traded for: bytes of "memory", or the share of "top1"."""
        return self.memory_bytes if axis == MEMORY else self.top1

    @property
    def speed_with_interval(self) -> str:
        """The speed and its interval as one text."""
        return f"{self.speed_text} {self.interval_text}".strip()


class GroupView(Struct, frozen=True, kw_only=True):
    """The strategies that may be compared: of one model, workload and environment.

    `standings` has the newest run of each strategy, fastest first; `n_other_runs` counts the older
    ones. `reference` is the strategy that the others are compared with, "" where nobody ran it.
    """

    model: str
    workload: str
    environment_key: str
    reference: str
    standings: tuple[Standing, ...]
    n_other_runs: int

    @property
    def runs(self) -> tuple[Record, ...]:
        """The newest run of each strategy, fastest first."""
        return tuple(standing.run for standing in self.standings)

    @property
    def title(self) -> str:
        """Its model and workload in words."""
        return f"{self.model}, {self.workload}"

    @property
    def is_contest(self) -> bool:
        """Whether there are several strategies."""
        return len(self.standings) > 1

    @property
    def is_prefill(self) -> bool:
        """Whether speed is that of reading a prompt."""
        return headline(self.standings[0].run).startswith("prefill")


class _Key(NamedTuple):
    """What the runs of a group have in common."""

    model: str
    workload: str
    environment_key: str


def group_views(records: Sequence[Record]) -> list[GroupView]:
    """Return the runs by what may be compared, the largest group first."""
    runs_by_key: dict[_Key, list[Record]] = {}
    for record in records:
        if is_run(record) and value(record, headline(record)) is not None:
            key = _Key(record.model, record.workload_text, record.environment_key)
            runs_by_key.setdefault(key, []).append(record)
    views = [_group_view(key, runs, records) for key, runs in runs_by_key.items()]
    return sorted(views, key=_largest_first)


def _largest_first(view: GroupView) -> tuple[int, str, str]:
    return -len(view.standings), view.model, view.workload


def front(standings: Sequence[Standing], axis: str) -> set[str]:
    """Return the names of the strategies that no other beats in both speed and the axis.

    Only those that have both are compared.
    """
    choices = [
        _choice(standing, axis, traded)
        for standing in standings
        if (traded := standing.traded(axis)) is not None
    ]
    axes = ("speed", axis)
    return {
        choice.name
        for choice in choices
        if not any(advice.dominates(other, choice, axes) for other in choices)
    }


def _choice(standing: Standing, axis: str, traded: float) -> advice.Choice:
    readings = {
        "speed": advice.Reading(value=standing.speed),
        axis: advice.Reading(value=traded),
    }
    return advice.Choice(name=standing.name, readings=readings)


def _group_view(key: _Key, runs: Sequence[Record], records: Sequence[Record]) -> GroupView:
    newest_runs = _newest_of_each_strategy(runs)
    reference = _reference(key.model, runs, records)
    if all(run.strategy != reference for run in newest_runs):
        reference = ""
    standings = [_standing(run, runs, records, reference) for run in newest_runs]
    return GroupView(
        model=key.model,
        workload=key.workload,
        environment_key=key.environment_key,
        reference=reference,
        standings=tuple(_with_fronts(standings)),
        n_other_runs=len(runs) - len(newest_runs),
    )


def _newest_of_each_strategy(runs: Sequence[Record]) -> list[Record]:
    by_strategy: dict[str, list[Record]] = {}
    for run in runs:
        by_strategy.setdefault(strategy_name(run), []).append(run)
    return sorted(
        map(newest, by_strategy.values()),
        key=lambda run: (-(value(run, headline(run)) or 0.0), strategy_name(run)),
    )


def _reference(model: str, runs: Sequence[Record], records: Sequence[Record]) -> str:
    """Return what agreements of this model were measured against, else fp32."""
    of_model = [*runs, *_records_of_model(model, records)]
    references = map(_agreement_reference, of_model)
    return next(filter(None, references), DEFAULT_REFERENCE)


def _records_of_model(model: str, records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.model == model]


def _agreement_reference(record: Record) -> str:
    return str((record.agreement or {}).get("reference") or "")


def _standing(
    run: Record, group_runs: Sequence[Record], records: Sequence[Record], reference: str
) -> Standing:
    """Return the strategy's standing, its fronts apart.

    The reference agrees with itself whether or not a test says so.
    """
    name = headline(run)
    speed = metric(run, name)
    agreement = agreement_of(run, records)
    top1 = number(agreement, "top1")
    if top1 is None and run.strategy == reference:
        top1 = 1.0
    return Standing(
        run=run,
        name=strategy_name(run),
        speed=value(run, name) or 0.0,
        speed_low=speed.low if speed is not None else None,
        speed_high=speed.high if speed is not None else None,
        speed_text=value_text(run, name),
        interval_text=interval_text(run, name),
        memory_bytes=memory_bytes(run),
        top1=top1,
        agreement=agreement,
        ratio=_ratio(run, group_runs, reference),
    )


def _with_fronts(standings: Sequence[Standing]) -> list[Standing]:
    names = {axis: front(standings, axis) for axis in AXES}
    return [replace(standing, fronts=_fronts(standing, names)) for standing in standings]


def _fronts(standing: Standing, names_by_axis: Mapping[str, set[str]]) -> frozenset[str]:
    return frozenset(axis for axis, names in names_by_axis.items() if standing.name in names)


def _ratio(run: Record, group_runs: Sequence[Record], reference: str) -> Ratio | None:
    """Return the run's speed over the reference's.

    The reference is the run that was measured in turn with this one, else the newest one.
    """
    references = [
        other for other in group_runs if other.strategy == reference and other.id != run.id
    ]
    if run.strategy == reference or not references:
        return None
    partner = _partner(run, references)
    reference_run = partner or newest(references)
    in_turn = partner is not None
    ratio = _sampled_ratio(run, reference_run, in_turn=in_turn)
    return ratio or _plain_ratio(run, reference_run)


def _partner(run: Record, references: Sequence[Record]) -> Record | None:
    """Return the run of the reference that was measured in turn with this one."""
    if not run.paired_with:
        return None
    return next((other for other in references if other.paired_with == run.paired_with), None)


def _sampled_ratio(run: Record, reference: Record, *, in_turn: bool) -> Ratio | None:
    """Return the ratio with its interval, None where the samples are too few or not positive."""
    name = headline(run)
    samples, reference_samples = run.samples.get(name, ()), reference.samples.get(name, ())
    if not samples or not reference_samples or min(*samples, *reference_samples) <= 0:
        return None
    paired = in_turn and len(samples) == len(reference_samples)
    log_ratio = recorded_ratio(run, reference, name, paired=paired)
    return Ratio(**ratio_fields(log_ratio), paired=paired)


def _plain_ratio(run: Record, reference: Record) -> Ratio | None:
    name = headline(run)
    return _quotient(value(run, name), value(reference, name))


def _quotient(speed: float | None, reference_speed: float | None) -> Ratio | None:
    if not speed or not reference_speed or reference_speed <= 0:
        return None
    return Ratio(ratio=speed / reference_speed, paired=False)
