"""The bars of rule C, for verdict_bars.py: false points, ramps, staircases, steps, and controls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from statistics import fmean
from unittest import mock

import simulated
from bars import all_of, number, per_thousand, share
from noise import NOISES, Noise, autocorrelated, normal, two_modes
from pairs import Finding

from pytest_llmperf.core.verdicts import levels


def history(size: int) -> Iterator[Finding]:
    """Yield the bars of rule C, by `size` times the smallest number of histories."""
    yield from _false_points(size)
    yield from _slopes(size)
    yield from _steps(size)
    yield from _history_controls(size)
    seconds = min(simulated.seconds_for(10_000) for _ in range(3))
    yield number("C, 10,000 runs", seconds, "s", 3, at_most=1)


_HISTORIES: tuple[tuple[str, Noise, float | None, int], ...] = (
    ("normal", normal, 1.0, 1500),
    ("autocorrelated 0.5", autocorrelated(0.5), 2.0, 600),
    ("5 % wild", NOISES["5 % wild"], None, 100),
    ("two modes", two_modes, None, 100),
    ("autocorrelated 0.7", autocorrelated(0.7), None, 100),
)
"""What histories are made of, the bar of their false points, and how many there are of them."""


def _false_points(size: int) -> Iterator[Finding]:
    for name, noise, bar, n in _HISTORIES:
        series = n * size
        points = simulated.false_points(noise, 0.05, series, length=200)
        what = f"{name}, noise 5 %"
        unit = "C, false points per 1,000 histories of 200 runs"
        yield per_thousand(f"{unit}, {what}", points, series, bar)
        drifts = simulated.false_drifts(noise, 0.05, series, length=200)
        unit = "C, false drifts per 1,000 histories of 200 runs"
        yield per_thousand(f"{unit}, {what}", drifts, series, bar)


def _slopes(size: int) -> Iterator[Finding]:
    series = 50 * size
    for spread in (0.001, 0.002, 0.005, 0.01, 0.02):
        ramps = simulated.ramps_found(spread, series)
        yield all_of(f"C, +0.5 % a session for 40 found, noise {spread:.1%}", ramps, series)
        stairs = simulated.staircases_found(spread, series)
        bar = 95 if spread <= 0.005 else None
        yield share(
            f"C, ten steps of 1 % in 80 found, noise {spread:.1%}", stairs, series, at_least=bar
        )


def _steps(size: int) -> Iterator[Finding]:
    series = 60 * size
    for r in (0.0, 0.3, 0.5):
        for after in (8, 30):
            n_found = simulated.steps_found(-0.05, 0.02, after, series, r=r)
            name = f"C, -5 % found {after} runs after it, noise 2 %, autocorrelation {r:g}"
            yield share(name, n_found, series)


def _history_controls(size: int) -> Iterator[Finding]:
    """The controls: residuals about a level hide a ramp, and no widening sees points everywhere."""
    series = 20 * size
    with about_levels():
        ramps = simulated.ramps_found(0.002, series)
    yield share(
        "C, +0.5 % a session for 40 found, control: residuals about a level, noise 0.2%",
        ramps,
        series,
        at_most=20,
    )
    with taken_for_independent():
        points = simulated.false_points(autocorrelated(0.5), 0.05, series, length=200)
    yield per_thousand(
        "C, false points per 1,000 histories of 200 runs, control: taken for independent, 0.5",
        points,
        series,
        None,
        at_least=2.0,
    )


def about_levels() -> AbstractContextManager[object]:
    """Take residuals about a level, as rule C did: the slope goes into them."""
    return mock.patch.object(levels, "_line", _level)


def _level(_runs: Sequence[int], logs: Sequence[float]) -> tuple[float, list[float]]:
    center = fmean(logs)
    return 0.0, [log - center for log in logs]


def taken_for_independent() -> AbstractContextManager[object]:
    """Take the runs of a history for independent."""
    return mock.patch.object(levels, "MAX_AUTOCORRELATION", 0.0)
