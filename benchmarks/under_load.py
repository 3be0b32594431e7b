"""Pairs in turn beside other programs: which may be used, by simulation (docs/decisions/0023).

    python benchmarks/under_load.py [--full] [--out FOLDER]

Seeds are fixed. Writes under_load.md to the folder (default build/benchmarks), and exits 1 where
the policy that the plugin uses misses a bar. Without --full it takes a tenth of the runs.

What is simulated: a pair is a fresh process on each side, in random order. The log time of a block
is the process's own effect (sd 0 to 3 %, or two modes 6 % apart), noise that is independent or
autocorrelated, now and then an outlier of 30 %, a slow drift, and what the load does to it: with a
share L of the cores in others' hands it takes 1 / (1 - L)^b times as long, and varies more the
higher L is. b is how sensitive the program is. L is steady, wanders, comes in bursts, rises, or has
two modes.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from pytest_llmperf.core.foreign_load import hits_alike
from pytest_llmperf.core.verdicts import stats
from pytest_llmperf.core.verdicts.side_by_side import SideBySide

LIMIT = 0.25
"""The share of the cores above which a repetition is marked (`instruments.telemetry`)."""

LOAD_NOISE = 0.12
"""Sd of the log time of a block, for each whole core share of load: 6 % at half of the cores."""

MAX_INVALID = 5

Load = Callable[[random.Random], Iterator[float]]
"""Gives the share of the cores that others use beside one block after another."""

Policy = Callable[[Sequence[float]], bool]
"""Says of the shares beside the two blocks of a pair whether the pair counts."""


def steady(draw: random.Random) -> Iterator[float]:
    """Half of the cores, give or take what the counter's ticks blur."""
    while True:
        yield _share(draw.gauss(0.5, 0.03))


def wandering(draw: random.Random) -> Iterator[float]:
    """About 0.4, with neighbours that are alike (0.8)."""
    x = draw.gauss(0, 1)
    while True:
        yield _share(0.4 + 0.15 * x)
        x = 0.8 * x + 0.6 * draw.gauss(0, 1)


def bursts(draw: random.Random) -> Iterator[float]:
    """Nothing, then 0.6, each for three blocks on average."""
    on = draw.random() < 0.5
    while True:
        yield _share(draw.gauss(0.6, 0.05)) if on else _share(abs(draw.gauss(0.03, 0.02)))
        on = on if draw.random() < 2 / 3 else not on


def rising(draw: random.Random) -> Iterator[float]:
    """From 0.2 to 0.75 over forty blocks."""
    for block in range(10_000):
        yield _share(min(0.75, 0.2 + 0.55 * block / 40) + draw.gauss(0, 0.03))


def two_modes(draw: random.Random) -> Iterator[float]:
    """0.3 or 0.6, drawn anew for each block."""
    while True:
        yield _share(draw.gauss(draw.choice((0.3, 0.6)), 0.03))


def none(_draw: random.Random) -> Iterator[float]:
    """A quiet machine."""
    while True:
        yield 0.0


LOADS: dict[str, Load] = {
    "steady": steady,
    "wandering": wandering,
    "bursts": bursts,
    "rising": rising,
    "two modes": two_modes,
}


def drop_marked(shares: Sequence[float]) -> bool:
    """What was done before: a pair counts only where neither side is marked."""
    return max(shares) <= LIMIT


def keep_all(_shares: Sequence[float]) -> bool:
    """Every pair counts."""
    return True


def keep_alike(shares: Sequence[float]) -> bool:
    """A pair counts where neither side is marked, or load hits both alike."""
    return drop_marked(shares) or hits_alike(shares)


POLICIES: dict[str, Policy] = {
    "drop what is marked": drop_marked,
    "keep all": keep_all,
    "keep what is hit alike": keep_alike,
}


class Program(NamedTuple):
    """A program's own time relative to the base (1.05: 5 % slower), and how load slows it.

    `waiting` is a share of that time that passes without a CPU, so that load does not stretch it.
    """

    time: float = 1.0
    sensitivity: float = 1.0
    waiting: float = 0.0


class World(NamedTuple):
    """What varies: between processes, between blocks, with neighbours, and the load."""

    load: Load
    process_sd: float = 0.02
    noise_sd: float = 0.01
    autocorrelation: float = 0.0
    two_modes: bool = False
    drift: float = 0.0


