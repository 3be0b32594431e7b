"""What a claim comes down to: one measured interval against one bound, and the words for both."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pytest_llmperf.core.format import format_percent, format_value
from pytest_llmperf.core.verdicts import stats
from pytest_llmperf.core.verdicts.estimate import Estimate, interval_text
from pytest_llmperf.core.verdicts.give_up import out_of_reach
from pytest_llmperf.core.verdicts.processes import NEAR, UNKNOWN, Processes, apart

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
EQUALITIES = frozenset({"==", "!="})
_AT_LEAST = frozenset({">", ">="})
_MIN_DIGITS = 3
_MAX_DIGITS = 15


class Case(NamedTuple):
    """A claim made ready: `measured op bound`, both in one unit.

    `title` names what was measured, and `sample_size` says what it rests on, for example
    "26 pairs, interleaved". `relative_to` names the other side of a ratio.
    """

    op: str
    measured: Estimate
    bound: float
    title: str
    sample_size: str
    relative_to: str = ""

    @property
    def holds_exactly(self) -> bool:
        """Whether the value meets the bound within the quantity's own tolerance."""
        value, slack = self.measured.value, self.slack
        if self.op in EQUALITIES:
            return (abs(value - self.bound) <= slack) == (self.op == "==")
        shift = -slack if self.op in _AT_LEAST else slack
        return OPERATORS[self.op](value, self.bound + shift)

    @property
    def slack(self) -> float:
        """The tolerance in the unit of the bound."""
        return self.measured.tolerance * abs(self.bound)

    @property
    def is_supported(self) -> bool:
        """Whether the whole interval agrees with the claim."""
        worst_end = self.measured.low if self.op in _AT_LEAST else self.measured.high
        return OPERATORS[self.op](worst_end, self.bound)

    @property
    def is_contradicted(self) -> bool:
        """Whether the whole interval disagrees with the claim."""
        best_end = self.measured.high if self.op in _AT_LEAST else self.measured.low
        return not OPERATORS[self.op](best_end, self.bound)

    @property
    def is_due_to_load(self) -> bool:
        """Whether other programs, which make times longer and rates lower, may be the reason.

        A limit that is kept although others worked beside it is kept.
        """
        if not self.measured.disturbed or self.measured.direction == "none":
            return False
        is_limit = (self.measured.direction == "higher") == (self.op in _AT_LEAST)
        return self.is_contradicted if is_limit else self.is_supported

    @property
    def missed_share(self) -> float:
        """By which share of the bound the value misses it; 0 when it does not."""
        value, bound = self.measured.value, self.bound
        if OPERATORS[self.op](value, bound):
            return 0.0
        return abs(value - bound) / abs(bound) if bound else math.inf

    @property
    def margin(self) -> float | None:
        """log(value / bound) in the direction of the claim; None where one is not positive."""
        value, bound = self.measured.value, self.bound
        if value <= 0 or bound <= 0:
            return None
        log = math.log(value / bound)
        if self.op in EQUALITIES:
            return -abs(log) if self.op == "==" else abs(log)
        return log if self.op in _AT_LEAST else -log

    @property
    def half_width(self) -> float:
        """Half the interval: in logs for timings, in the quantity's unit where bootstrapped."""
        low, high = self.measured.low, self.measured.high
        if self.is_bootstrapped:
            return (high - low) / 2
        if low <= 0 or math.isinf(high):
            return math.inf
        return math.log(high / low) / 2

    @property
    def distance(self) -> float:
        """How far the value is from the bound, on the scale of `half_width`."""
        value, bound = self.measured.value, self.bound
        if self.is_bootstrapped:
            return abs(value - bound)
        if value <= 0 or bound <= 0:
            return math.inf
        return abs(math.log(value / bound))

    @property
    def smallest_visible(self) -> float | None:
        """The smallest difference that the interval shows; None for exact quantities."""
        if self.measured.kind == "exact":
            return None
        if self.is_bootstrapped:
            return self.half_width
        return stats.smallest_visible_change(self.half_width)

    @property
    def more_samples(self) -> int | None:
        """How many more samples would decide; None where no number would.

        Where samples are of several processes, they are those of so many more processes.
        """
        more = self._more_of_its_unit
        if more is None or not self.measured.processes.are_several:
            return more
        return math.ceil(more * self.measured.n / self.measured.processes.count)

    @property
    def _more_of_its_unit(self) -> int | None:
        """How many more processes would decide, or samples of the one that there is."""
        processes = self.measured.processes
        if processes.are_several:
            return stats.samples_needed(processes.count, self.half_width, self.distance)
        return stats.samples_needed(
            self.measured.n, self.half_width, self.distance, at_least=self.measured.at_least
        )

    @property
    def rests_on_one_process(self) -> bool:
        """Whether it is a timing of one process, and nobody knows how much others differ."""
        return self.measured.kind == "timing" and self.measured.processes.is_unknown

    @property
    def is_near(self) -> bool:
        """Whether the value is within 5 % of the bound."""
        return self.distance <= math.log1p(NEAR)

    @property
    def is_bootstrapped(self) -> bool:
        """Whether the interval comes from resampling, so that differences are absolute."""
        return self.measured.kind == "bootstrap"

    # Words

    @property
    def measured_text(self) -> str:
        """'throughput of bf16 is 1.08x fp32 [1.07, 1.09]'."""
        value = format_value(self.measured.value, self.measured.unit, self._digits)
        reference = f" {self.relative_to}" if self.relative_to else ""
        interval = "" if self.measured.kind == "exact" else f" {interval_text(self.measured, 3)}"
        return f"{self.title} is {value}{reference}{interval}"

    @property
    def bound_text(self) -> str:
        """'>= 1.20x'."""
        return f"{self.op} {format_value(self.bound, self.measured.unit, self._digits)}"

    @property
    def visible_text(self) -> str:
        """The smallest visible difference, or why it is not known; and what it says nothing of."""
        unknown = f"; {UNKNOWN}" if self.rests_on_one_process else ""
        return f"{self._smallest_visible_text}{unknown}"

    @property
    def _smallest_visible_text(self) -> str:
        half_width = self.half_width
        if math.isinf(half_width):
            return f"unknown (the interval has no end below {self.measured.at_least} samples)"
        if self.is_bootstrapped:
            return format_value(half_width, self.measured.unit, 2)
        return format_percent(stats.smallest_visible_change(half_width), 2)

    def within_floor_text(self, floor: float) -> str:
        """Say that the value misses the bound by too little to matter."""
        missed = format_percent(self.missed_share, 2)
        return f"the miss of {missed} is within the practical floor of {format_percent(floor, 2)}"

    @property
    def more_samples_text(self) -> str:
        """Say what would decide: 'about 12 more pairs would decide'."""
        more = self._more_of_its_unit
        if more is None:
            return "the value lies too near the bound for any number of samples"
        noun = self._sample_noun
        plural = "es" if noun.endswith("s") else "s"
        n = self.measured.processes.count if noun == "process" else self.measured.n
        far_off = out_of_reach(n, more, noun + plural)
        return far_off or f"about {more} more {noun}{'' if more == 1 else plural} would decide"

    @property
    def load_text(self) -> str:
        """Say why a claim on a run beside other programs is left open."""
        return "other programs worked beside it (--llmperf-allow-load), and may be the reason"

    @property
    def one_process_text(self) -> str:
        """Say what would decide a claim near its bound that one process cannot."""
        return (
            f"the value is within {format_percent(NEAR, 1)} of the bound, and "
            f"{self.measured.processes.unknown}. What would decide: several processes (processes=5 "
            "or --llmperf-processes=5), or their known spread ('llmperf calibrate', or four stored "
            "sessions)"
        )

    @property
    def _sample_noun(self) -> str:
        """'process', 'pair', 'sample' or 'prompt': what the interval rests on."""
        if self.is_bootstrapped:
            return self.measured.counted
        if self.measured.processes.are_several:
            return "process"
        return "pair" if "pairs" in self.sample_size else "sample"

    @property
    def _digits(self) -> int:
        """Three, or as many as an exact value and a bound that differ need to read differently."""
        value, unit = self.measured.value, self.measured.unit
        if self.measured.kind != "exact" or value == self.bound:
            return _MIN_DIGITS
        for digits in range(_MIN_DIGITS, _MAX_DIGITS):
            if format_value(value, unit, digits) != format_value(self.bound, unit, digits):
                return digits
        return _MAX_DIGITS


