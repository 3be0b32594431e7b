"""The bars of the intervals: how often a "99 %" one holds a program whose processes differ.

python benchmarks/interval_bars.py [--full] [--out FOLDER]

Each case is a program, or the ratio of two equal ones, measured by the sampling and the intervals
of the package in virtual time. Seeds are fixed. Writes interval_bars.json and interval_bars.md to
the folder (default build/benchmarks) and exits 1 where a bar is missed by the whole 99 % interval.
With --full it takes 2,000 measurements a case (an hour of one core), else 200. A row without a bar
is a control: what the same measurements are worth when the spread between processes is taken for 0,
and one process alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from many_processes import SERIES, Coverage, Program, coverage, no_spread_between
from verdict_bars import wilson

BETWEEN = (0.0, 0.003, 0.01, 0.03)
WITHIN = (0.005, 0.02, 0.05)
BAR, BAR_AT_07 = 98.0, 95.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """The coverage of one kind of case, in %, with its 99 % interval (Wilson 1927)."""

    what: str
    noise: str
    between: float
    within: float
    coverage: float
    low: float
    high: float
    bar: float | None
    half_width: float
    processes: float
    repetitions: float
    runs: int

    @property
    def met(self) -> bool:
        """Whether the bar is not refuted: the point reaches it, or its interval does."""
        return self.bar is None or self.high >= self.bar

    def markdown(self) -> str:
        """The row of the table."""
        bar = "" if self.bar is None else f"≥ {self.bar:g} %"
        met = "" if self.bar is None else "yes" if self.coverage >= self.bar else "undecided"
        cells = (
            self.what,
            self.noise,
            f"{100 * self.between:g} %",
            f"{100 * self.within:g} %",
            f"{self.coverage:.1f} % [{self.low:.1f}, {self.high:.1f}]",
            bar,
            met if self.met else "no",
            f"±{100 * self.half_width:.2g} %",
            f"{self.processes:.1f} x {self.repetitions / self.processes:.1f}",
        )
        return f"| {' | '.join(cells)} |"


HEAD = (
    (
        "| what | repetitions | sd between | sd within | covered [99 % interval] | bar | met "
        "| half-width, median | processes x repetitions |"
    ),
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)


def main() -> int:
    """Run all, write the results, say which bars are missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="2,000 measurements a case")
    parser.add_argument("--runs", type=int, help="measurements a case")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args()
    runs = options.runs or (2000 if options.full else 200)
    print("\n".join(HEAD), flush=True)
    rows = list(_printed(_all(runs)))
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps([asdict(row) for row in rows], indent=2)
    (options.out / "interval_bars.json").write_text(text + "\n", encoding="utf-8")
    table = "\n".join([*HEAD, *(row.markdown() for row in rows), ""])
    (options.out / "interval_bars.md").write_text(table, encoding="utf-8")
    return 0 if all(row.met for row in rows) else 1


def _printed(rows: Iterator[Row]) -> Iterator[Row]:
    for row in rows:
        print(row.markdown(), flush=True)
        yield row


def _all(runs: int) -> Iterator[Row]:
    for sides, what in ((2, "ratio"), (1, "level")):
        for noise in SERIES:
            for between in BETWEEN:
                for within in WITHIN:
                    yield _row(what, noise, between, within, runs, sides=sides, bar=_bar(noise))
    yield from _controls(runs)


def _bar(noise: str) -> float:
    return BAR_AT_07 if noise == "autocorrelated 0.7" else BAR


def _controls(runs: int) -> Iterator[Row]:
    for sides, what in ((2, "ratio"), (1, "level")):
        for between in BETWEEN[1:]:
            title = f"{what}, spread between taken for 0"
            with no_spread_between():
                yield _row(title, "independent", between, 0.005, runs, sides=sides)
    for between in BETWEEN[1:]:
        yield _row("level, one process", "independent", between, 0.005, runs, one=True)
        yield _row(
            "level, one process, its spread known from 12 sessions",
            "independent",
            between,
            0.005,
            runs,
            one=True,
            known=between,
            bar=BAR,
        )


def _row(
    what: str,
    noise: str,
    between: float,
    within: float,
    runs: int,
    *,
    sides: int = 1,
    bar: float | None = None,
    one: bool = False,
    known: float | None = None,
) -> Row:
    program = Program(noise=SERIES[noise], repetitions=within, processes=between, known=known)
    programs: Sequence[Program] = [program] * sides
    covered = coverage(programs, runs, seed=1, one=one)
    return _of_coverage(what, noise, program, covered, bar)


def _of_coverage(
    what: str, noise: str, program: Program, covered: Coverage, bar: float | None
) -> Row:
    low, high = (100 * end for end in wilson(covered.hits, covered.runs))
    return Row(
        what=what,
        noise=noise,
        between=program.processes,
        within=program.repetitions,
        coverage=100 * covered.hits / covered.runs,
        low=low,
        high=high,
        bar=bar,
        half_width=covered.half_width,
        processes=covered.processes,
        repetitions=covered.repetitions,
        runs=covered.runs,
    )


if __name__ == "__main__":
    sys.exit(main())
