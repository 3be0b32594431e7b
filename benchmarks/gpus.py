"""Eight tests of one GPU each: two GPUs and two processes against one GPU and one process.

    python benchmarks/gpus.py [--model arch:small-llama] [--tests 8] [--budget 4]

Says how much sooner two GPUs are done, and whether the results are equal. Needs two GPUs and about
four minutes. Each test loads a model of its own. The two sessions have the same tests; that with
two GPUs comes first, so that the device ceilings that are measured once are not to its favour.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

BAR = 1.8
SAME_WITHIN = 0.03
"""Rates of one test may differ by this much between sessions whose intervals do not meet.

Clocks and neighbours differ.
"""

TESTS = """
import pytest
from pytest_llmperf import Decode, Prefill

WORK = (Decode(batch=4, prompt_tokens=128, new_tokens=64), Prefill(batch=32, prompt_tokens=1024))


@pytest.mark.llmperf(model="{model}", engine="{engine}", strategy="bf16", device="cuda")
@pytest.mark.llmperf_gpus(1)
SEEDS = [pytest.param(i, marks=pytest.mark.llmperf(seed=i)) for i in range({tests})]


@pytest.mark.parametrize("seed", SEEDS)
def test_speed(llm, seed):
    run = llm.run(WORK[seed % 2])
    assert (run.throughput if seed % 2 == 0 else run.prefill_throughput) >= 1
"""


@dataclass(frozen=True)
class Session:
    """What one session took, and what it says of each test."""

    took_s: float
    exit_code: int
    records: dict[str, dict]

    def rate(self, test: str) -> dict:
        """Throughput, of the prompt for a prefill: value, low, high."""
        metrics = {metric["name"]: metric for metric in self.records[test]["metrics"]}
        decode = self.records[test]["workload_text"].startswith("decode")
        return metrics["throughput" if decode else "prefill_throughput"]


def session(folder: Path, name: str, *options: str) -> Session:
    """Run the tests with these options. Ends the program when no record was made."""
    out = folder / f"{name}.jsonl"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--llmperf-store=none",
        f"--llmperf-json={out}",
        *options,
    ]
    start_s = time.monotonic()
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    took_s = time.monotonic() - start_s
    if not out.exists():
        raise SystemExit(
            f"{name} recorded nothing:\n{process.stdout[-4000:]}\n{process.stderr[-2000:]}"
        )
    newest = {}
    for line in out.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        newest[record["test"]] = record
    if process.returncode:
        print(process.stdout[-4000:])
    return Session(took_s, process.returncode, newest)


def same(rate: dict, other: dict) -> bool:
    """Whether two estimates of one rate agree.

    Their intervals meet, or they are within `SAME_WITHIN` of each other.
    """
    meet = rate["low"] <= other["high"] and other["low"] <= rate["high"]
    return meet or abs(rate["value"] / other["value"] - 1) <= SAME_WITHIN


def report(two_gpus: Session, one_gpu: Session) -> bool:
    """Print every test and the verdict. Whether the bar is met, with equal outcomes and rates."""
    equal = set(two_gpus.records) == set(one_gpu.records)
    for test in sorted(set(two_gpus.records) & set(one_gpu.records)):
        equal &= agrees(test, two_gpus, one_gpu)
    ratio = one_gpu.took_s / two_gpus.took_s
    devices = {facts(record).get("leased_gpus") for record in two_gpus.records.values()}
    print(
        f"-n 0 --llmperf-gpus=1: {one_gpu.took_s:.1f} s; "
        f"-n 2 --llmperf-gpus=2: {two_gpus.took_s:.1f} s on {', '.join(map(str, sorted(devices)))}"
    )
    print(f"{ratio:.2f} times sooner (bar: {BAR:g}), results {'equal' if equal else 'NOT EQUAL'}")
    return ratio >= BAR and equal and one_gpu.exit_code == two_gpus.exit_code == 0


def agrees(test: str, two_gpus: Session, one_gpu: Session) -> bool:
    """Print one test, and return whether both sessions say the same of it."""
    on_two, on_one = two_gpus.records[test], one_gpu.records[test]
    rate, other = two_gpus.rate(test), one_gpu.rate(test)
    agree = same(rate, other) and on_two["outcome"] == on_one["outcome"]
    device, cores = facts(on_two).get("leased_gpus"), facts(on_two).get("cpu_cores_usable")
    print(
        f"{test:<32} {device} {cores} cores  "
        f"{rate['value']:>12.1f} against {other['value']:>12.1f} {rate['unit']} "
        f"({rate['value'] / other['value'] - 1:+.1%})  {on_two['outcome']}/{on_one['outcome']}  "
        f"{'same' if agree else 'DIFFERENT'}",
    )
    return agree


def facts(record: dict) -> dict:
    """Return what is known of the environment that a test ran in."""
    return record["environment"]["facts"]


def main() -> None:
    """Both sessions, and exit code 1 when a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="arch:small-llama")
    parser.add_argument("--engine", default="transformers")
    parser.add_argument("--tests", type=int, default=8)
    parser.add_argument("--budget", type=float, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        (folder / "test_speed.py").write_text(
            TESTS.format(model=options.model, engine=options.engine, tests=options.tests),
            encoding="utf-8",
        )
        budget = f"--llmperf-budget={options.budget}"
        two_gpus = session(folder, "two", "-n", "2", "--llmperf-gpus=2", budget)
        one_gpu = session(folder, "one", "-n", "0", "--llmperf-gpus=1", budget)
        met = report(two_gpus, one_gpu)
    raise SystemExit(0 if met else 1)


if __name__ == "__main__":
    main()
