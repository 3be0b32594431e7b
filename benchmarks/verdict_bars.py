"""The bars of the verdicts, by simulation and on the labelled series where this machine has them.

python benchmarks/verdict_bars.py [--full] [--out FOLDER]

Seeds are fixed. Writes verdict_bars.json and verdict_bars.md to the folder (default
build/benchmarks) and exits 1 unless every bar is met by the whole 99 % interval. Without --full it
takes a fifth of the runs, and some bars stay undecided.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import labelled
import simulated
from noise import INDEPENDENT, NOISES
from pairs import Finding, verdict

from pytest_llmperf.core.verdicts.judge import Outcome

_Z99 = 2.5758
TIGERBEETLE = "otava-tigerbeetle/series.csv"
# Stretches of the real series without a labelled change, clear of the slow rise; and of well_log
# between the annotators' points.
UNCHANGED = {
    TIGERBEETLE: ((15, 61), (131, 192), (212, 365)),
    "tcpd/well_log.csv": ((0, 170), (182, 255), (465, 675)),
}


def main() -> int:
    """Run all, write the results, say which bars are missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--full", action="store_true", help="as many runs as the bars need (minutes)"
    )
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args()
    findings = list(_all(5 if options.full else 1))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "verdict_bars.json").write_text(
        json.dumps([asdict(f) for f in findings], indent=2) + "\n", encoding="utf-8"
    )
    (options.out / "verdict_bars.md").write_text(markdown(findings), encoding="utf-8")
    return 0 if all(f.met in ("yes", "") for f in findings) else 1


