"""Warm up until stable, then sample until the interval is narrow enough or the budget ends.

No clock of its own: time is what the traces say, so a scripted engine gives decisions that can be
computed by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from statistics import median

from pytest_llmperf.core.loaded import TimedRun
from pytest_llmperf.core.trace import Trace
from pytest_llmperf.core.verdicts import stats
from pytest_llmperf.errors import InvalidRun

MIN_WARM_UP = 2
WARM_UP_WINDOW = 5
STABLE_WITHIN = 0.02
WARM_UP_SHARE = 0.5  # of the budget, after the first repetition, in which compilation happens
MIN_VALID = stats.MIN_PAIRS  # fewer have no finite interval
MAX_REPETITIONS = 2000

Repeat = Callable[[int], TimedRun]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """When to stop sampling: half-width of the 99 % interval relative to the median, or seconds of sampled time."""

    precision: float
    budget_s: float


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """What was seen before sampling: seconds of each repetition, and whether they became stable."""

    durations_s: tuple[float, ...]
    stable: bool


@dataclass
class Side:
    """One loaded model under one workload: how to repeat it, and what came of it so far."""

    name: str
    repeat: Repeat
    next_repetition: int = 0
    taken: list[TimedRun] = field(default_factory=list)

    def once(self) -> TimedRun:
        """One repetition with prompts of its own."""
        ran = self.repeat(self.next_repetition)
        self.next_repetition += 1
        return ran


Progress = Callable[[str, str, float | None], None]


def duration_s(trace: Trace) -> float:
    """From the first request due to the last token of the repetition."""
    start = min(r.t_due_ns for r in trace.requests)
    end = max((r.events[-1].t_ns for r in trace.requests if r.events), default=start)
    return (end - start) / 1e9


def output_tok_per_s(trace: Trace) -> float:
    """Output tokens of the repetition over its duration."""
    return sum(r.n_output_tokens for r in trace.requests) / duration_s(trace)


def warm_up(side: Side, goal: Goal, progress: Progress) -> WarmUp:
    """Repeat until the last five are stable within 2 % or the warm-up share of the budget is used."""
    seen: list[float] = []
    while not _warm(seen) and sum(seen[1:]) < goal.budget_s * WARM_UP_SHARE:
        progress("warming up", f"{side.name} {len(seen) + 1}", None)
        seen.append(duration_s(side.once().trace))
    return WarmUp(durations_s=tuple(seen), stable=_warm(seen))


def sample(sides: Sequence[Side], goal: Goal, progress: Progress) -> None:
    """Fill `taken` of one side, or of two in A B B A order, until the goal is met.

    Raises:
        InvalidRun: fewer than four repetitions, or fewer than half of those taken, are valid.

    """
    spent_s, n = 0.0, 0
    while n < MAX_REPETITIONS:
        order = sides if n % 2 == 0 else sides[::-1]
        for side in order:
            ran = side.once()
            side.taken.append(ran)
            spent_s += duration_s(ran.trace)
        n += 1
        reached = half_width(sides)
        if _enough(reached, len(valid_indices(sides)), n, goal, spent_s):
            break
        progress("sampling", _progress_text(n, reached, goal), _eta_s(n, reached, goal, spent_s))
    _require_valid(sides, n)


def valid_indices(sides: Sequence[Side]) -> list[int]:
    """Repetitions (pairs, for two sides) in which no side is marked."""
    n = min(len(side.taken) for side in sides)
    return [i for i in range(n) if not any(side.taken[i].trace.marks for side in sides)]


def half_width(sides: Sequence[Side]) -> float | None:
    """Relative half-width of the 99 % interval of the rate (one side) or of the paired ratio (two).

    None when unknown.
    """
    valid = valid_indices(sides)
    rates = [[output_tok_per_s(side.taken[i].trace) for i in valid] for side in sides]
    values = rates[0] if len(sides) == 1 else [a / b for a, b in zip(*rates, strict=True)]
    interval = stats.center_interval(values) if len(values) >= MIN_VALID else (0.0, inf)
    return None if interval[1] == inf else (interval[1] - interval[0]) / 2 / median(values)


def _warm(seen: Sequence[float]) -> bool:
    last = list(seen[-WARM_UP_WINDOW:])
    if len(last) < MIN_WARM_UP:
        return False
    older, newer = last[: len(last) // 2], last[len(last) // 2 :]
    return abs(median(newer) / median(older) - 1) < STABLE_WITHIN


def _enough(reached: float | None, n_valid: int, n: int, goal: Goal, spent_s: float) -> bool:
    """The goal is met, or the budget ended.

    A device that is busy now and then is given twice the budget and eight tries.
    """
    if n_valid >= MIN_VALID:
        return (reached is not None and reached <= goal.precision) or spent_s >= goal.budget_s
    return n >= 2 * MIN_VALID and spent_s >= 2 * goal.budget_s


def _eta_s(n: int, reached: float | None, goal: Goal, spent_s: float) -> float:
    left_s = max(0.0, goal.budget_s - spent_s)
    if reached is None:
        return left_s
    needed = n * ((reached / goal.precision) ** 2 - 1)
    return min(left_s, needed * spent_s / n)


def _progress_text(n: int, reached: float | None, goal: Goal) -> str:
    width = "" if reached is None else f", ±{reached:.1%} → ±{goal.precision:.0%}"
    return f"{n}{width}"


def _require_valid(sides: Sequence[Side], n: int) -> None:
    valid = valid_indices(sides)
    if len(valid) >= MIN_VALID and len(valid) * 2 >= n:
        return
    seen: dict[str, list[str]] = {}
    for side in sides:
        for ran in side.taken:
            for mark in ran.trace.marks:
                seen.setdefault(mark.kind, []).append(mark.detail)
    reasons = "; ".join(
        f"{kind} in {len(details)} (e.g. {details[0]})" for kind, details in seen.items()
    )
    raise InvalidRun(
        f"{len(valid)} of {n} repetitions are valid, {MIN_VALID} and half of all are needed: {reasons or 'the budget ended'}. "
        "Free the device of other work, or give a larger --llmperf-budget.",
    )
