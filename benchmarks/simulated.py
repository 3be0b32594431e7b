"""The three rules on simulated runs: how often each gives which verdict.

Seeded; the tests run smaller forms of the same.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from noise import Noise, autocorrelated, normal

from pytest_llmperf.against.tracks import Track
from pytest_llmperf.core.record import Environment, MetricValue, Record
from pytest_llmperf.core.verdicts import stats
from pytest_llmperf.core.verdicts.against_history import (
    AcceptedValues,
    Comparison,
    compare,
    confirm,
)
from pytest_llmperf.core.verdicts.change_points import change_points, drift
from pytest_llmperf.core.verdicts.judge import FLOOR, Outcome
from pytest_llmperf.core.verdicts.loads import Load
from pytest_llmperf.core.verdicts.reach import FRESH_RUNS
from pytest_llmperf.core.verdicts.shares import share_interval
from pytest_llmperf.core.verdicts.side_by_side import MAX_PAIRS, SideBySide


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


_TIME = MetricValue(name="time", unit="s", direction="lower", formula="time/1", value=1.0)
_RECORD = Record(
    id="simulated",
    session_id="simulated",
    created="2026-11-30T00:00:00+00:00",
    test="simulated",
    label="",
    workload={},
    workload_text="",
    workload_key="",
    strategy="",
    engine="",
    model="",
    model_hash="",
    environment_key="",
    environment=Environment(facts={}),
    effective=None,
    metrics=(_TIME,),
    samples={},
    warm_up={},
    marks=(),
)
_LOADS = [Load(fresh=True, ready_s=1.0, sampled_s=4.0, repetitions=10, within=0.01)] * 2
"""Two processes of a pair; what they cost decides nothing here."""


class Scene(NamedTuple):
    """What two versions of one program are measured in: noise of pairs, processes, and drift.

    `spread` is the standard deviation of a pair's log ratio between the same two processes,
    `process_spread` that of the log of one process's level. `drift` is the share by which the
    machine becomes slower from one block to the next. With `fresh` False one process of each
    version serves all pairs of a look, and the rule is told otherwise. `levels` are processes that
    were measured, of which each is drawn.
    """

    spread: float = 0.01
    process_spread: float = 0.0
    noise: Noise = normal
    processes: Noise = normal
    drift: float = 0.0
    fresh: bool = True
    levels: tuple[float, ...] = ()


def in_pairs(scene: Scene, change: float, runs: int, seed: int = 0) -> Pairs:
    """Rule B with its second look, as a comparison takes it: a version of `change` more time.

    `pairs` and `pairs_of_fail` count those of both looks.
    """
    draw = _seeded(seed)
    tracks = [compared(lambda: _log_ratios(scene, draw), change) for _ in range(runs)]
    n_pairs = [len(track.pairs) + len(track.second_pairs) for track in tracks]
    of_fail = [n for track, n in zip(tracks, n_pairs, strict=True) if track.outcome is Outcome.FAIL]
    return Pairs(
        Counter(track.outcome for track in tracks),
        sum(of_fail) / len(of_fail) if of_fail else math.nan,
        sum(n_pairs) / runs,
    )


def compared(looks: Callable[[], Iterator[float]], change: float) -> Track:
    """One comparison, by the values that the package itself keeps of it.

    `looks` gives the log ratios of the pairs of each look, new over base; where they end, so does
    the comparison.
    """
    track = Track(
        side=0,
        record=_RECORD,
        metric=_TIME,
        limit=FLOOR,
        counted=False,
        state=SideBySide(direction="lower", floor=FLOOR),
    )
    log_ratios = looks()
    while track.open and (log_ratio := next(log_ratios, None)) is not None:
        track.add(1.0, (1 + change) * math.exp(log_ratio), "", loads=_LOADS)
        if track.suspected:
            track.suspect()
            log_ratios = looks()
    return track


def _log_ratios(scene: Scene, draw: random.Random) -> Iterator[float]:
    """The log ratios of the pairs of one look, new over base."""
    processes = _process_ratio(scene, draw)
    for noise in scene.noise(MAX_PAIRS, draw):
        if scene.fresh:
            processes = _process_ratio(scene, draw)
        later = draw.choice((-1, 1)) * scene.drift
        yield processes + scene.spread * noise + later


def _process_ratio(scene: Scene, draw: random.Random) -> float:
    """The log ratio of a process of the new version and one of the base."""
    if scene.levels:
        return math.log(draw.choice(scene.levels) / draw.choice(scene.levels))
    new, base = scene.processes(2, draw)
    return scene.process_spread * (new - base)


def false_points(
    noise: Noise, spread: float, series: int, length: int = 1000, seed: int = 0
) -> int:
    """Rule C: changes found in `series` histories without any."""
    draw = _seeded(seed)
    return sum(len(change_points(_history(noise, spread, length, draw))) for _ in range(series))


def false_drifts(noise: Noise, spread: float, series: int, length: int, seed: int = 0) -> int:
    """Rule C: histories without any drift in which one is found."""
    draw = _seeded(seed)
    return sum(_drifted(_history(noise, spread, length, draw)) for _ in range(series))


def ramps_found(spread: float, series: int, seed: int = 0) -> int:
    """Rule C: in how many histories 40 sessions of which each takes 0.5 % more are found."""
    return _slopes_found([1.005**at for at in range(40)], spread, series, seed)


def staircases_found(spread: float, series: int, seed: int = 0) -> int:
    """Rule C: in how many histories ten losses of 1 %, one every 7 of 80 sessions, are found."""
    return _slopes_found([1.01 ** min(10, at // 7) for at in range(80)], spread, series, seed)


def _slopes_found(levels: Sequence[float], spread: float, series: int, seed: int) -> int:
    draw, n_found = _seeded(seed), 0
    for _ in range(series):
        noise = _history(normal, spread, len(levels), draw)
        values = [value * level for value, level in zip(noise, levels, strict=True)]
        n_found += _drifted(values) or bool(change_points(values))
    return n_found


def _drifted(values: Sequence[float]) -> bool:
    found = drift(values)
    return found is not None and found.significant


Interval = Callable[[Sequence[int], Sequence[int]], tuple[float, float]]
"""How the interval of a share is made, of the counts and the sizes of its prompts."""


def covered_shares(
    truth: float,
    prompts: int,
    correlation: float,
    runs: int,
    *,
    interval: Interval = share_interval,
    tokens: int = 32,
    seed: int = 0,
) -> int:
    """Of how many sets of prompts the interval of a share holds the truth.

    The shares of prompts are drawn from a beta distribution, so that tokens of one prompt have this
    correlation (0: all prompts are alike).
    """
    draw, known = _seeded(seed), dict[tuple[int, ...], tuple[float, float]]()
    hits = 0
    for _ in range(runs):
        counts = tuple(sorted(_counted(truth, correlation, tokens, draw) for _ in range(prompts)))
        if counts not in known:
            known[counts] = interval(counts, [tokens] * prompts)
        low, high = known[counts]
        hits += low <= truth <= high
    return hits


def _counted(truth: float, correlation: float, tokens: int, draw: random.Random) -> int:
    share = truth
    if correlation:
        rest = (1 - correlation) / correlation
        share = draw.betavariate(truth * rest, (1 - truth) * rest)
    return sum(draw.random() < share for _ in range(tokens))


def bootstrapped_share(counts: Sequence[int], sizes: Sequence[int]) -> tuple[float, float]:
    """The interval of a share as it was made before: a bootstrap over prompts (the control)."""
    rows = list(zip(counts, sizes, strict=True))
    return stats.bootstrap_interval(rows, _share_of)


def _share_of(rows: Sequence[tuple[int, int]]) -> float:
    return sum(count for count, _ in rows) / sum(size for _, size in rows)


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
