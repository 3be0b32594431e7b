"""The bars of rule B, rule C and of shares, by simulation and on real data where it is at hand.

python benchmarks/verdict_bars.py [--full] [--out FOLDER] [PART …]

Parts: sides (rule B), processes (rule B on measured ones), series (rules B and C on labelled real
series, where this machine has them), history (rule C), shares; default: all.
Seeds are fixed. Writes verdict_bars.json and verdict_bars.md to the folder (default
build/benchmarks) and exits 1 unless every bar is met by the whole 99 % interval. Without --full it
takes a twelfth of the runs, and some bars stay undecided. A control breaks what a bar rests on; its
bar is what it must be seen to do. The bars of the gate (rule A) are in a command of their own.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

import history_bars
import labelled
import simulated
from bars import number, share, wilson
from noise import NOISES, autocorrelated, two_modes
from pairs import Finding
from simulated import Scene

from pytest_llmperf.core.verdicts import change_points
from pytest_llmperf.core.verdicts.judge import Outcome

__all__ = ["PROCESSES", "TIGERBEETLE", "UNCHANGED", "measured_levels", "wilson"]

_RUNS_OF_COMPARISON = 40
TIGERBEETLE = "otava-tigerbeetle/series.csv"
PROCESSES = Path(__file__).parents[1] / "docs/results/raw/2026-11-30-h200-processes.csv"
"""Speeds of repetitions of several fresh processes on one H200 (docs/explanation/why-a-process)."""
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
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[], metavar="PART")
    options = parser.parse_args()
    findings = list(_all(options.parts or list(PARTS), 12 if options.full else 1))
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


def _all(parts: list[str], size: int) -> Iterator[Finding]:
    for name in parts:
        for finding in PARTS[name](size):
            print(_row(finding), flush=True)
            yield finding


# Rule B


def _sides(size: int) -> Iterator[Finding]:
    for spread in (0.01, 0.02):
        for process_spread in (0.0, 0.01, 0.02, 0.03):
            scene = Scene(spread=spread, process_spread=process_spread)
            name = f"pairs {spread:.0%}, processes {process_spread:.0%}"
            yield from _unchanged(name, scene, size, bar=0.1)
            yield from _slower(name, scene, size, bar=1.0, found=process_spread <= 0.02)
    scenes = {
        "two modes": Scene(0.02, 0.02, processes=two_modes),
        "5 % wild": Scene(0.02, 0.02, noise=NOISES["5 % wild"]),
        "drift of 1 % a block": Scene(0.02, 0.02, drift=0.01),
    }
    for name, scene in scenes.items():
        yield from _unchanged(f"{name}, pairs 2%, processes 2%", scene, size, bar=0.1)
        yield from _slower(f"{name}, pairs 2%, processes 2%", scene, size, bar=1.0, found=True)
    alike = Scene(0.02, 0.02, noise=autocorrelated(0.5))
    yield from _unchanged("autocorrelated 0.5, pairs 2%, processes 2%", alike, size, bar=0.1)
    yield from _slower("autocorrelated 0.5, pairs 2%, processes 2%", alike, size, found=True)
    yield from _one_process(size)


def _unchanged(name: str, scene: Scene, size: int, bar: float) -> Iterator[Finding]:
    runs = 1000 * size
    same = simulated.in_pairs(scene, 0.0, runs)
    yield share(f"B, false FAIL, {name}", same.outcomes[Outcome.FAIL], runs, at_most=bar)
    yield share(f"B, undecided, no change, {name}", same.outcomes[Outcome.UNDECIDED], runs)
    yield number(f"B, pairs without a change, {name}", same.pairs, "pairs", runs)


def _slower(
    name: str, scene: Scene, size: int, *, bar: float | None = None, found: bool
) -> Iterator[Finding]:
    runs = 1000 * size
    slower = simulated.in_pairs(scene, 0.05, runs)
    yield share(f"B, +5 % passed, {name}", slower.outcomes[Outcome.PASS], runs, at_most=bar)
    yield share(f"B, +5 % found, {name}", slower.outcomes[Outcome.FAIL], runs)
    yield number(f"B, pairs until FAIL at +5 %, {name}", slower.pairs_of_fail, "pairs", runs)
    runs = 150 * size
    slow = simulated.in_pairs(scene, 0.10, runs)
    n_found = slow.outcomes[Outcome.FAIL]
    yield share(f"B, +10 % found, {name}", n_found, runs, at_least=90 if found else None)
    yield number(f"B, pairs until FAIL at +10 %, {name}", slow.pairs_of_fail, "pairs", runs)


def _one_process(size: int) -> Iterator[Finding]:
    """The control: one process of each side serves all pairs of a look."""
    runs = 500 * size
    scene = Scene(spread=0.01, process_spread=0.02, fresh=False)
    same = simulated.in_pairs(scene, 0.0, runs).outcomes[Outcome.FAIL]
    passed = simulated.in_pairs(scene, 0.05, runs).outcomes[Outcome.PASS]
    name = "control: one process for all pairs, pairs 1%, processes 2%"
    yield share(f"B, false FAIL, {name}", same, runs, at_least=0.1)
    yield share(f"B, +5 % passed, {name}", passed, runs, at_least=1.0)


def _measured_processes(size: int) -> Iterator[Finding]:
    """Pairs of processes that were measured on an H200, drawn with replacement.

    They are few, so that this says what rule B does with such processes, and not how often.
    """
    for strategy, of_processes in measured_levels().items():
        runs = 300 * size
        for fresh, how in ((True, "fresh processes"), (False, "control: one process a look")):
            scene = Scene(spread=0.005, fresh=fresh, levels=of_processes)
            same = simulated.in_pairs(scene, 0.0, runs)
            name = f"{len(of_processes)} of {strategy}, {how}"
            yield share(f"B, false FAIL, H200, {name}", same.outcomes[Outcome.FAIL], runs)
            yield share(f"B, PASS, no change, H200, {name}", same.outcomes[Outcome.PASS], runs)
            slower = simulated.in_pairs(scene, 0.05, runs)
            yield share(f"B, +5 % passed, H200, {name}", slower.outcomes[Outcome.PASS], runs)


def measured_levels() -> dict[str, tuple[float, ...]]:
    """The median time of a token in each measured process, in s, by strategy."""
    speeds: dict[tuple[str, str], list[float]] = defaultdict(list)
    with PROCESSES.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if int(row["repetition"]) >= 0:
                speeds[row["strategy"], row["process"]].append(float(row["tok_per_s"]))
    levels: dict[str, tuple[float, ...]] = defaultdict(tuple)
    for (strategy, _), of_process in speeds.items():
        levels[strategy] += (1 / median(of_process),)
    return dict(levels)


def _series(_: int) -> Iterator[Finding]:
    """Rules B and C on the labelled series, where this machine has them."""
    if labelled.folder() is None:
        print(f"no labelled series here ({labelled.NAME} names their folder): not run on them")
        return
    for path in UNCHANGED:
        comparisons = list(_neighbours_in_pairs(path))
        for change, outcome, what in (
            (0.0, Outcome.FAIL, "false FAIL"),
            (0.0, Outcome.UNDECIDED, "undecided, no change"),
            (0.05, Outcome.PASS, "+5 % passed"),
            (0.10, Outcome.FAIL, "+10 % found"),
        ):
            tracks = [simulated.compared(_of(pairs), change) for pairs in comparisons]
            hits = sum(track.outcome is outcome for track in tracks)
            yield share(f"B, {what}, neighbours in {path}", hits, len(tracks))
    wanted: dict[str, list[int]] = labelled.labels("otava-tigerbeetle/labels.json")[
        "suggested_truth_for_3pct_detector"
    ]  # type: ignore[assignment]
    points = [point.index for point in change_points.change_points(labelled.column(TIGERBEETLE))]
    seen = sum(any(abs(at - must) <= 3 for at in points) for must in wanted["must"])
    yield share(f"C, changes that must be found, {TIGERBEETLE}", seen, len(wanted["must"]))
    outliers = sum(any(abs(at - out) <= 1 for at in points) for out in wanted["must_not"])
    yield number(f"C, outliers taken for changes, {TIGERBEETLE}", outliers, "", len(points))


def _neighbours_in_pairs(path: str) -> Iterator[list[float]]:
    """Yield the log ratios of neighbours in 40 runs of an unchanged stretch, in drawn order."""
    draw = random.Random(0)  # noqa: S311 - not for secrets: the same order each time
    values = labelled.column(path)
    for low, high in UNCHANGED[path]:
        for start in range(low, high - _RUNS_OF_COMPARISON, 2):
            runs = values[start : start + _RUNS_OF_COMPARISON]
            yield [
                math.log(b / a) * draw.choice((-1, 1))
                for a, b in zip(runs[::2], runs[1::2], strict=True)
            ]


def _of(log_ratios: Sequence[float]) -> Callable[[], Iterator[float]]:
    """Both looks take their pairs from one series, one after the other."""
    rest = iter(log_ratios)
    return lambda: rest


# Shares


def _shares(size: int) -> Iterator[Finding]:
    runs = 500 * size
    for truth, bar in ((0.998, 98.0), (0.99, None), (0.97, None)):
        for prompts in (8, 16, 24):
            for correlation in (0.0, 0.05, 0.2):
                covered = simulated.covered_shares(truth, prompts, correlation, runs)
                name = f"top-1 at {truth:g}, {prompts} prompts of 32 tokens"
                yield share(
                    f"coverage of 99 %, {name}, correlation {correlation:g}",
                    covered,
                    runs,
                    at_least=bar,
                )
    for prompts in (8, 16, 24):
        covered = simulated.covered_shares(
            0.998, prompts, 0.0, runs, interval=simulated.bootstrapped_share
        )
        name = f"coverage of 99 %, top-1 at 0.998, {prompts} prompts, control: bootstrap"
        yield share(name, covered, runs, at_most=98)


PARTS: dict[str, Callable[[int], Iterator[Finding]]] = {
    "sides": _sides,
    "processes": _measured_processes,
    "series": _series,
    "history": history_bars.history,
    "shares": _shares,
}


if __name__ == "__main__":
    sys.exit(main())