def count_text(measured: Estimate) -> str:
    """Say what one estimate rests on: '26 samples', 'exact'."""
    if measured.kind == "exact":
        return "one reading" if measured.tolerance else "exact"
    if measured.kind == "bootstrap":
        return f"{measured.n} {measured.counted}s"
    if measured.against and measured.pair is not None:
        return pairs_text(measured)
    return f"{measured.n} samples{_processes_text(measured.samples, measured.processes)}"


def pairs_text(ratio: Estimate) -> str:
    """Say what a ratio of pairs rests on: '26 pairs, interleaved'."""
    return interleaved_text(ratio.n, ratio.samples, ratio.processes)


def interleaved_text(n: int, ratios: Sequence[float], processes: Processes) -> str:
    """Say what the ratios of pairs rest on: '26 pairs, interleaved, 3 processes, 0.8 % apart'."""
    return f"{n} pairs, interleaved{_processes_text(ratios, processes)}"


def _processes_text(samples: Sequence[float], processes: Processes) -> str:
    """', 3 processes, 0.8 % apart', or by what one process is known to differ from others."""
    share = apart(samples, processes.sizes) if samples else None
    if share is not None:
        return f", {processes.count} processes, {format_percent(share, 2)} apart"
    if processes.known is not None:
        spread = format_percent(processes.known.spread, 2)
        return f", one process; processes vary by {spread} ({processes.known.source})"
    return ""


def counts_text(a: Estimate, b: Estimate) -> str:
    """Say what two estimates that are no pairs rest on."""
    if a.kind == b.kind == "exact":
        return "one reading each" if max(a.tolerance, b.tolerance) else "exact"
    counts = f"{a.n} and {b.n} samples"
    if a.processes.are_several or b.processes.are_several:
        return f"{counts} of {a.processes.count} and {b.processes.count} processes"
    return counts