def blocks(world: World, draw: random.Random) -> Iterator[Callable[[Program], tuple[float, float]]]:
    """Yield one moment after another, at each of which a block of any program can be measured.

    It gives the block's time and the share of the cores that others used.
    """
    noise = draw.gauss(0, 1)
    r = world.autocorrelation
    for moment, share in enumerate(world.load(draw)):
        common = world.noise_sd * noise + world.drift * moment

        def block(
            program: Program, share: float = share, common: float = common
        ) -> tuple[float, float]:
            stretched = (1 - share) ** -program.sensitivity
            own = program.waiting + (1 - program.waiting) * stretched
            log = math.log(program.time * own) + common + _process(world, draw)
            log += draw.gauss(0, LOAD_NOISE * share)
            log += 0.3 if draw.random() < 0.01 else 0.0
            return math.exp(log), share

        yield block
        noise = r * noise + math.sqrt(1 - r * r) * draw.gauss(0, 1)


def _process(world: World, draw: random.Random) -> float:
    """Return the effect of a fresh process on its log time."""
    effect = draw.gauss(0, world.process_sd)
    return effect + (0.06 if draw.random() < 0.25 else 0.0) if world.two_modes else effect


def decided(world: World, new: Program, policy: Policy, draw: random.Random) -> str:
    """Return what rule B makes of a base and a new program: PASS, FAIL, UNDECIDED or INVALID."""
    state, n_invalid = SideBySide(direction="lower"), 0
    moments = blocks(world, draw)
    while True:
        first, second = islice(moments, 2)
        base_first = draw.random() < 0.5
        if base_first:
            base_block, new_block = first(Program()), second(new)
        else:
            new_block, base_block = first(new), second(Program())
        if not policy((base_block[1], new_block[1])):
            n_invalid += 1
            if n_invalid > max(MAX_INVALID, len(state.log_ratios)):
                return "INVALID"
            continue
        state = state.with_pair(base_block[0], new_block[0])
        decision = state.look()
        if decision is not None and decision.outcome is not None:
            return decision.outcome.value


def confirmed(world: World, new: Program, policy: Policy, draw: random.Random) -> str:
    """Return the same where a FAIL has to be seen again, in pairs of its own."""
    first = decided(world, new, policy, draw)
    if first != "FAIL":
        return first
    second = decided(world, new, policy, draw)
    return "FAIL" if second == "FAIL" else "UNDECIDED"


def verdicts(world: World, new: Program, policy: Policy, runs: int, seed: int = 0) -> Counter[str]:
    """Return how often rule B gives which verdict."""
    draw = _seeded(seed)
    return Counter(confirmed(world, new, policy, draw) for _ in range(runs))


def coverage(
    world: World, other: Program, policy: Policy, runs: int, pairs: int = 12, seed: int = 0
) -> float:
    """Return how often the 99 % interval of `compare` holds the ratio of a quiet machine.

    Of all comparisons that have an interval; NaN where none has.
    """
    draw, n_covered, n_intervals = _seeded(seed), 0, 0
    for _ in range(runs):
        moments = blocks(world, draw)
        a, b = [], []
        for pair in range(pairs):
            first, second = islice(moments, 2)
            x, y = (first, second) if pair % 2 == 0 else (second, first)
            one, two = x(Program()), y(other)
            if policy((one[1], two[1])):
                a.append(one[0])
                b.append(two[0])
        if len(a) >= stats.MIN_PAIRS and 2 * len(a) >= pairs:
            ratio = stats.log_ratio_interval(b, a, paired=True)
            n_intervals += 1
            n_covered += ratio.low <= math.log(other.time) <= ratio.high
    return n_covered / n_intervals if n_intervals else math.nan


