"""Warm up until stable, then sample until the interval is narrow enough or the budget ends.

No clock of its own: time is what the traces say, so a scripted engine gives decisions that can be
computed by hand.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from statistics import median

from pytest_llmperf.core.foreign_load import PATIENCE_S, is_foreign
from pytest_llmperf.core.format import format_percent, format_value
from pytest_llmperf.core.loaded import TimedRun
from pytest_llmperf.core.trace import Mark, Trace
from pytest_llmperf.core.verdicts import give_up, stats
from pytest_llmperf.core.verdicts.processes import Processes, center_interval
from pytest_llmperf.errors import InvalidRun, SteadyLoad

MIN_WARM_UP = 2
WARM_UP_WINDOW = 5
STABLE_WITHIN = 0.02
WARM_UP_SHARE = 0.5  # of the budget, after the first repetition, in which compilation happens
MIN_VALID = stats.MIN_PAIRS  # fewer have no finite interval
FIRST_LOOK = 10
"""Valid repetitions before the interval is looked at: looks at fewer stop too early by chance."""
MAX_REPETITIONS = 2000

Repeat = Callable[[int], TimedRun]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """When to stop sampling.

    `precision` is the half-width of the 99 % interval relative to the median, `budget_s` seconds of
    sampled time, with the loads and warm-ups of processes after the first. `processes` are how many
    are wanted, None as many as the costs say. With `allow_load` a repetition counts although other
    programs worked beside it. `needed` is the widest half of an interval, on the log scale, that
    still decides something: sampling is given up where that is out of reach.
    """

    precision: float
    budget_s: float
    processes: int | None = None
    allow_load: bool = False
    needed: float = give_up.USELESS


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """The warm-up: seconds of each repetition, and whether they became stable.

    `untimed_s` are the seconds that it took besides: a first run compiles before its clock starts.
    """

    durations_s: tuple[float, ...]
    stable: bool
    untimed_s: float = field(default=0.0, compare=False)

    @property
    def took_s(self) -> float:
        """Seconds of the whole warm-up."""
        return sum(self.durations_s) + self.untimed_s


@dataclass
class Side:
    """One loaded model under one workload: how to repeat it, and what came of it so far.

    `loaded_s` are the seconds of its last repetitions that other programs worked beside, without a
    gap. `allow_load` makes nothing of them. `given_up` says why sampling ended before its budget
    without an interval that decides anything; the first side says it for both.
    """

    name: str
    repeat: Repeat
    next_repetition: int = 0
    runs: list[TimedRun] = field(default_factory=list)
    allow_load: bool = False
    loaded_s: float = 0.0
    given_up: str = ""

    @property
    def marks(self) -> tuple[Mark, ...]:
        """What is wrong with any of its repetitions."""
        return tuple(mark for ran in self.runs for mark in ran.trace.marks)

    def once(self) -> TimedRun:
        """Run one repetition with prompts of its own.

        Raises SteadyLoad where other programs have worked beside it for too long.
        """
        ran = self.repeat(self.next_repetition)
        self.next_repetition += 1
        self._require_load_ends(ran)
        return ran

    def counts(self, index: int) -> bool:
        """Whether nothing is wrong with a repetition that must not be."""
        marks = self.runs[index].trace.marks
        return all(self.allow_load and is_foreign(mark) for mark in marks)

    def _require_load_ends(self, ran: TimedRun) -> None:
        foreign = [mark for mark in ran.trace.marks if is_foreign(mark)]
        self.loaded_s = self.loaded_s + duration_s(ran.trace) if foreign else 0.0
        if self.loaded_s >= PATIENCE_S and not self.allow_load:
            raise SteadyLoad(
                f"{self.name}: other programs worked beside every repetition for "
                f"{self.loaded_s:.1f} s: {foreign[-1].detail}."
            )


Progress = Callable[[str, str, float | None], None]


def duration_s(trace: Trace) -> float:
    """Return the seconds from the first request due to the last token of the repetition."""
    start_ns = min(request.t_due_ns for request in trace.requests)
    ends_ns = [request.ended_ns for request in trace.requests if request.events]
    return (max(ends_ns, default=start_ns) - start_ns) / 1e9


def output_tok_per_s(trace: Trace) -> float:
    """Return the output tokens of the repetition over its duration."""
    return sum(request.n_output_tokens for request in trace.requests) / duration_s(trace)


def warm_up(
    side: Side, goal: Goal, progress: Progress, *, at_most: int = MAX_REPETITIONS
) -> WarmUp:
    """Repeat until the last five are stable within 2 %, or the warm-up's share of the budget ends.

    The first repetition, in which compilation happens, takes nothing of that share. `at_most` is
    how many repetitions another process needed.
    """
    start_s = time.monotonic()
    durations_s: list[float] = []
    share_s = goal.budget_s * WARM_UP_SHARE
    while not _stable(durations_s) and sum(durations_s[1:]) < share_s:
        if len(durations_s) >= at_most:
            break
        progress("warming up", f"{side.name} {len(durations_s) + 1}", None)
        durations_s.append(duration_s(side.once().trace))
    # A scripted model's runs take no time of ours.
    untimed_s = max(0.0, time.monotonic() - start_s - sum(durations_s))
    return WarmUp(
        durations_s=tuple(durations_s),
        stable=_stable(durations_s),
        untimed_s=round(untimed_s, 3),
    )


def sample(
    sides: Sequence[Side], goal: Goal, progress: Progress, *, at_most: int = MAX_REPETITIONS
) -> None:
    """Fill `runs` of one side, or of two in A B B A order, until the goal is met.

    Sides that have runs go on from there. No more than `at_most` repetitions (pairs, for two
    sides) are taken.

    Raises:
        InvalidRun: fewer than four repetitions, or fewer than half of those taken, are valid.

    """
    spent_s, n_taken = sum(map(_spent_s, sides)), len(sides[0].runs)
    while n_taken < at_most:
        spent_s += run_each_once(sides, reverse=n_taken % 2 == 1)
        n_taken += 1
        state = _SamplingState(
            n_taken=n_taken,
            n_valid=len(valid_indices(sides)),
            spent_s=spent_s,
            half_width=half_width(sides),
        )
        if state.is_enough(goal) or gives_up(sides, goal, spent_s):
            break
        value = value_text(sides, state.half_width, goal, spent_s)
        progress("sampling", f"{n_taken}, {value}", None)
    require_valid(sides)


def gives_up(sides: Sequence[Side], goal: Goal, spent_s: float) -> bool:
    """Note on the first side why the rest of the budget cannot decide anything, where it cannot."""
    sides[0].given_up = give_up.of_samples(
        rates(sides), spent_s=spent_s, budget_s=goal.budget_s, needed=goal.needed
    )
    return bool(sides[0].given_up)


def _spent_s(side: Side) -> float:
    return sum(duration_s(ran.trace) for ran in side.runs)


def run_each_once(sides: Sequence[Side], *, reverse: bool) -> float:
    """Run one repetition of each side, and return the seconds that they took."""
    spent_s = 0.0
    for side in reversed(sides) if reverse else sides:
        ran = side.once()
        side.runs.append(ran)
        spent_s += duration_s(ran.trace)
    return spent_s


def valid_indices(sides: Sequence[Side]) -> list[int]:
    """Return the repetitions (pairs, for two sides) in which no side is marked."""
    n_taken = min(len(side.runs) for side in sides)
    return [index for index in range(n_taken) if _is_unmarked(sides, index)]


def _is_unmarked(sides: Sequence[Side], index: int) -> bool:
    """Whether a repetition counts on every side."""
    return all(side.counts(index) for side in sides)


def half_width(sides: Sequence[Side], sizes: Sequence[int] = ()) -> float | None:
    """Return the relative half-width of the 99 % interval of the rate, or of the paired ratio.

    The ratio is that of two sides; `sizes` are the valid repetitions of each process, where there
    are several. None where it is unknown.
    """
    values = rates(sides)
    return _relative_half_width(values, sizes) if len(values) >= MIN_VALID else None


def _relative_half_width(values: Sequence[float], sizes: Sequence[int]) -> float | None:
    """Return the half-width over the median. None where the interval has no upper end."""
    low, high = center_interval(values, Processes(sizes=tuple(sizes)))
    return None if high == inf else (high - low) / 2 / median(values)


def rates(sides: Sequence[Side]) -> list[float]:
    """Return the output tokens a second of each valid repetition, or the ratios of two sides."""
    valid = valid_indices(sides)
    of_sides = [[output_tok_per_s(side.runs[index].trace) for index in valid] for side in sides]
    if len(of_sides) == 1:
        return of_sides[0]
    return [first / second for first, second in zip(*of_sides, strict=True)]


def _stable(durations_s: Sequence[float]) -> bool:
    window_s = list(durations_s[-WARM_UP_WINDOW:])
    if len(window_s) < MIN_WARM_UP:
        return False
    middle = len(window_s) // 2
    older_s, newer_s = window_s[:middle], window_s[middle:]
    return abs(median(newer_s) / median(older_s) - 1) < STABLE_WITHIN


@dataclass(frozen=True, kw_only=True)
class _SamplingState:
    """How far sampling has come, and how sure the rate is."""

    n_taken: int
    n_valid: int
    spent_s: float
    half_width: float | None

    def is_enough(self, goal: Goal) -> bool:
        """Whether the goal is met, or the budget ended.

        A device that is busy now and then is given twice the budget and eight tries.
        """
        if self.n_valid < MIN_VALID:
            return self._was_tried_twice_over(goal)
        is_precise = self.n_valid >= FIRST_LOOK and self._is_precise(goal)
        return is_precise or self.spent_s >= goal.budget_s

    def _was_tried_twice_over(self, goal: Goal) -> bool:
        """Whether twice the needed repetitions and twice the budget are used up."""
        return self.n_taken >= 2 * MIN_VALID and self.spent_s >= 2 * goal.budget_s

    def _is_precise(self, goal: Goal) -> bool:
        return self.half_width is not None and self.half_width <= goal.precision


def value_text(sides: Sequence[Side], half_width: float | None, goal: Goal, spent_s: float) -> str:
    """Say what is measured so far: '20.9 tok/s ±14 % (goal ±1 %), 11 s of 20 s'.

    It is the rate, or the ratio of two sides.
    """
    clock = f"{spent_s:.0f} s of {goal.budget_s:.0f} s"
    values = rates(sides)
    if not values:
        return clock
    value = _shown_value(sides, median(values))
    goal_text = f"(goal ±{format_percent(goal.precision, 2)})"
    if half_width is None:
        return f"{value} {goal_text}, {clock}"
    return f"{value} ±{format_percent(half_width, 2)} {goal_text}, {clock}"


def _shown_value(sides: Sequence[Side], value: float) -> str:
    """Write the rate as the summary shows it, a prefill's in prompt tokens; or the ratio."""
    if len(sides) > 1:
        return format_value(value, "x")
    requests = sides[0].runs[-1].trace.requests
    is_prefill = all(request.n_output_tokens == 1 for request in requests)
    tokens_each = sum(request.n_prompt_tokens for request in requests) / len(requests)
    return format_value(value * tokens_each if is_prefill else value, "tok/s")


