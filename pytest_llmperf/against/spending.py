"""What the pairs of one comparison have cost, and what the budget still allows. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import fmean

from pytest_llmperf.core.format import format_percent
from pytest_llmperf.core.verdicts import give_up
from pytest_llmperf.core.verdicts.loads import Load, worthwhile_repetitions
from pytest_llmperf.core.verdicts.side_by_side import MARGIN as PASS_MARGIN
from pytest_llmperf.core.verdicts.side_by_side import MIN_PAIRS, SideBySide
from pytest_llmperf.core.verdicts.stats import MIN_PAIRS as MIN_REPETITIONS

SHARE_OF_THE_FIRST = 0.5
"""What a later pair may cost of the first, which compiles, converts and fills caches for all.

On an H200 first pairs took 31 and 32 s where later ones took 18 to 22.
"""

BLOCK_SHARE = 0.2
"""Share of a run's sampling budget that one block may take, where its process starts in less.

A pair is many blocks, each too short to drift.
"""
LOOKS = 2
"""A suspicion is looked at again; loads may take the time of both looks, samples that of one."""


def takes_at_most_s(budget_s: float, load_s: float, block_s: float) -> float:
    """Return what one comparison takes at most, in s, where a process is warm after `load_s`.

    The base's test is run until it measures the same, which loads its models once. Both looks end
    with their budget, and the pair that it ends in is finished: two processes, each of which
    samples for `block_s`, or for as long as it took to start.
    """
    last_pair_s = 2 * (load_s + max(block_s, load_s))
    return load_s + LOOKS * budget_s + last_pair_s


@dataclass(frozen=True, kw_only=True)
class PairCost:
    """Seconds of one pair: `sampled_s` of warm-up and samples, `total_s` with the loads."""

    sampled_s: float
    total_s: float


@dataclass
class Spending:
    """The time of one comparison: each look samples for `budget_s`, and loads besides.

    Loads and samples of both looks together take `LOOKS` x `budget_s` at most: what a comparison
    could take before each pair had processes of its own.
    """

    budget_s: float
    pairs: list[PairCost] = field(default_factory=list)
    _n_of_look: int = 0

    def begin_look(self) -> None:
        """Begin the first or the second measurement, which samples for as long."""
        self._n_of_look = 0

    def add(self, cost: PairCost) -> None:
        """Take in a pair."""
        self.pairs.append(cost)
        self._n_of_look += 1

    def ended(self) -> str:
        """Why no further pair may be measured; "" where one may."""
        if self._sampled_s >= self.budget_s:
            return f"{self._budget_text} ended after {self._n_of_look} pairs"
        if self._total_s >= LOOKS * self.budget_s:
            return (
                f"{LOOKS} x {self._budget_text}, loads included, "
                f"ended after {self._n_of_look} pairs"
            )
        return self._too_little()

    @property
    def n_at_end(self) -> float:
        """How many pairs this look may come to, if the next ones cost what the cheapest did."""
        cheapest_s = min(cost.total_s for cost in self.pairs)
        if cheapest_s <= 0:
            return math.inf
        return self._n_of_look + (LOOKS * self.budget_s - self._total_s) / cheapest_s

    def _too_little(self) -> str:
        """Say that the pairs which a verdict needs do not fit any more, as soon as it is seen.

        The cheapest pair so far stands for those to come; of the first alone, half does.
        """
        missing = MIN_PAIRS - self._n_of_look
        if missing <= 0 or not self.pairs:
            return ""
        cheapest_s = min(cost.total_s for cost in self.pairs)
        next_s = cheapest_s if len(self.pairs) > 1 else SHARE_OF_THE_FIRST * cheapest_s
        if self._total_s + missing * next_s <= LOOKS * self.budget_s:
            return ""
        needed_s = math.ceil((self._total_s + missing * cheapest_s) / LOOKS)
        return (
            f"a pair takes {cheapest_s:.3g} s, of which its two processes take "
            f"{self._loads_s:.3g} s to start: {MIN_PAIRS} pairs need "
            f"--llmperf-against-budget={needed_s} or more, it is {self.budget_s:g}"
        )

    @property
    def _budget_text(self) -> str:
        return f"the budget of {self.budget_s:g} s (--llmperf-against-budget)"

    @property
    def _sampled_s(self) -> float:
        """Warm-up and samples of this look."""
        latest = self.pairs[len(self.pairs) - self._n_of_look :]
        return math.fsum(cost.sampled_s for cost in latest)

    @property
    def _total_s(self) -> float:
        return math.fsum(cost.total_s for cost in self.pairs)

    @property
    def _loads_s(self) -> float:
        """Seconds of a mean pair that are neither warm-up nor samples."""
        return fmean(cost.total_s - cost.sampled_s for cost in self.pairs)


def too_noisy(state: SideBySide, n_at_end: float) -> str:
    """Say why no more pairs are measured; "" where those that are left may decide.

    `n_at_end` is how many pairs fit into the budget at most. Where neighbouring pairs are alike,
    the forecast takes them for independent ones: it gives up too late then, never too early.
    """
    n, refuted = len(state.log_ratios), state.floor + PASS_MARGIN
    if n < MIN_PAIRS:
        return ""
    last = max(n, math.floor(min(n_at_end, state.max_pairs)))
    visible = state.visible_after(last)
    if visible <= give_up.MARGIN * refuted:
        return ""
    return (
        f"given up after {n} pairs: at this noise {last} pairs would show a worsening of "
        f"{format_percent(visible, 2)} at best, and {format_percent(refuted, 2)} is to be refuted: "
        "this machine is too noisy for this comparison"
    )


@dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """How long the next blocks are: `repetitions` at most (0: as the precision says)."""

    budget_s: float
    repetitions: int = 0


def next_blocks(
    loads: list[Load], log_ratios: list[float], block_s: float, *, needs_all: bool
) -> BlockPlan:
    """Share a pair's time between loads and repetitions, once a pair has shown what they cost.

    `block_s` is what a block may take where its process starts in less; a process that takes longer
    to start samples for as long as that at most. `needs_all`: a metric (a high percentile) would
    have no value with fewer repetitions than the first blocks gave.
    """
    if not loads:
        return BlockPlan(budget_s=block_s)
    repetition_s = fmean(load.repetition_s for load in loads)
    budget_s = max(block_s, fmean(load.ready_s for load in loads))
    fit = budget_s / repetition_s if repetition_s > 0 else math.inf
    least = loads[0].repetitions if needs_all else MIN_REPETITIONS
    wanted = min(worthwhile_repetitions(loads, log_ratios), fit)
    if not math.isfinite(wanted):
        return BlockPlan(budget_s=budget_s)
    return BlockPlan(budget_s=budget_s, repetitions=max(least, math.ceil(wanted)))
