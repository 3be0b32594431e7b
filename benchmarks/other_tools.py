"""The gate of pytest-llmperf and those of other tools on the same runs.

    python benchmarks/other_tools.py [--runs 1000] [--inference-doctor VENV/bin/python]
        [--out FOLDER]

It is known of each run whether anything changed. A case is a history of 12 sessions, five new
sessions, and 30 pairs; each tool takes what its documentation asks for, and all see the same
values. A change multiplies the new ones. Simulated cases are seeded; real ones slide along
stretches of the labelled series in which nothing changed (left out where the series are not:
LLMPERF_SERIES names their folder). Values are times: lower is better.

* pytest-benchmark: the newest session against the last stored one, by its own check of
  `--benchmark-compare-fail=mean:5%`.
* fixed floor: 5 % above the median of the first 12 sessions, written down once.
* inference-doctor: five sessions against the last five, by its own `decide_regression` in the
  interpreter given, at its default of 10 % and at 5 %; the first cases also by its command line,
  which must agree. Left out without the option.
* rule A, rule B: as `--llmperf-gate` and `--llmperf-against` call them, with the second
  measurement that a FAIL needs.

Writes other_tools.md to the folder (default build/benchmarks).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from math import exp
from pathlib import Path

import labelled
import simulated
from noise import NOISES, Noise
from pytest_benchmark.utils import parse_compare_fail
from verdict_bars import TIGERBEETLE, UNCHANGED

from pytest_llmperf.core.verdicts.judge import Outcome
from pytest_llmperf.core.verdicts.side_by_side import MAX_PAIRS, MIN_PAIRS, Decision, SideBySide

HISTORY, NEW = 12, 5
CHANGES = (0.0, 0.05, 0.10)
LABELLED_DROPS = (15, 95)
FLOOR = 1.05
COMMAND_LINE_CASES = 3
_MEAN_5 = parse_compare_fail("mean:5%")


@dataclass(frozen=True, kw_only=True)
class Case:
    """The values of one case: stored sessions, new sessions, and pairs (base, new).

    `first` holds the first sessions of all. The change is in the new values.
    """

    history: Sequence[float]
    first: Sequence[float]
    new: Sequence[float]
    pairs: Sequence[tuple[float, float]] = ()


@dataclass
class Row:
    """The verdicts of one tool on the cases of one kind, and how much it measures for each."""

    tool: str
    needs: str
    outcomes: list[str] = field(default_factory=list)

    @property
    def cells(self) -> str:
        """Return the shares of failed and of undecided cases, in words."""
        n_cases = len(self.outcomes)
        if not n_cases:
            return "-"
        failed = 100 * self.outcomes.count("FAIL") / n_cases
        undecided = 100 * self.outcomes.count("UNDECIDED") / n_cases
        return f"{failed:.3g} %" + (f" ({undecided:.3g} % undecided)" if undecided else "")


Tool = Callable[[Sequence[Case]], list[str]]


def pytest_benchmark(cases: Sequence[Case]) -> list[str]:
    """Ask the check object of its option about the new and the stored session's mean."""
    failed = [_MEAN_5.fails({"mean": case.new[0]}, {"mean": case.history[-1]}) for case in cases]
    return ["FAIL" if is_slower else "PASS" for is_slower in failed]


def fixed_floor(cases: Sequence[Case]) -> list[str]:
    """The newest session against a number that does not move."""
    return [
        "FAIL" if case.new[0] > FLOOR * statistics.median(case.first) else "PASS" for case in cases
    ]


def rule_a(cases: Sequence[Case]) -> list[str]:
    """One session against twelve; the next three are its fresh measurements."""
    return [
        simulated.gated(list(case.history), case.new[0], list(case.new[1:4])).outcome.value
        for case in cases
    ]


def rule_b(cases: Sequence[Case]) -> list[str]:
    """Pairs until a decision; a FAIL again with the pairs after it, as with fresh workers.

    Too few pairs: UNDECIDED.
    """
    return [_side_by_side(case.pairs) for case in cases if case.pairs]


