"""What processes of one program cost and how they differ: what a pair of them is worth. Pure.

A repetition describes a process; a process describes a program (Kalibera and Jones 2013, Georges et
al. 2007). So the repetitions of one process soon say no more, and another process is worth more
than they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

from msgspec import Struct

_KNOWN_FROM = 3
"""Fewer pairs say nothing of how far processes are apart."""


class Load(Struct, frozen=True, kw_only=True):
    """One process of one side: what it cost, and how its repetitions varied.

    `ready_s` are the seconds from the end of the process before it to the end of its warm-up,
    `sampled_s` those of its `repetitions`. `within` is the standard deviation of the logs of their
    durations. `fresh`: it was started for this block.
    """

    fresh: bool
    ready_s: float
    sampled_s: float
    repetitions: int
    within: float

    @property
    def repetition_s(self) -> float:
        """Mean seconds of a repetition."""
        return self.sampled_s / max(1, self.repetitions)


class Loads(Struct, frozen=True, kw_only=True):
    """The processes of one metric's pairs, both sides together.

    `apart` is the standard deviation of the logs of their values about the mean of their side: what
    a user sees, with the drift of the machine in it; None for fewer than two of a side. `within` is
    that of the repetitions inside one process. `ready_s`, `repetition_s` and `repetitions` are
    those of a mean process. With `fresh` False all pairs of a look share one process a side.
    """

    fresh: bool
    processes: int
    apart: float | None
    within: float
    repetitions: float
    ready_s: float
    repetition_s: float

    @property
    def ready_share(self) -> float:
        """Share of the time that went into starting, loading and warming up."""
        sampled_s = self.repetitions * self.repetition_s
        return self.ready_s / (self.ready_s + sampled_s) if self.ready_s else 0.0


def described(loads: Sequence[Load], pairs: Sequence[tuple[float, float]]) -> Loads:
    """Describe the processes that gave these pairs of values. Raises ValueError without any."""
    fresh = all(load.fresh for load in loads)
    return Loads(
        fresh=fresh,
        processes=2 * len(pairs) if fresh else 2,
        apart=_apart(pairs) if fresh else None,
        within=_within(loads),
        repetitions=fmean(load.repetitions for load in loads),
        ready_s=fmean(load.ready_s for load in loads),
        repetition_s=fmean(load.repetition_s for load in loads),
    )


def repetitions_per_load(
    load_s: float, repetition_s: float, *, within: float, between: float
) -> float:
    """Return how many repetitions each process should give, so that a budget says the most.

    It is sqrt(cost of a load / cost of a repetition x variance within / variance between) (Kalibera
    and Jones 2013), of standard deviations `within` and `between`; infinite where processes do not
    differ, and 1 where repetitions do not.
    """
    if within <= 0 or load_s <= 0:
        return 1.0
    if between <= 0 or repetition_s <= 0:
        return math.inf
    return max(1.0, math.sqrt(load_s / repetition_s) * within / between)


def worthwhile_repetitions(loads: Sequence[Load], log_ratios: Sequence[float]) -> float:
    """Return how many repetitions the next processes should give, after these pairs.

    What differs from process to process is what is left of the pairs' spread without that of their
    repetitions. Before the third pair it is taken to be as large as that of repetitions.
    """
    within = _within(loads)
    return repetitions_per_load(
        fmean(load.ready_s for load in loads),
        fmean(load.repetition_s for load in loads),
        within=within,
        between=_between(loads, log_ratios) if len(log_ratios) >= _KNOWN_FROM else within,
    )


def _between(loads: Sequence[Load], log_ratios: Sequence[float]) -> float:
    """Return the standard deviation between processes that the pairs' log ratios leave.

    A pair has two processes, and the drift of the machine is in both.
    """
    of_process = _variance(log_ratios) / 2
    of_repetitions = fmean(load.within**2 / max(1, load.repetitions) for load in loads)
    return math.sqrt(max(0.0, of_process - of_repetitions))


def _within(loads: Iterable[Load]) -> float:
    return math.sqrt(fmean(load.within**2 for load in loads))


def _apart(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Return the spread of processes about their own side's mean; counted values have none."""
    if len(pairs) < 2 or min(map(min, pairs)) <= 0:  # noqa: PLR2004 - one value has no spread
        return None
    sides = zip(*pairs, strict=True)
    return math.sqrt(fmean(_variance([math.log(value) for value in side]) for side in sides))


def _variance(values: Sequence[float]) -> float:
    center = fmean(values)
    return math.fsum((value - center) ** 2 for value in values) / (len(values) - 1)
