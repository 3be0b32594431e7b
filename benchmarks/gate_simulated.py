"""The gate over many sessions: what is found of a change that stays, and what fails without one.

Sessions are times: lower is better. Seeded; the tests run smaller forms of the same.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from statistics import median
from typing import NamedTuple

from noise import Noise, normal

from pytest_llmperf.core.verdicts.against_history import (
    compare,
    confirm,
)
from pytest_llmperf.core.verdicts.judge import Outcome
from pytest_llmperf.core.verdicts.memory import Memory, PastSession
from pytest_llmperf.core.verdicts.reach import FRESH_RUNS

FLOOR = 0.03


class Machine(NamedTuple):
    """What makes sessions of one program differ.

    `spread` is the standard deviation of their logs, of the shape of `noise`; `r` their lag-1
    autocorrelation (only with normal noise); `two_modes` the distance of a second level that
    half of the sessions are at; `drift` what a session adds. Fresh runs follow a session in time.
    """

    spread: float
    noise: Noise = normal
    r: float = 0.0
    two_modes: float = 0.0
    drift: float = 0.0

    def session(self, last: float, draw: random.Random) -> float:
        """The next session's noise after one of `last`, with a standard deviation of 1."""
        new = self.noise(1, draw)[0]
        return self.r * last + math.sqrt(1 - self.r**2) * new

    def log(self, x: float, at: int, draw: random.Random) -> float:
        """The log of the value of session `at`, or of a fresh run of it, with this noise."""
        mode = self.two_modes if self.two_modes and draw.random() < 0.5 else 0.0
        return self.spread * x + mode + self.drift * at


class Seen(NamedTuple):
    """A gated session, and how many fresh measurements it took."""

    outcome: Outcome
    n_fresh: int


def gated_sessions(
    machine: Machine,
    draw: random.Random,
    *,
    before: int,
    after: int,
    change: float,
    forgets: bool = False,
    again: int = FRESH_RUNS,
) -> Iterator[Seen]:
    """Gate `after` sessions that take `change` more time than the `before` sessions ahead of them.

    The sessions before were recorded without a gate. `forgets` lets every session that did not fail
    into the accepted ones, as the gate did once (negative control).
    """
    memory, x = Memory(direction="lower", floor=FLOOR), 0.0
    for at in range(before + after):
        x = machine.session(x, draw) if at else machine.noise(1, draw)[0]
        shift = math.log1p(change) if at >= before else 0.0
        value = math.exp(machine.log(x, at, draw) + shift)
        failed, fresh = False, []
        if at >= before:
            first = compare(value, memory.values, direction="lower", floor=FLOOR)
            if first.suspected:
                fresh = _fresh(machine, x, at, shift, again, draw)
                first = confirm(first, fresh, memory.values)
            failed = first.outcome is Outcome.FAIL
            yield Seen(first.outcome, len(fresh))
        memory = _followed_by(memory, median([value, *fresh]), failed, forgets=forgets)


def _fresh(
    machine: Machine, x: float, at: int, shift: float, n: int, draw: random.Random
) -> list[float]:
    values = []
    for _ in range(n):
        x = machine.session(x, draw)
        values.append(math.exp(machine.log(x, at, draw) + shift))
    return values


def _followed_by(memory: Memory, value: float, failed: bool, *, forgets: bool) -> Memory:
    session = PastSession(value=value, failed=failed, accepted=forgets and not failed)
    return memory.followed_by(session)


class Stayed(NamedTuple):
    """What became of histories with a change that stays.

    `found` of `n` failed at least once; `median_session` is the session of the first FAIL (1 is the
    first with the change), infinite where fewer than half failed.
    """

    n: int
    found: int
    median_session: float
    last_passed: int
    n_fresh: float


def stays(
    machine: Machine,
    change: float,
    histories: int,
    *,
    before: int = 30,
    after: int = 30,
    seed: int = 0,
    forgets: bool = False,
) -> Stayed:
    """A change by `change` that stays for `after` sessions, in so many histories."""
    draw = random.Random(seed)  # noqa: S311 - not for secrets: the same histories each time
    firsts, last_passed, n_fresh = [], 0, 0
    for _ in range(histories):
        seen = list(
            gated_sessions(
                machine, draw, before=before, after=after, change=change, forgets=forgets
            )
        )
        failed = (at for at, one in enumerate(seen, start=1) if one.outcome is Outcome.FAIL)
        firsts.append(next(failed, math.inf))
        last_passed += seen[-1].outcome is Outcome.PASS
        n_fresh += sum(one.n_fresh for one in seen)
    found = sum(map(math.isfinite, firsts))
    per_session = n_fresh / (histories * after)
    return Stayed(histories, found, median(firsts), last_passed, per_session)


def outcomes(
    machine: Machine,
    change: float,
    histories: int,
    *,
    before: int = 30,
    after: int = 30,
    seed: int = 0,
    forgets: bool = False,
) -> Counter[Outcome]:
    """The outcomes of all sessions of such histories."""
    draw = random.Random(seed)  # noqa: S311 - as above
    return Counter(
        seen.outcome
        for _ in range(histories)
        for seen in gated_sessions(
            machine, draw, before=before, after=after, change=change, forgets=forgets
        )
    )


def fails_by_history(
    machine: Machine, histories: int, *, before: int = 30, after: int = 30, seed: int = 0
) -> list[int]:
    """How many sessions of each unchanged history fail."""
    draw = random.Random(seed)  # noqa: S311 - as above
    return [
        sum(
            seen.outcome is Outcome.FAIL
            for seen in gated_sessions(machine, draw, before=before, after=after, change=0.0)
        )
        for _ in range(histories)
    ]


def first_outcomes(
    machine: Machine, change: float, runs: int, *, before: int = 12, seed: int = 0
) -> Counter[Outcome]:
    """The outcomes of the first session after `before` others."""
    return outcomes(machine, change, runs, before=before, after=1, seed=seed)