def require_valid(sides: Sequence[Side]) -> None:
    """Raise InvalidRun where too few of the repetitions are valid."""
    n_valid, n_taken = len(valid_indices(sides)), len(sides[0].runs)
    if n_valid < MIN_VALID or n_valid * 2 < n_taken:
        raise _too_few_valid(n_valid, n_taken, sides)


def _too_few_valid(n_valid: int, n_taken: int, sides: Sequence[Side]) -> InvalidRun:
    return InvalidRun(
        f"{n_valid} of {n_taken} repetitions are valid, {MIN_VALID} and half of all are needed: "
        f"{_reasons(sides) or 'the budget ended'}. "
        f"{_advice(sides)}",
    )


def _advice(sides: Sequence[Side]) -> str:
    """Say what to do: a larger budget helps against what comes now and then, not against load."""
    if any(is_foreign(mark) for side in sides for mark in side.marks):
        return "Close other programs, or give --llmperf-allow-load to measure beside them."
    return "Free the device of other work, or give a larger --llmperf-budget."


def _reasons(sides: Sequence[Side]) -> str:
    """Say how often each kind of mark came, with an example."""
    details: dict[str, list[str]] = {}
    for mark in (mark for side in sides for mark in side.marks):
        details.setdefault(mark.kind, []).append(mark.detail)
    return "; ".join(
        f"{kind} in {len(examples)} (e.g. {examples[0]})" for kind, examples in details.items()
    )
