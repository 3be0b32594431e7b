"""Programs whose processes differ, measured by the sampling and the intervals of the package.

Simulated: each process has a level of its own, its repetitions have noise about it, and a load
costs time. Times are virtual, so a run of 20 s takes milliseconds. Seeded by the caller; the tests
run smaller forms of the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple
from unittest import mock

from noise import Noise, autocorrelated, normal

from pytest_llmperf.core.loaded import TimedRun
from pytest_llmperf.core.trace import RequestTrace, TokenEvent, Trace
from pytest_llmperf.core.verdicts import processes
from pytest_llmperf.core.verdicts.estimate import Estimate
from pytest_llmperf.core.verdicts.judge import ratio
from pytest_llmperf.core.verdicts.processes import KnownSpread, Processes
from pytest_llmperf.core.verdicts.stats import MeanWithError
from pytest_llmperf.session.processes.blocks import Fresh, sample_processes, valid_sizes
from pytest_llmperf.session.sampling import Goal, Side, rates, sample, valid_indices

LONGEST = 400
"""Repetitions of a process that are drawn at once."""


def two_modes(stay: float) -> Noise:
    """Two levels, 2 spreads apart, each kept from one repetition to the next with chance `stay`."""

    def series(n: int, draw: random.Random) -> list[float]:
        mode, values = draw.choice((-1, 1)), []
        for _ in range(n):
            values.append((mode + 0.3 * draw.gauss(0, 1)) / math.hypot(1, 0.3))
            mode = mode if draw.random() < stay else -mode
        return values

    return series


SERIES: dict[str, Noise] = {
    "independent": normal,
    "autocorrelated 0.5": autocorrelated(0.5),
    "autocorrelated 0.7": autocorrelated(0.7),
    "two modes": two_modes(0.5),
    "two modes, 4 repetitions each": two_modes(0.75),
}


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program on a machine. Spreads are standard deviations of logs; its level is 0."""

    noise: Noise = normal
    repetitions: float = 0.01
    processes: float = 0.01
    load_s: float = 0.5
    repetition_s: float = 0.15
    known: float | None = None


@dataclass
class Running:
    """A program's process: every call is a repetition, and `renew` starts another process."""

    program: Program
    draw: random.Random
    loads_s: float = 0.0
    _level: float = 0.0
    _noise: list[float] = field(default_factory=list)

    def renew(self) -> None:
        """Start another process, with a level of its own."""
        self.loads_s += self.program.load_s
        self._level = self.program.processes * self.draw.gauss(0, 1)
        self._noise = self.program.noise(LONGEST, self.draw)

    def __call__(self, repetition: int) -> TimedRun:
        """Run a repetition of 10 tokens."""
        log_s = self._level + self.program.repetitions * self._noise.pop()
        end_ns = round(self.program.repetition_s * math.exp(log_s) * 1e9)
        events = (TokenEvent(end_ns, 10),)
        request = RequestTrace(n_prompt_tokens=1, t_due_ns=0, events=events)
        trace = Trace(repetition=repetition, requests=(request,))
        return TimedRun(trace=trace, step=None, prompts_hash="", outputs_hash="")


class Measured(NamedTuple):
    """What one measurement said: the log of its value, of its ends, and what it took."""

    low: float
    high: float
    processes: int
    repetitions: int

    @property
    def holds_the_truth(self) -> bool:
        """Whether the interval holds the level of the program, or that two are equal."""
        return self.low <= 0 <= self.high

    @property
    def half_width(self) -> float:
        """Half of the interval, in logs."""
        return (self.high - self.low) / 2


@contextmanager
def no_spread_between() -> Iterator[None]:
    """Take the spread between processes for 0 while it lasts: the negative control."""

    def of_levels(levels: Sequence[float], _groups: object, _known: object) -> MeanWithError:
        return MeanWithError(fmean(levels), 0.0, 1.0)

    with mock.patch.object(processes, "_of_levels", of_levels):
        yield


def measured(
    programs: Sequence[Program],
    draw: random.Random,
    *,
    goal: Goal = Goal(precision=0.01, budget_s=20.0),  # noqa: B008 - frozen
    one: bool = False,
) -> Measured:
    """Measure a program's level, or the ratio of two in turn, as `llm.run` and `llm.compare` do.

    With `one`, one process is measured, as where loading is dear.
    """
    running = [Running(program, draw) for program in programs]
    sides = [Side(name=str(at), repeat=process) for at, process in enumerate(running)]

    def renew() -> None:
        for process in running:
            process.renew()

    renew()
    sizes: Sequence[int] = ()
    if one:
        sample(sides, goal, _say_nothing)
    else:
        fresh = Fresh(
            renew=renew,
            unsampled_s=lambda: sum(process.loads_s for process in running),
            repetition_s=sum(program.repetition_s for program in programs),
        )
        sizes = sample_processes(sides, goal, _say_nothing, fresh)
    valid = valid_indices(sides)
    seen = valid_sizes(sizes, valid)
    estimates = [
        _estimate(side, program, seen) for side, program in zip(sides, programs, strict=True)
    ]
    whole = estimates[0] if len(estimates) == 1 else ratio(*estimates)
    scale = 10 / programs[0].repetition_s if len(programs) == 1 else 1.0
    return Measured(
        math.log(whole.low / scale) if whole.low > 0 else -math.inf,
        math.log(whole.high / scale),
        max(1, len(seen)),
        len(valid),
    )


def _estimate(side: Side, program: Program, sizes: Sequence[int]) -> Estimate:
    known = None
    if program.known is not None:
        known = KnownSpread(spread=program.known, freedom=11, source="12 sessions")
    of_samples = Processes(sizes=tuple(sizes), known=known)
    return Estimate.of_samples(
        "throughput", tuple(rates([side])), "tok/s", pair="both", processes=of_samples
    )


def _say_nothing(_phase: str, _detail: str, _eta_s: float | None) -> None:
    pass


class Coverage(NamedTuple):
    """How many of so many intervals held the truth, and what they took in the middle."""

    hits: int
    runs: int
    half_width: float
    processes: float
    repetitions: float


def coverage(
    programs: Sequence[Program],
    runs: int,
    seed: int = 0,
    *,
    one: bool = False,
    goal: Goal = Goal(precision=0.01, budget_s=20.0),  # noqa: B008 - frozen
) -> Coverage:
    """Measure so often, and count the intervals that hold the truth."""
    draw = random.Random(seed)  # noqa: S311 - not for secrets: the same runs each time
    results = [measured(programs, draw, goal=goal, one=one) for _ in range(runs)]
    widths = sorted(result.half_width for result in results)
    return Coverage(
        sum(result.holds_the_truth for result in results),
        runs,
        widths[runs // 2],
        sum(result.processes for result in results) / runs,
        sum(result.repetitions for result in results) / runs,
    )
