"""Repetitions in blocks: one fresh process on each side of each block.

The blocks are the independent observations, so their number is what makes an interval narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import stdev

from pytest_llmperf.session.processes.allocation import (
    ENOUGH_REPETITIONS,
    FIRST_LOOK,
    LEAST_REPETITIONS,
    MIN_PROCESSES,
    Costs,
    best_size,
    least_size,
    most_repetitions,
    next_look,
)
from pytest_llmperf.session.sampling import (
    FIRST_LOOK as REPETITIONS_BEFORE_A_LOOK,
)
from pytest_llmperf.session.sampling import (
    MAX_REPETITIONS,
    MIN_VALID,
    Goal,
    Progress,
    Side,
    duration_s,
    gives_up,
    half_width,
    rates,
    require_valid,
    run_each_once,
    sample,
    valid_indices,
    value_text,
)

STOPPING_MARGIN = 1.3
"""An interval that is looked at several times is narrow by chance at some look."""


@dataclass(frozen=True, kw_only=True)
class Fresh:
    """Fresh processes for all sides.

    `renew` ends those that are there and has the next ones loaded and warm, or loaded when their
    side runs, where they do not fit together (`in_turn`). `unsampled_s` counts the seconds that
    starts, loads and warm-ups took so far. `repetition_s` is what one of all sides took when warm.
    """

    renew: Callable[[], None]
    unsampled_s: Callable[[], float]
    repetition_s: float
    in_turn: bool = False


@dataclass
class Blocks:
    """What was taken so far. `sizes` are the repetitions of each process, valid or not."""

    sides: Sequence[Side]
    goal: Goal
    progress: Progress
    fresh: Fresh
    first_load_s: float
    sizes: list[int] = field(default_factory=list)

    def run(self, size: int) -> None:
        """Run a block in the processes that are there."""
        self.sizes.append(0)
        self.go_on(size)

    def run_fresh(self, size: int) -> None:
        """Run a block in fresh processes."""
        self.fresh.renew()
        self.run(size)

    def go_on(self, size: int) -> None:
        """Run more repetitions in the last block's processes."""
        self.sizes[-1] += size
        if not self.fresh.in_turn:
            for _ in range(size):
                run_each_once(self.sides, reverse=len(self.sides[0].runs) % 2 == 1)
            return
        for side in reversed(self.sides) if len(self.sizes) % 2 else self.sides:
            for _ in range(size):
                side.runs.append(side.once())

    @property
    def spent_s(self) -> float:
        """Seconds of sampling, and of the loads and warm-ups after those of the first process."""
        return self._sampled_s + self.fresh.unsampled_s() - self.first_load_s

    @property
    def costs(self) -> Costs:
        """What a fresh process costs, and a repetition, by those so far."""
        n_taken = len(self.sides[0].runs)
        repetition_s = self._sampled_s / n_taken if n_taken else self.fresh.repetition_s
        n_fresh = len(self.sizes) - 1
        load_s = self.first_load_s
        if n_fresh > 0:
            load_s = (self.fresh.unsampled_s() - self.first_load_s) / n_fresh
        return Costs(load_s=load_s, repetition_s=max(repetition_s, 1e-9))

    @property
    def valid_sizes(self) -> tuple[int, ...]:
        """The valid repetitions of each process that has some."""
        return valid_sizes(self.sizes, valid_indices(self.sides))

    def half_width(self) -> float | None:
        """Return the relative half-width of the interval over processes. None where unknown."""
        return half_width(self.sides, self.valid_sizes)

    @property
    def _sampled_s(self) -> float:
        return sum(duration_s(ran.trace) for side in self.sides for ran in side.runs)


