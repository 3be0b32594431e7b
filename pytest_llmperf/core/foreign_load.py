"""Work of other programs beside a measurement: how long it is waited for, and what it spoils. Pure.

The figures of the second are from simulations: docs/decisions/0023.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from msgspec import Struct

from pytest_llmperf.core.loaded import ServingRun, TimedRun
from pytest_llmperf.core.record import Record
from pytest_llmperf.core.trace import Mark

FOREIGN_LOAD = "foreign-load"
"""Kind of the mark of a repetition beside which other programs worked."""

CPU_SHARE = "foreign_cpu_share"
"""Telemetry of a repetition: the share of its cores that other programs used, 0 to 1."""

UNDER_LOAD = "under_load"
"""What a record keeps in `extra` where repetitions count that other programs worked beside."""

MARKED = "MARKED"
"""Outcome of a record that was measured beside other programs, in a test that did not fail."""

PATIENCE_S = 8.0
"""How long load that does not end is looked at before it is called steady."""

ALIKE_WITHIN = 0.1
"""How far apart the shares of the cores may be that others used beside the two sides of a pair."""


class OthersWork(Struct, frozen=True, kw_only=True):
    """What other programs did beside a block.

    `beside`: past the limit in a repetition that counts. `share` of the cores that they used is a
    mean over the repetitions, None where it is not known.
    """

    beside: bool = False
    share: float | None = None


def is_foreign(mark: Mark) -> bool:
    """Whether a mark says that other programs worked."""
    return mark.kind == FOREIGN_LOAD


def foreign_share(run: TimedRun | ServingRun) -> float | None:
    """Return the share of the cores that others used beside a repetition; None where not known."""
    return run.telemetry.get(CPU_SHARE)


def mean_share(runs: Sequence[TimedRun | ServingRun]) -> float | None:
    """Return the mean share over the repetitions that were long enough to tell; None of none."""
    shares = [share for share in map(foreign_share, runs) if share is not None]
    return fmean(shares) if shares else None


def is_beside_load(marks: Iterable[Mark]) -> bool:
    """Whether other programs worked beside what has these marks."""
    return any(map(is_foreign, marks))


def under_load(
    marks: Sequence[Iterable[Mark]], share: float | None = None
) -> dict[str, dict[str, Any]]:
    """Return what a record keeps of repetitions that count although others worked beside them.

    `marks` are those of each repetition, `share` what others used of the cores. Empty where nobody
    worked beside one.
    """
    n_beside = sum(map(is_beside_load, marks))
    if not n_beside:
        return {}
    return {UNDER_LOAD: {"repetitions": n_beside, "share": share}}


def was_under_load(record: Record) -> bool:
    """Whether a record was measured beside other programs: no session is held against it."""
    return UNDER_LOAD in record.extra


def hits_alike(shares: Sequence[float | None]) -> bool:
    """Whether others used about the same share of the cores beside each side of a pair.

    False where a share is not known, as on a GPU.
    """
    known = [share for share in shares if share is not None]
    return len(known) == len(shares) > 0 and max(known) - min(known) <= ALIKE_WITHIN
