"""How many repetitions a process runs, from what a load and a repetition cost. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

MIN_PROCESSES = 3
FIRST_LOOK = 4
"""Processes before the first look: Student's t at three takes an interval of six spreads."""

LEAST_REPETITIONS = 2
ENOUGH_REPETITIONS = 4
"""Repetitions of a process that are enough where a load costs next to nothing."""

TARGET = 6
"""Processes that a budget should hold, before one of them gets more repetitions."""

ASSUMED_SPREAD = 0.01
"""Standard deviation of the processes' logs, until some were measured."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds of a fresh process (start, load, warm-up) and of one repetition, of all sides."""

    load_s: float
    repetition_s: float


def least_size(costs: Costs, budget_s: float, processes: int = MIN_PROCESSES) -> int | None:
    """Return how many repetitions of each process fit into the budget at least, up to four.

    The first process is loaded already. None where not even two fit: loading is dear.
    """
    size = most_repetitions(costs, budget_s, processes)
    return min(ENOUGH_REPETITIONS, size) if size >= LEAST_REPETITIONS else None


def most_repetitions(costs: Costs, budget_s: float, processes: int) -> int:
    """Return how many repetitions each of so many processes can run within the budget."""
    rest_s = budget_s - (processes - 1) * costs.load_s
    return math.floor(rest_s / (processes * costs.repetition_s))


def best_size(
    costs: Costs, within: float, budget_s: float, *, between: float = ASSUMED_SPREAD
) -> int:
    """Return how many repetitions a process should run.

    That is sqrt(cost of a load / cost of a repetition x variance within / variance between)
    (Kalibera and Jones 2013), as long as the budget holds six processes.
    """
    best = math.sqrt(costs.load_s / costs.repetition_s) * within / between
    most = (budget_s / TARGET - costs.load_s) / costs.repetition_s
    return math.floor(min(best, most))


def next_look(n_processes: int) -> int:
    """Return at how many processes the interval is looked at again.

    Looks lie ever farther apart, since each is a chance to stop too early.
    """
    return max(n_processes + 1, math.ceil(1.25 * n_processes))