def inference_doctor(python: str, percent: float) -> Tool:
    """Return inference-doctor's decision, made in bulk in its own interpreter."""

    def decide(cases: Sequence[Case]) -> list[str]:
        sides = [(list(case.history[-NEW:]), list(case.new)) for case in cases]
        process = subprocess.run(
            [python, "-c", _DECIDE, str(percent)],
            input=json.dumps(sides),
            capture_output=True,
            text=True,
            check=True,
        )
        statuses: list[str] = json.loads(process.stdout)
        for (baseline, new), status in list(zip(sides, statuses, strict=True))[:COMMAND_LINE_CASES]:
            by_command = _by_command_line(python, percent, baseline, new)
            assert by_command == status, (
                f"inference-doctor compare-runs says {by_command}, "
                f"its decide_regression {status}: {(baseline, new)}"
            )
        return ["UNDECIDED" if status == "INCONCLUSIVE" else status for status in statuses]

    return decide


_DECIDE = """
import json, sys
from inference_doctor.quality import QualityThresholds, decide_regression
thresholds = QualityThresholds(regression_percent=float(sys.argv[1]))
statuses = [
    decide_regression(before, after, lower_is_better=True, thresholds=thresholds).status
    for before, after in json.load(sys.stdin)
]
print(json.dumps(statuses))
"""


def simulated_cases(noise: Noise, spread: float, change: float, n: int) -> list[Case]:
    """Cases of sessions that spread by that share, and pairs that do."""
    draw = random.Random(0)  # noqa: S311 - an order, not a secret
    return [_simulated(noise, spread, change, draw) for _ in range(n)]


def real_cases(path: str, change: float) -> list[Case]:
    """Every place in the unchanged stretches of a series with twelve runs before and five after.

    Pairs are neighbours.
    """
    values = as_times(path)
    return [
        _real(values[low:high], at, change)
        for low, high in UNCHANGED[path]
        for at in range(HISTORY, high - low - max(NEW, 2 * MIN_PAIRS))
    ]


def as_times(path: str) -> list[float]:
    """A series whose lower values are better: throughput inverted."""
    values = labelled.column(path)
    return [1 / value for value in values] if path == TIGERBEETLE else values


def tools(python: str | None) -> dict[str, tuple[str, Tool]]:
    """Name to what it measures for one verdict, and how it decides."""
    doctor = {
        f"inference-doctor {percent:g} %": ("5 + 5 sessions", inference_doctor(python, percent))
        for percent in (10.0, 5.0)
        if python
    }
    return {
        "pytest-benchmark `mean:5%`": ("1 session", pytest_benchmark),
        "fixed floor, 5 %": ("1 session", fixed_floor),
        **doctor,
        "rule A (`--llmperf-gate`), 3 %": ("1 session, 2 before a FAIL", rule_a),
        "rule B (`--llmperf-against`), 3 %": ("6 to 30 pairs, twice before a FAIL", rule_b),
    }


SIMULATIONS = (
    ("normal", 0.01),
    ("normal", 0.02),
    ("t3", 0.02),
    ("5 % wild", 0.02),
    ("autocorrelated 0.5", 0.02),
    ("normal", 0.04),
)
"""Noise, and the spread between sessions."""


def tables(n: int, python: str | None) -> Iterator[str]:
    """Write a Markdown table for each kind of case."""
    known = tools(python)
    for name, spread in SIMULATIONS:
        by_change = [simulated_cases(NOISES[name], spread, change, n) for change in CHANGES]
        title = f"Simulated: {name}, {spread:.0%} between sessions, {n} cases"
        yield from _table(title, known, by_change)
    if labelled.folder() is None:
        return
    for path in UNCHANGED:
        by_change = [real_cases(path, change) for change in CHANGES]
        yield from _table(f"Real: {path}, unchanged stretches", known, by_change)
    yield from _labelled(known)