def _seeded(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - not for secrets: the same runs each time


def _share(x: float) -> float:
    return min(0.9, max(0.0, x))


class Row(NamedTuple):
    """One figure of the table. `met` is None where there is no bar."""

    what: str
    policy: str
    value: str
    bar: str = ""
    met: bool | None = None


def rows(runs: int) -> Iterator[Row]:
    """Yield every figure."""
    for noise_sd in (0.02, 0.06):
        quiet = World(load=none, noise_sd=noise_sd)
        what = f"quiet, {_text(quiet)}"
        yield from _rule_b_rows(what, quiet, "keep what is hit alike", runs)
    for name, load in LOADS.items():
        for world in _worlds(load):
            for policy in POLICIES:
                yield from _rule_b_rows(f"{name}, {_text(world)}", world, policy, runs)
    for name, load in LOADS.items():
        for gap in (0.0, 0.2, 0.5):
            for policy, accepts in POLICIES.items():
                other = Program(time=0.7, sensitivity=1.0 + gap)
                share = coverage(World(load=load), other, accepts, runs // 5)
                what = f"compare, {name}, sensitivity of the two {gap:g} apart: coverage"
                yield Row(what, policy, _percent(share))
    for waiting in (0.0, 0.05):
        new = Program(time=1.10, waiting=waiting)
        counts = verdicts(World(load=steady), new, keep_alike, runs // 5)
        what = f"steady, +10 % of which {waiting:.0%} is waiting: FAIL / PASS"
        yield Row(what, "keep what is hit alike", _two(counts, "FAIL", "PASS"))


def _worlds(load: Load) -> Iterator[World]:
    yield World(load=load, process_sd=0.0, noise_sd=0.02)
    yield World(load=load)
    yield World(load=load, autocorrelation=0.5)
    yield World(load=load, two_modes=True)
    yield World(load=load, process_sd=0.03, drift=0.001)


def _rule_b_rows(what: str, world: World, policy: str, runs: int) -> Iterator[Row]:
    """Yield the figures of rule B; the policy that the plugin uses has bars, and all the runs."""
    counts = POLICIES[policy]
    judged = counts is keep_alike
    n_none, n_five, n_ten = (runs, runs // 2, runs // 10) if judged else (runs // 10,) * 3
    none_worse = verdicts(world, Program(), counts, n_none)
    five = verdicts(world, Program(time=1.05), counts, n_five)
    ten = verdicts(world, Program(time=1.10), counts, n_ten)
    bars = ("≤ 0.1 %", "≤ 1 %") if judged else ("", "")
    met = (
        _below(none_worse["FAIL"], n_none, 0.001) if judged else None,
        _below(five["PASS"], n_five, 0.01) if judged else None,
    )
    yield Row(f"{what}: false FAIL", policy, _percent(none_worse["FAIL"] / n_none), bars[0], met[0])
    yield Row(f"{what}: +5 % passed", policy, _percent(five["PASS"] / n_five), bars[1], met[1])
    yield Row(f"{what}: +10 % FAIL / INVALID", policy, _two(ten, "FAIL", "INVALID"))
    yield Row(f"{what}: unchanged PASS / INVALID", policy, _two(none_worse, "PASS", "INVALID"))


def _below(count: int, runs: int, bar: float) -> bool:
    """Whether a count does not contradict a rate of at most `bar`, at 99 %."""
    mean = runs * bar
    return count <= mean + 2.33 * math.sqrt(mean) + 1


def _two(counts: Counter[str], one: str, other: str) -> str:
    total = sum(counts.values())
    return f"{_percent(counts[one] / total)} / {_percent(counts[other] / total)}"


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.3g} %"  # noqa: RUF001


def _text(world: World) -> str:
    parts = [f"process sd {world.process_sd:.0%}", f"noise {world.noise_sd:.0%}"]
    if world.autocorrelation:
        parts.append(f"autocorrelation {world.autocorrelation:g}")
    if world.two_modes:
        parts.append("two modes")
    if world.drift:
        parts.append("drift")
    return ", ".join(parts)


def markdown(table: Sequence[Row]) -> str:
    """Write the table."""
    lines = ["| what | policy | value | bar | met |", "| --- | --- | --- | --- | --- |"]
    met = {None: "", True: "yes", False: "no"}
    lines += [
        f"| {row.what} | {row.policy} | {row.value} | {row.bar} | {met[row.met]} |" for row in table
    ]
    return "\n".join([*lines, ""])


def main() -> int:
    """Simulate all, write the table, and say whether a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="10,000 runs a figure (minutes)")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args()
    table = list(rows(10_000 if options.full else 1_000))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "under_load.md").write_text(markdown(table), encoding="utf-8")
    for row in table:
        if row.met is False:
            print(f"missed: {row.what}: {row.value}, {row.bar}", file=sys.stderr)
    return 1 if any(row.met is False for row in table) else 0


if __name__ == "__main__":
    sys.exit(main())
