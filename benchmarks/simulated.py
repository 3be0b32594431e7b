"""The three rules on simulated runs: how often each gives which verdict.

Seeded; the tests run smaller forms of the same.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from typing import NamedTuple

from noise import Noise, autocorrelated, normal

from pytest_llmperf.core.verdicts.against_history import (
    AcceptedValues,
    Comparison,
    compare,
    confirm,
)
from pytest_llmperf.core.verdicts.change_points import change_points
from pytest_llmperf.core.verdicts.judge import Outcome
from pytest_llmperf.core.verdicts.reach import FRESH_RUNS
from pytest_llmperf.core.verdicts.side_by_side import Decision, SideBySide


def sessions(
    noise: Noise, spread: float, change: float, n: int, runs: int, seed: int = 0
) -> Counter[Outcome]:
    """Rule A: verdicts on a session after `n` others, all with this spread.

    The session changes by `change`. Values are times: lower is better.
    """
    draw = _seeded(seed)
    return Counter(_session(noise, spread, change, n, draw).outcome for _ in range(runs))


def _session(noise: Noise, spread: float, change: float, n: int, draw: random.Random) -> Comparison:
    """One gated session with its fresh measurements, which follow the first in time."""
    values = [math.exp(spread * x) for x in noise(n + 1 + FRESH_RUNS, draw)]
    value, *fresh = (slower * (1 + change) for slower in values[n:])
    return gated(values[:n], value, fresh)


def gated(values: list[float], value: float, fresh: list[float]) -> Comparison:
    """The verdict of the gate on one value, with fresh measurements where it is a suspicion."""
    accepted = AcceptedValues(values=tuple(values))
    first = compare(value, accepted, direction="lower")
    return confirm(first, fresh, accepted) if first.suspected else first


class Pairs(NamedTuple):
    """Verdicts of rule B, and the pairs that those took that failed."""

    outcomes: Counter[Outcome | None]
    pairs_of_fail: float
    pairs: float


def side_by_side(noise: Noise, spread: float, change: float, runs: int, seed: int = 0) -> Pairs:
    """Rule B: verdicts on two versions of which the new one takes `change` more time."""
    draw = _seeded(seed)
    decisions = [_decided(noise, spread, change, draw) for _ in range(runs)]
    failed = [decision.n for decision in decisions if decision.outcome is Outcome.FAIL]
    return Pairs(
        Counter(decision.outcome for decision in decisions),
        sum(failed) / len(failed) if failed else math.nan,
        sum(decision.n for decision in decisions) / runs,
    )


def _decided(noise: Noise, spread: float, change: float, draw: random.Random) -> Decision:
    state = SideBySide(direction="lower")
    for x in noise(state.max_pairs, draw):
        state = state.with_pair(1.0, (1 + change) * math.exp(spread * x))
        decision = state.look()
        if decision is not None and decision.outcome is not None:
            return decision
    raise AssertionError("the budget of pairs ends every comparison")


def false_points(
    noise: Noise, spread: float, series: int, length: int = 1000, seed: int = 0
) -> int:
    """Rule C: changes found in `series` histories without any."""
    draw = _seeded(seed)
    return sum(len(change_points(_history(noise, spread, length, draw))) for _ in range(series))


def steps_found(
    step: float, spread: float, after: int, series: int, seed: int = 0, r: float = 0.0
) -> int:
    """Rule C: in how many histories a change by `step` is found within 8 runs of its place.

    Each history has 100 runs before the change and `after` runs behind it.
    """
    draw, n_found = _seeded(seed), 0
    for _ in range(series):
        values = _history(autocorrelated(r) if r else normal, spread, 100 + after, draw)
        values[100:] = [value * (1 + step) for value in values[100:]]
        n_found += any(abs(point.index - 100) <= 8 for point in change_points(values))
    return n_found


def seconds_for(n: int, seed: int = 0) -> float:
    """Rule C: CPU time of one history of n runs, with a step every 60 of them."""
    values = [
        value * (1.06 if at // 60 % 2 else 1)
        for at, value in enumerate(_history(normal, 0.02, n, _seeded(seed)))
    ]
    start = time.process_time()
    assert change_points(values)
    return time.process_time() - start


def _seeded(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - not for secrets: the same runs each time


def _history(noise: Noise, spread: float, n: int, draw: random.Random) -> list[float]:
    return [100 * math.exp(spread * x) for x in noise(n, draw)]