def main() -> int:
    """Print and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1000, help="cases of each simulated kind")
    parser.add_argument(
        "--inference-doctor", metavar="PYTHON", help="interpreter of an environment that has it"
    )
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    lines = [
        (
            f"pytest-benchmark {version('pytest-benchmark')}; "
            f"inference-doctor {_doctor_version(options.inference_doctor)}"
        ),
        "",
    ]
    for line in tables(options.runs, options.inference_doctor):
        print(line, flush=True)
        lines.append(line)
    (options.out / "other_tools.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


def _table(
    title: str, known: dict[str, tuple[str, Tool]], by_change: Sequence[Sequence[Case]]
) -> Iterator[str]:
    n_real = f" ({len(by_change[0])} places)" if title.startswith("Real") else ""
    yield from (
        f"**{title}{n_real}**",
        "",
        "| gate | measures | no change: failed | +5 %: found | +10 %: found |",
        "| --- " * 5 + "|",
    )
    for name, (needs, decide) in known.items():
        cells = [Row(name, needs, decide(cases)).cells for cases in by_change]
        yield f"| {name} | {needs} | {' | '.join(cells)} |"
    yield ""


def _labelled(known: dict[str, tuple[str, Tool]]) -> Iterator[str]:
    values = as_times(TIGERBEETLE)
    cases = [
        Case(history=values[at - HISTORY : at], first=values[:HISTORY], new=values[at : at + NEW])
        for at in LABELLED_DROPS
    ]
    yield from (
        (
            f"**{TIGERBEETLE}: its labelled losses, "
            f"at runs {LABELLED_DROPS[0]} and {LABELLED_DROPS[1]}**"
        ),
        "",
    )
    yield from ("| gate | 12 % slower | 5 % slower |", "| --- " * 3 + "|")
    for name, (_, decide) in known.items():
        first, second = decide(cases) or ["-", "-"]
        yield f"| {name} | {first} | {second} |"
    yield ""


def _simulated(noise: Noise, spread: float, change: float, draw: random.Random) -> Case:
    values = [exp(spread * x) for x in noise(HISTORY + NEW, draw)]
    pairs = [(1.0, (1 + change) * exp(spread * x)) for x in noise(2 * MAX_PAIRS, draw)]
    history = values[:HISTORY]
    return Case(
        history=history,
        first=history,
        new=[value * (1 + change) for value in values[HISTORY:]],
        pairs=pairs,
    )


def _real(values: Sequence[float], at: int, change: float) -> Case:
    draw = random.Random(at)  # noqa: S311 - the same order each time
    pairs = [draw.sample(both, 2) for both in zip(values[at::2], values[at + 1 :: 2], strict=False)]
    return Case(
        history=values[at - HISTORY : at],
        first=values[:HISTORY],
        new=[value * (1 + change) for value in values[at : at + NEW]],
        pairs=[(base, new * (1 + change)) for base, new in pairs],
    )


def _side_by_side(pairs: Sequence[tuple[float, float]]) -> str:
    first = _decision(pairs[:MAX_PAIRS], 100.0)
    if first is None or first.outcome is not Outcome.FAIL:
        return "UNDECIDED" if first is None or first.outcome is None else first.outcome.value
    again = _decision(pairs[first.n : first.n + MAX_PAIRS], 20.0)
    return "FAIL" if again is not None and again.outcome is Outcome.FAIL else "UNDECIDED"


def _decision(pairs: Sequence[tuple[float, float]], evidence: float) -> Decision | None:
    """The first look that decides, else the last."""
    state, decision = SideBySide(direction="lower", evidence=evidence), None
    for pair in pairs:
        state = state.with_pair(*pair)
        decision = state.look()
        if decision is not None and decision.outcome is not None:
            break
    return decision


def _by_command_line(
    python: str, percent: float, baseline: Sequence[float], new: Sequence[float]
) -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_repetitions(folder / "baseline", baseline)
        _write_repetitions(folder / "candidate", new)
        command = [python, "-m", "inference_doctor", "compare-runs", "--metric=e2el_mean_ms"]
        command += [f"--regression-percent={percent:g}", "--json"]
        command += ["--baseline", f"{folder}/baseline", "--candidate", f"{folder}/candidate"]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        return str(json.loads(process.stdout)["result"])


def _write_repetitions(folder: Path, values: Sequence[float]) -> None:
    folder.mkdir()
    for n, value in enumerate(values):
        text = json.dumps(_normalized(value))
        (folder / f"repetition-{n}.json").write_text(text, encoding="utf-8")


def _normalized(value: float) -> dict[str, object]:
    """Its own result format, with one latency."""
    environment = {"gpu": "one", "model": "one"}
    metrics = {"e2el_ms": {"mean": value}, "requests": {"successful": 1, "failed": 0}}
    return {
        "schema_version": "1",
        "environment": environment,
        "benchmark_parameters": {"batch": 1},
        "metrics": metrics,
    }


def _doctor_version(python: str | None) -> str:
    if python is None:
        return "not run"
    program = "from importlib.metadata import version; print(version('inference-doctor'))"
    command = [python, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