def markdown(findings: list[Finding]) -> str:
    """A table; rows without a bar say what else was seen."""
    head = [
        "| what | share [99 % interval] | bar | met | runs |",
        "| --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *map(_row, findings), ""])


def _row(finding: Finding) -> str:
    interval = (
        ""
        if finding.low is None or finding.high is None
        else f" [{finding.low:.3g}, {finding.high:.3g}]"
    )
    cells = (
        finding.name,
        f"{finding.value:.4g} {finding.unit}{interval}",
        finding.bar,
        finding.met,
        str(finding.n),
    )
    return f"| {' | '.join(cells)} |"


def _all(size: int) -> Iterator[Finding]:
    for part in (_rule_a(size), _real_sessions(), _rule_b(size), _rule_c(size)):
        for finding in part:
            print(_row(finding), flush=True)
            yield finding


def _rule_a(size: int) -> Iterator[Finding]:
    for name, noise in NOISES.items():
        for n in (8, 12, 30):
            runs = 6000 * size
            failed = simulated.sessions(noise, 0.02, 0.0, n, runs)[Outcome.FAIL]
            bar = 0.1 if name in ("normal", "t3", "5 % wild") else None
            yield _share(
                f"A, false FAIL, {name}, spread 2 %, {n} sessions", failed, runs, at_most=bar
            )
    for spread, bar in ((0.02, 65), (0.01, 99)):
        runs = 2000 * size
        n_found = simulated.sessions(NOISES["normal"], spread, 0.10, 12, runs)[Outcome.FAIL]
        yield _share(
            f"A, +10 % found, spread {spread:.0%}, 12 sessions", n_found, runs, at_least=bar
        )


def _real_sessions() -> Iterator[Finding]:
    """Try rule A on real series.

    Each run of an unchanged stretch is held against the 12 before it; the next three runs are its
    fresh measurements.
    """
    if labelled.folder() is None:
        print(
            f"no labelled series here ({labelled.NAME} names their folder): "
            "rule A on real data is not run"
        )
        return
    for path, stretches in UNCHANGED.items():
        values = labelled.column(path)
        runs = [
            (values[at - 12 : at], values[at], values[at + 1 : at + 4])
            for low, high in stretches
            for at in range(low + 12, high - 3)
        ]
        failed = sum(simulated.gated(*run).outcome is Outcome.FAIL for run in runs)
        yield _share(f"A, false FAIL, {path}, unchanged stretches, 12 runs each", failed, len(runs))


def _rule_b(size: int) -> Iterator[Finding]:
    for name, noise in NOISES.items():
        runs = (4000 if name in INDEPENDENT else 2000) * size
        same = simulated.side_by_side(noise, 0.02, 0.0, runs)
        bar = 0.05 if name in INDEPENDENT else None
        yield _share(
            f"B, false FAIL, {name}, noise 2 %", same.outcomes[Outcome.FAIL], runs, at_most=bar
        )
        yield _number(f"B, pairs until PASS, {name}", same.pairs, "pairs", runs)
        slower = simulated.side_by_side(noise, 0.02, 0.05, runs // 2)
        bar = 99 if name == "normal" else None
        yield _share(
            f"B, +5 % found, {name}, noise 2 %",
            slower.outcomes[Outcome.FAIL],
            runs // 2,
            at_least=bar,
        )
        most = 9 if name == "normal" else None
        yield _number(
            f"B, pairs until FAIL at +5 %, {name}",
            slower.pairs_of_fail,
            "pairs",
            runs // 2,
            at_most=most,
        )


def _rule_c(size: int) -> Iterator[Finding]:
    for name in ("normal", "t3", "skewed", "5 % wild", "autocorrelated 0.5", "autocorrelated 0.7"):
        for spread in (0.02, 0.05):
            series = 80 * size
            points = simulated.false_points(NOISES[name], spread, series)
            bar = 0.2 if name in ("normal", "autocorrelated 0.5") else None
            yield _per_thousand(
                f"C, false points per 1,000 runs, {name}, noise {spread:.0%}", points, series, bar
            )
    for r, bar in ((0.0, 85), (0.3, None), (0.5, None)):
        n_found = simulated.steps_found(-0.05, 0.02, 8, 400 * size, r=r)
        yield _share(
            f"C, -5 % found 8 runs after it, noise 2 %, autocorrelation {r:g}",
            n_found,
            400 * size,
            at_least=bar,
        )
    yield _number(
        "C, 10,000 runs", min(simulated.seconds_for(10_000) for _ in range(3)), "s", 3, at_most=1
    )


def _share(
    name: str, hits: int, runs: int, *, at_most: float | None = None, at_least: float | None = None
) -> Finding:
    """A share in %, with Wilson's interval."""
    low, high = (100 * end for end in wilson(hits, runs))
    within = (at_least or 0.0, 100.0 if at_most is None else at_most)
    bar = (
        f"<= {at_most:g} %"
        if at_most is not None
        else f">= {at_least:g} %"
        if at_least is not None
        else ""
    )
    met = verdict(low, high, within) if bar else ""
    return Finding(
        name=name, value=100 * hits / runs, low=low, high=high, unit="%", bar=bar, met=met, n=runs
    )


def _per_thousand(name: str, points: int, series: int, at_most: float | None) -> Finding:
    """Return a rate of rare events with the interval of a Poisson count.

    The interval comes from the count's square root (Anscombe 1948).
    """
    low = max(0.0, math.sqrt(points) - _Z99 / 2) ** 2 / series
    high = (math.sqrt(points + 0.75) + _Z99 / 2) ** 2 / series
    met = "" if at_most is None else verdict(low, high, (0.0, at_most))
    bar = "" if at_most is None else f"<= {at_most:g}"
    return Finding(
        name=name,
        value=points / series,
        low=low,
        high=high,
        unit="points",
        bar=bar,
        met=met,
        n=series,
    )


def _number(
    name: str, value: float, unit: str, runs: int, *, at_most: float | None = None
) -> Finding:
    met = "" if at_most is None else "yes" if value <= at_most else "no"
    bar = "" if at_most is None else f"<= {at_most:g}"
    return Finding(name=name, value=value, low=None, high=None, unit=unit, bar=bar, met=met, n=runs)


def wilson(hits: int, runs: int) -> tuple[float, float]:
    """99 % interval of a share (Wilson 1927)."""
    z2, share = _Z99 * _Z99, hits / runs
    center, reach = (
        share + z2 / (2 * runs),
        _Z99 * math.sqrt(share * (1 - share) / runs + z2 / (4 * runs * runs)),
    )
    low = (center - reach) / (1 + z2 / runs) if hits else 0.0
    return max(0.0, low), min(1.0, (center + reach) / (1 + z2 / runs))


if __name__ == "__main__":
    sys.exit(main())
