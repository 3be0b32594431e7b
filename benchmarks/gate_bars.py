"""The bars of the gate over many sessions, by simulation and on real series where they are.

python benchmarks/gate_bars.py [--full] [--out FOLDER]

Seeds are fixed. Prints a row a bar with PASS or FAIL, writes them to gate_bars.md in the folder
(default build/benchmarks), and exits 1 unless every bar is met. --full holds each bar against the
whole 99 % interval (PASS, FAIL, or UNDECIDED where the bar is inside), and takes about half
an hour on a core; without it a tenth of the histories, and the estimate.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import gate_simulated
import labelled
import simulated
from gate_simulated import Machine
from noise import NOISES
from verdict_bars import UNCHANGED, wilson

from pytest_llmperf.core.verdicts.against_history import Comparison
from pytest_llmperf.core.verdicts.judge import Outcome

_Z99 = 2.5758
QUARTER = 0.25


class Row(NamedTuple):
    """What was found of one bar: `at_most` or `at_least` bounds it, neither only shows it."""

    what: str
    value: float
    low: float
    high: float
    unit: str
    n: int
    at_most: float | None = None
    at_least: float | None = None

    def met(self, *, whole: bool) -> str:
        """PASS, FAIL or UNDECIDED, by the whole interval or by the estimate; "" without a bar."""
        low, high = (self.low, self.high) if whole else (self.value, self.value)
        if self.at_most is not None:
            return _met(high <= self.at_most, low > self.at_most)
        if self.at_least is not None:
            return _met(low >= self.at_least, high < self.at_least)
        return ""

    @property
    def bar(self) -> str:
        """The bar in words."""
        if self.at_most is not None:
            return f"<= {self.at_most:g} {self.unit}"
        return "" if self.at_least is None else f">= {self.at_least:g} {self.unit}"


def _met(met: bool, missed: bool) -> str:
    return "PASS" if met else "FAIL" if missed else "UNDECIDED"


def main() -> int:
    """Run all, print and write the table, say which bars are missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="as many histories as the bars need")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args()
    lines = ["| what | seen [99 % interval] | bar | | n |", "| --- | --- | --- | --- | --- |"]
    print("\n".join(lines), flush=True)
    verdicts = []
    for row in rows(10 if options.full else 1):
        verdicts.append(row.met(whole=options.full))
        lines.append(_line(row, verdicts[-1]))
        print(lines[-1], flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gate_bars.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
    return 0 if set(verdicts) <= {"PASS", ""} else 1


def _line(row: Row, verdict: str) -> str:
    seen = f"{row.value:.4g} [{row.low:.3g}, {row.high:.3g}] {row.unit}"
    return f"| {row.what} | {seen} | {row.bar} | {verdict} | {row.n} |"


def rows(size: int) -> Iterator[Row]:
    """Every bar, then what has none: a run `size` times as long as the short one."""
    yield from _staying(size)
    yield from _unchanged(size)
    yield from _passing(size)
    yield from _one_session(size)
    yield from _real_series()
    yield from _controls(size)


def _staying(size: int) -> Iterator[Row]:
    """A change that stays for 30 sessions."""
    n = 200 * size
    for change, least, most in ((0.05, 95, 7), (0.10, 99, 1)):
        stayed = gate_simulated.stays(Machine(0.02), change, n)
        what = f"+{change:.0%} that stays 30 sessions, noise 2 %"
        yield _share(f"{what}: found", stayed.found, n, at_least=least)
        median = stayed.median_session
        yield Row(f"{what}: median session", median, median, median, "", n, at_most=most)
        yield _share(f"{what}: last session PASS", stayed.last_passed, n)
    for spread, change, before in (
        (0.01, 0.05, 30),
        (0.02, 0.05, 12),
        (0.05, 0.10, 30),
        (0.10, 0.20, 30),
    ):
        stayed = gate_simulated.stays(Machine(spread), change, n // 2, before=before)
        what = f"+{change:.0%}, noise {spread:.0%}, after {before} sessions"
        yield _share(f"{what}: found in 30", stayed.found, n // 2)
        yield _share(f"{what}: last session PASS", stayed.last_passed, n // 2)


def _unchanged(size: int) -> Iterator[Row]:
    """Nothing changes."""
    n = 250 * size
    for spread in (0.01, 0.02, 0.03, 0.05):
        yield _false_fails(f"no change, noise {spread:.0%}", Machine(spread), n, at_most=0.5)
    yield _false_fails(
        "no change, noise 2 %, autocorrelation 0.5", Machine(0.02, r=0.5), n, at_most=2
    )
    for spread in (0.01, 0.03, 0.05):
        what = f"no change, noise {spread:.0%}, autocorrelation 0.5"
        yield _false_fails(what, Machine(spread, r=0.5), n)
    for name in ("t3", "skewed", "5 % wild"):
        yield _false_fails(f"no change, noise 2 %, {name}", Machine(0.02, NOISES[name]), n)
    yield _false_fails("no change, two modes 5 % apart", Machine(0.005, two_modes=0.05), n)
    yield _false_fails("no change, drift 0.02 % a session", Machine(0.02, drift=0.0002), n)


def _passing(size: int) -> Iterator[Row]:
    """PASS is evidence: of a true +10 %, whatever the noise."""
    n = 600 * size
    for spread in (0.01, 0.02, 0.03, 0.05, 0.10, 0.20):
        for before in (12, 30):
            seen = gate_simulated.first_outcomes(Machine(spread), 0.10, n, before=before)
            what = f"PASS of a true +10 %, noise {spread:.0%}, {before} sessions"
            yield _share(what, seen[Outcome.PASS], n, at_most=1)


def _one_session(size: int) -> Iterator[Row]:
    """One gated session after twelve: what an unchanged one is told, and what is found."""
    n = 200 * size
    for spread in (0.01, 0.02, 0.05):
        for change in (0.0, 0.05, 0.10):
            seen = gate_simulated.first_outcomes(Machine(spread), change, n)
            for outcome in (Outcome.FAIL, Outcome.UNDECIDED, Outcome.PASS):
                what = f"one session, +{change:.0%}, noise {spread:.0%}: {outcome.value}"
                yield _share(what, seen[outcome], n)


def _real_series() -> Iterator[Row]:
    """Each run of an unchanged stretch against the 12 before it, the next three are fresh runs."""
    if labelled.folder() is None:
        print(f"no labelled series here ({labelled.NAME} names their folder): not run")
        return
    for path, stretches in UNCHANGED.items():
        values = labelled.column(path)
        places = [at for low, high in stretches for at in range(low + 12, high - 3)]
        for change in (0.0, QUARTER):
            failed = sum(_gated_place(values, at, change).outcome is Outcome.FAIL for at in places)
            yield _share(f"FAIL, {path}, +{change:.0%}", failed, len(places))


def _gated_place(values: list[float], at: int, change: float) -> Comparison:
    value, *fresh = (value * (1 + change) for value in values[at : at + 4])
    return simulated.gated(values[at - 12 : at], value, fresh)


def _controls(size: int) -> Iterator[Row]:
    """Negative controls: what the bars see of a gate that forgets."""
    n = 100 * size
    forgot = gate_simulated.stays(Machine(0.02), 0.05, n, forgets=True)
    yield _share("control, undecided sessions let in: +5 % found", forgot.found, n)
    yield _share("control, undecided sessions let in: last session PASS", forgot.last_passed, n)


def _false_fails(what: str, machine: Machine, n: int, *, at_most: float | None = None) -> Row:
    """FAIL per 1,000 sessions; a history is the unit, for its sessions share what they are by."""
    counts = gate_simulated.fails_by_history(machine, n)
    sessions = 30 * n
    mean = sum(counts) / n
    variance = math.fsum((count - mean) ** 2 for count in counts) / (n - 1)
    # The square root of counts that are clustered: their variance over their mean widens it.
    spread = max(1.0, variance / mean if mean else 1.0)
    root, reach = math.sqrt(sum(counts) / spread), _Z99 / 2
    low = spread * max(0.0, root - reach) ** 2
    high = spread * (math.sqrt(sum(counts) / spread + 0.75) + reach) ** 2
    per = 1000 / sessions
    return Row(
        f"{what}: FAIL",
        per * sum(counts),
        per * low,
        per * high,
        "per 1,000 sessions",
        sessions,
        at_most=at_most,
    )


def _share(
    what: str, hits: int, n: int, *, at_most: float | None = None, at_least: float | None = None
) -> Row:
    """A share in %, with Wilson's interval."""
    low, high = (100 * end for end in wilson(hits, n))
    return Row(what, 100 * hits / n, low, high, "%", n, at_most=at_most, at_least=at_least)


if __name__ == "__main__":
    sys.exit(main())