def sample_processes(
    sides: Sequence[Side], goal: Goal, progress: Progress, fresh: Fresh
) -> tuple[int, ...]:
    """Fill `runs` of each side over several processes, until the goal is met.

    Returns how many repetitions each process ran; nothing where one process ran them all, since
    loading more is too dear for the budget.

    Raises:
        InvalidRun: fewer than four repetitions, or fewer than half of those taken, are valid.
    """
    blocks = Blocks(sides, goal, progress, fresh, first_load_s=fresh.unsampled_s())
    size = _size(blocks)
    if size is None:
        sample(sides, goal, progress)
        return ()
    blocks.run(size)
    if not fresh.in_turn:
        size = max(size, min(_best_size(blocks), MAX_REPETITIONS))
        blocks.go_on(size - blocks.sizes[0])
    for _ in _needed(blocks, size):
        blocks.run_fresh(size)
    require_valid(sides)
    return tuple(blocks.sizes)


def valid_sizes(sizes: Sequence[int], valid: Sequence[int]) -> tuple[int, ...]:
    """Return how many of the repetitions of each process are valid; processes without are left out.

    `valid` are the indices of the valid ones in all.
    """
    indices, end, counts = frozenset(valid), 0, []
    for size in sizes:
        counts.append(len(indices.intersection(range(end, end + size))))
        end += size
    return tuple(filter(None, counts))


def _size(blocks: Blocks) -> int | None:
    """Return how many repetitions of each process the budget holds at least, up to four.

    Models that are loaded in turn are loaded anew anyway, and who names a number gets it.
    """
    wanted = blocks.goal.processes
    size = least_size(blocks.costs, blocks.goal.budget_s, wanted or MIN_PROCESSES)
    if size is None and (wanted or blocks.fresh.in_turn):
        # As long as they take no longer than the load that is made for them.
        return max(LEAST_REPETITIONS, min(ENOUGH_REPETITIONS, _worth_a_load(blocks.costs)))
    return size


def _worth_a_load(costs: Costs) -> int:
    """Return how many repetitions take as long as a load."""
    return math.floor(costs.load_s / costs.repetition_s)


def _best_size(blocks: Blocks) -> int:
    """Return how many repetitions a process should run, by the spread of those so far."""
    goal, costs = blocks.goal, blocks.costs
    logs = [math.log(rate) for rate in rates(blocks.sides)]
    within = stdev(logs) if len(logs) > 1 else 0.0
    best = best_size(costs, within, goal.budget_s)
    if goal.processes is None:
        return best
    enough = math.ceil(REPETITIONS_BEFORE_A_LOOK / goal.processes)
    most = most_repetitions(costs, goal.budget_s, goal.processes)
    return min(max(best, enough), max(most, _worth_a_load(costs)))


def _needed(blocks: Blocks, size: int) -> Iterator[int]:
    """Yield the number of each process that is needed after the first."""
    look_at = FIRST_LOOK
    while not _is_used_up(blocks, size):
        count = len(blocks.sizes)
        width = None
        if blocks.goal.processes is None and count >= look_at and _may_look(blocks):
            width, look_at = blocks.half_width(), next_look(count)
            if width is not None and width * STOPPING_MARGIN <= blocks.goal.precision:
                return
            if gives_up(blocks.sides, blocks.goal, blocks.spent_s):
                return
        _show(blocks, width)
        yield count + 1


def _may_look(blocks: Blocks) -> bool:
    return sum(blocks.valid_sizes) >= REPETITIONS_BEFORE_A_LOOK


def _is_used_up(blocks: Blocks, size: int) -> bool:
    """Whether there are enough processes, or no other one fits into the budget.

    A device that is busy now and then is given twice the budget.
    """
    count, costs, goal = len(blocks.sizes), blocks.costs, blocks.goal
    n_taken, n_valid = len(blocks.sides[0].runs), sum(blocks.valid_sizes)
    if n_taken + size > MAX_REPETITIONS:
        return True
    next_s = blocks.spent_s + costs.load_s + size * costs.repetition_s
    if n_valid < MIN_VALID:
        return n_taken >= 2 * MIN_VALID and next_s > 2 * goal.budget_s
    if goal.processes is not None:
        return count >= goal.processes
    return count >= MIN_PROCESSES and next_s > goal.budget_s


def _show(blocks: Blocks, width: float | None) -> None:
    """Say which process comes next, and what is measured so far."""
    value = value_text(blocks.sides, width, blocks.goal, blocks.spent_s)
    blocks.progress("sampling", f"process {len(blocks.sizes) + 1}, {value}", None)
