"""How much unchanged sessions differ, and what that means for the gate: spread, false alarms of rule A, a floor. Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from msgspec import Struct

from pytest_llmperf.core.verdicts import stats
from pytest_llmperf.core.verdicts.against_history import (
    MAX_SESSIONS,
    MIN_SESSIONS,
    P_SINGLE,
    AcceptedValues,
    compare,
    confirm,
)
from pytest_llmperf.core.verdicts.distributions import t_quantile
from pytest_llmperf.core.verdicts.estimate import Direction
from pytest_llmperf.core.verdicts.judge import Outcome
from pytest_llmperf.errors import UsageError

DRAWS = 5_000
MIN_PAIRS = 8
_STEP = 0.005
_CHANCE = 0.01


class Noise(Struct, frozen=True, kw_only=True):
    """What unchanged sessions of one metric showed.

    `spread` is the standard deviation of their logs. `false_alarms` is the share of sessions, drawn
    from these, that rule A fails at `floor`, and `at_most` the share that so many draws cannot
    exclude at 99 %. `proposed` is the floor that one unchanged session in a thousand exceeds.
    `autocorrelation` is that of `pairs` of repetitions; None for too few.
    """

    sessions: int
    low: float
    high: float
    spread: float
    floor: float
    false_alarms: float
    at_most: float
    proposed: float
    pairs: int
    autocorrelation: float | None


def noise(
    values: Sequence[float],
    repetitions: Sequence[Sequence[float]],
    *,
    direction: Direction,
    floor: float,
    draws: int = DRAWS,
    seed: int = 0,
) -> Noise:
    """From one value a session, and the repetitions of each session in order of time.

    Raises:
        UsageError: fewer than 8 sessions, or a value that is not positive and finite.

    """
    if len(values) < MIN_SESSIONS or not all(0 < value < math.inf for value in values):
        raise UsageError(
            f"{len(values)} sessions ({min(values, default=0):g} the least): {MIN_SESSIONS} positive values are needed.",
        )
    spread = _spread(values)
    # A simulation.
    failed = _false_alarms(values, direction, floor, draws, random.Random(seed))  # noqa: S311
    n_pairs, autocorrelation = _pairs(repetitions, random.Random(seed))  # noqa: S311
    return Noise(
        sessions=len(values),
        low=min(values),
        high=max(values),
        spread=spread,
        floor=floor,
        false_alarms=failed / draws,
        at_most=_at_most(failed, draws),
        proposed=_proposed(spread, len(values), direction),
        pairs=n_pairs,
        autocorrelation=autocorrelation,
    )


def _spread(values: Sequence[float]) -> float:
    logs = [math.log(value) for value in values]
    center = stats.mean(logs)
    return math.sqrt(math.fsum((x - center) ** 2 for x in logs) / (len(logs) - 1))


def _false_alarms(
    values: Sequence[float], direction: Direction, floor: float, draws: int, draw: random.Random
) -> int:
    """Rule A on sessions drawn from these with replacement: accepted ones, a new session, and its second measurement."""
    n = min(MAX_SESSIONS, len(values))
    failed = 0
    for _ in range(draws):
        accepted = AcceptedValues(values=tuple(draw.choices(values, k=n)))
        first = compare(draw.choice(values), accepted, direction=direction, floor=floor)
        if first.outcome is Outcome.FAIL:
            failed += confirm(first, draw.choice(values), accepted).outcome is Outcome.FAIL
    return failed


def _at_most(failed: int, draws: int) -> float:
    """The largest share under which so few of the draws are seen with a chance of 1 % (Clopper and Pearson), by bisection."""
    low, high = failed / draws, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        chance = math.fsum(_binomial(k, draws, middle) for k in range(failed + 1))
        low, high = (middle, high) if chance > _CHANCE else (low, middle)
    return high


def _binomial(k: int, n: int, p: float) -> float:
    if p >= 1:
        return float(k == n)
    log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(log + k * math.log(p) + (n - k) * math.log1p(-p)) if p > 0 else float(k == 0)


def _proposed(spread: float, n: int, direction: Direction) -> float:
    """The worse end of the prediction interval at p = .001, rounded up to half a percent."""
    log = t_quantile(1 - P_SINGLE, n - 1) * spread * math.sqrt(1 + 1 / n)
    worse = -math.expm1(-log) if direction == "higher" else math.expm1(log)
    return round(max(1, math.ceil(worse / _STEP - 1e-9)) * _STEP, 6)


def _pairs(repetitions: Sequence[Sequence[float]], draw: random.Random) -> tuple[int, float | None]:
    """Neighbouring repetitions as A/A pairs, which of the two is A drawn as rule B draws it: their lag-1 autocorrelation.

    Each session's, with its bias of 1/n in short series (Kendall 1954), weighted by its pairs.
    """
    found = []
    for values in repetitions:
        ratios = [
            math.log(b / a) * draw.choice((-1, 1))
            for a, b in zip(values[::2], values[1::2], strict=False)
        ]
        # Equal but for rounding has none.
        if len(ratios) >= 3 and max(ratios) - min(ratios) > 1e-12:  # noqa: PLR2004
            found.append((len(ratios), stats.lag1_autocorrelation(ratios) + 1 / len(ratios)))
    n = sum(len(values) // 2 for values in repetitions)
    used = sum(weight for weight, _ in found)
    return n, sum(weight * r for weight, r in found) / used if used >= MIN_PAIRS else None
