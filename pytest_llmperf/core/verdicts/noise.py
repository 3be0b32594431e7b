"""How much unchanged sessions differ, and what that means for the gate. Pure.

That is their spread, how often rule A would fail them, and a floor that few of them exceed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import chain
from statistics import fmean, median, variance

from msgspec import Struct

from pytest_llmperf.core.verdicts import stats
from pytest_llmperf.core.verdicts.against_history import (
    P_SINGLE,
    AcceptedValues,
    compare,
    confirm,
)
from pytest_llmperf.core.verdicts.distributions import binomial_pmf, t_quantile
from pytest_llmperf.core.verdicts.estimate import Direction
from pytest_llmperf.core.verdicts.judge import Outcome
from pytest_llmperf.core.verdicts.reach import (
    FRESH_RUNS,
    MAX_SESSIONS,
    MIN_SESSIONS,
)
from pytest_llmperf.errors import UsageError

DRAWS = 5_000
MIN_PAIRS = 8
_STEP = 0.005
_CHANCE = 0.01
_BISECTIONS = 60
_ROUNDING = 1e-9
_MIN_RATIOS = 3
_NO_SPREAD = 1e-12
_RESAMPLES = 200
"""Sets of sessions drawn from those measured; each has a 25th of the draws."""
_OF_MEDIAN = math.pi / 2
"""Variance of the median of normal values, by that of their mean."""


class Noise(Struct, frozen=True, kw_only=True):
    """What unchanged sessions of one metric showed.

    `spread` is the standard deviation of their logs. `between` is what two processes of two
    sessions differ by without their repetitions: more than `spread` where the value of a session is
    that of several processes. `within` is the standard deviation of the logs of repetitions inside
    one; None where there are too few repetitions. `false_alarms` is the share of sessions, drawn
    from these, that rule A fails at `floor`; `at_most` is its upper end at 99 %, over other sets of
    sessions that could be drawn from these. Both know of nothing that none of these sessions
    showed: `unseen` is the share of such sessions that so many cannot exclude at 99 %. `proposed`
    is the floor that one unchanged session in a thousand exceeds. `autocorrelation` is that of
    `pairs` of neighbouring repetitions of one process each, and is conditional on it; None for too
    few.
    """

    sessions: int
    low: float
    high: float
    spread: float
    between: float | None
    within: float | None
    floor: float
    false_alarms: float
    at_most: float
    unseen: float
    proposed: float
    pairs: int
    autocorrelation: float | None


Repetitions = Sequence[Sequence[float]]
"""The repetitions of each process of a session, in order of time."""


def noise(
    values: Sequence[float],
    repetitions: Sequence[Repetitions],
    *,
    direction: Direction,
    floor: float,
    draws: int = DRAWS,
    seed: int = 0,
) -> Noise:
    """Describe unchanged sessions by one value each, and by the repetitions of their processes.

    Raises:
        UsageError: fewer than 8 sessions, or a value that is not positive and finite.

    """
    if len(values) < MIN_SESSIONS or not all(0 < value < math.inf for value in values):
        raise UsageError(
            f"{len(values)} sessions ({min(values, default=0):g} the least): "
            f"{MIN_SESSIONS} positive values are needed.",
        )
    return _noise(values, repetitions, direction, floor, draws, seed)


def _noise(
    values: Sequence[float],
    repetitions: Sequence[Repetitions],
    direction: Direction,
    floor: float,
    draws: int,
    seed: int,
) -> Noise:
    spread = _spread(values)
    # Both draw for a simulation, not for secrets.
    failed = _false_alarms(values, direction, floor, draws, random.Random(seed))  # noqa: S311
    processes = list(chain.from_iterable(repetitions))
    pairs = _pair_ratios(processes, random.Random(seed))  # noqa: S311
    return Noise(
        sessions=len(values),
        low=min(values),
        high=max(values),
        spread=spread,
        between=_between(spread, repetitions),
        within=_within(processes),
        floor=floor,
        false_alarms=failed / draws,
        at_most=max(_at_most(failed, draws), _over_sessions(values, direction, floor, draws, seed)),
        unseen=1 - _CHANCE ** (1 / len(values)),
        proposed=_proposed(spread, len(values), direction),
        pairs=sum(map(len, pairs)),
        autocorrelation=_autocorrelation(pairs),
    )


def _spread(values: Sequence[float]) -> float:
    logs = [math.log(value) for value in values]
    center = fmean(logs)
    squares = math.fsum((log - center) ** 2 for log in logs)
    return math.sqrt(squares / (len(logs) - 1))


def _false_alarms(
    values: Sequence[float], direction: Direction, floor: float, draws: int, draw: random.Random
) -> int:
    """Count how often rule A fails a session drawn from these with replacement.

    Each draw is a set of accepted sessions, a new session, and its fresh measurements.
    """
    n = min(MAX_SESSIONS, len(values))
    failed = 0
    for _ in range(draws):
        accepted = AcceptedValues(values=tuple(draw.choices(values, k=n)))
        first = compare(
            draw.choice(values), accepted, direction=direction, floor=floor, tells_visible=False
        )
        if first.suspected:
            fresh = draw.choices(values, k=FRESH_RUNS)
            failed += confirm(first, fresh, accepted, tells_visible=False).outcome is Outcome.FAIL
    return failed


def _over_sessions(
    values: Sequence[float], direction: Direction, floor: float, draws: int, seed: int
) -> float:
    """Return the upper end of the share of false alarms over other sets of sessions.

    Each set is drawn with replacement from those measured (a bootstrap over sessions), and rule A
    is tried on it: what depends on one or two of the sessions varies from set to set.
    """
    draw = random.Random(seed)  # noqa: S311 - a simulation, not secrets
    each = max(1, draws // 25)
    shares = [
        _false_alarms(draw.choices(values, k=len(values)), direction, floor, each, draw) / each
        for _ in range(min(_RESAMPLES, draws))
    ]
    return stats.quantile(shares, 1 - _CHANCE)


def _within(processes: Repetitions) -> float | None:
    """Return the spread of repetitions about the level of their own process."""
    variances = [_variance_of_logs(values) for values in processes if len(values) >= _MIN_RATIOS]
    return math.sqrt(fmean(variances)) if variances else None


def _between(spread: float, repetitions: Sequence[Repetitions]) -> float | None:
    """Return what is left of the spread of single processes without that of their repetitions.

    A process's value is the median of its repetitions, of which neighbours may be alike.
    """
    errors = [
        _OF_MEDIAN * _variance_of_logs(values) / stats.effective_n(values)
        for values in chain.from_iterable(repetitions)
        if len(values) >= _MIN_RATIOS
    ]
    if not errors:
        return None
    of_process = spread**2 + _averaged_out(repetitions)
    return math.sqrt(max(0.0, of_process - fmean(errors)))


def _averaged_out(repetitions: Sequence[Repetitions]) -> float:
    """Return the variance that single processes have and the mean of a session's has not.

    It is 0 where each session is one process.
    """
    several = [
        [math.log(median(values)) for values in session if values]
        for session in repetitions
        if len(session) > 1
    ]
    if not several:
        return 0.0
    squares = math.fsum(variance(levels) * (len(levels) - 1) for levels in several)
    of_processes = squares / sum(len(levels) - 1 for levels in several)
    return of_processes * fmean(1 - 1 / len(levels) for levels in several)


def _variance_of_logs(values: Sequence[float]) -> float:
    return _spread(values) ** 2


def _at_most(failed: int, draws: int) -> float:
    """Return the largest share under which so few failures have a chance of 1 %, by bisection.

    It is the upper end of Clopper's and Pearson's interval.
    """
    low, high = failed / draws, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        chance = math.fsum(binomial_pmf(k, draws, middle) for k in range(failed + 1))
        low, high = (middle, high) if chance > _CHANCE else (low, middle)
    return high


def _proposed(spread: float, n: int, direction: Direction) -> float:
    """Return the worse end of the prediction interval at p = .001, rounded up to half a percent."""
    log = t_quantile(1 - P_SINGLE, n - 1) * spread * math.sqrt(1 + 1 / n)
    worse = -math.expm1(-log) if direction == "higher" else math.expm1(log)
    steps = max(1, math.ceil(worse / _STEP - _ROUNDING))
    return round(steps * _STEP, 6)


def _pair_ratios(processes: Repetitions, draw: random.Random) -> list[list[float]]:
    """Return the log ratios of neighbouring repetitions of each process, as A/A pairs.

    Which of the two is A is drawn as rule B draws it. None straddles two processes: it would be the
    one pair of its run that shows how far they are apart.
    """
    return [
        [math.log(b / a) * draw.choice((-1, 1)) for a, b in _neighbours(values)]
        for values in processes
    ]


def _neighbours(values: Sequence[float]) -> list[tuple[float, float]]:
    """Return the first and second value, the third and fourth, and so on."""
    return list(zip(values[::2], values[1::2], strict=False))


def _autocorrelation(pairs: Sequence[Sequence[float]]) -> float | None:
    """Return the lag-1 autocorrelation of the processes' pairs; None for too few.

    It is each process's, with its bias of 1/n in short series (Kendall 1954), weighted by its
    pairs. A process of fewer than three pairs, or of ratios that are equal but for rounding, has
    none.
    """
    usable = [
        ratios
        for ratios in pairs
        if len(ratios) >= _MIN_RATIOS and max(ratios) - min(ratios) > _NO_SPREAD
    ]
    n = sum(map(len, usable))
    if n < MIN_PAIRS:
        return None
    return sum(len(ratios) * _unbiased(ratios) for ratios in usable) / n


def _unbiased(ratios: Sequence[float]) -> float:
    return stats.lag1_autocorrelation(ratios) + 1 / len(ratios)
