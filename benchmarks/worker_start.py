"""Forked workers against workers that are new programs: how soon they are loaded, and how fast.

    python benchmarks/worker_start.py --model arch:tiny-llama --strategies bf16 -n 8
    python benchmarks/worker_start.py --model arch:falcon-7b --device cuda -n 20 \
        --strategies bf16,bf16+static-cache,bf16+static-cache+compile

Each pair is one worker of either kind, in drawn order. A worker loads the model, warms up, and
repeats a decode. What a fork keeps of its server is no fresh draw, so that forks might differ from
each other by less than programs do: the spread of their speeds is compared by an F test, one-sided
at 95 %, and their speeds by the mean of the paired log ratios with a 99 % interval. On a CPU the
speeds are those of CPU time, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median, stdev

import psutil

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.verdicts.distributions import incomplete_beta, t_quantile
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.strategies import parse
from pytest_llmperf.wire.commands import Open, Run
from pytest_llmperf.workers.group import WorkerGroup
from pytest_llmperf.workloads import Decode

WARM_UP = 2
DEADLINE_S = 600.0
KINDS = ("forked", "program")


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One worker: seconds from its start until the model was loaded, and the seconds a token.

    `first_s` are those of the first run, which compiles; `end_s` those from Close to its end.
    """

    strategy: str
    kind: str
    started: str
    start_s: float
    load_s: float
    first_s: float
    end_s: float
    wall_s_per_token: tuple[float, ...]
    cpu_s_per_token: tuple[float, ...]

    def level(self, *, by_cpu: bool) -> float:
        """Return the log of the median seconds a token."""
        samples = self.cpu_s_per_token if by_cpu else self.wall_s_per_token
        return math.log(median(samples))


def measure(plan: LoadPlan, kind: str, workload: Decode, repetitions: int, logs: Path) -> Worker:
    """Start one worker, load, warm up, repeat, and end it."""
    began_s = time.perf_counter()
    engine = plan.engine if kind == "forked" else ""
    with WorkerGroup.start(log_dir=logs, name=kind, fork_engine=engine) as group:
        facts = group.call(Open(plan=plan), deadline_s=DEADLINE_S).facts
        start_s = time.perf_counter() - began_s
        process = psutil.Process(group.pids[0])
        wall_s, cpu_s, took_s = [], [], []
        for repetition in range(WARM_UP + repetitions):
            before = process.cpu_times()
            command = Run(workload=workload, repetition=repetition)
            run_began_s = time.perf_counter()
            trace = group.call(command, deadline_s=DEADLINE_S).run.trace
            took_s.append(time.perf_counter() - run_began_s)
            after = process.cpu_times()
            request = trace.requests[0]
            wall_s.append((request.events[-1].t_ns - request.t_due_ns) / 1e9)
            cpu_s.append(after.user + after.system - before.user - before.system)
        started = group.started
        end_began_s = time.perf_counter()
    end_s = time.perf_counter() - end_began_s
    n_tokens = workload.new_tokens * workload.batch
    return Worker(
        strategy=plan.strategy,
        kind=kind,
        started=started,
        start_s=start_s,
        load_s=facts.load_s,
        first_s=took_s[0],
        end_s=end_s,
        wall_s_per_token=tuple(s / n_tokens for s in wall_s[WARM_UP:]),
        cpu_s_per_token=tuple(s / n_tokens for s in cpu_s[WARM_UP:]),
    )


def f_cdf(x: float, freedom: tuple[int, int]) -> float:
    """Return P(F <= x) of the F distribution."""
    first, second = freedom
    return incomplete_beta(first / 2, second / 2, first * x / (first * x + second))


def report(strategy: str, workers: list[Worker], *, by_cpu: bool) -> str:
    """Return the figures of one strategy, with their bars."""
    by_kind = {kind: [w for w in workers if w.kind == kind] for kind in KINDS}
    levels = {kind: [w.level(by_cpu=by_cpu) for w in by_kind[kind]] for kind in KINDS}
    lines = [f"{strategy}, speeds by {'CPU time' if by_cpu else 'wall clock'}"]
    for kind in KINDS:
        later = [w.start_s for w in by_kind[kind][1:]] or [math.nan]
        within = median(
            stdev(map(math.log, w.cpu_s_per_token if by_cpu else w.wall_s_per_token))
            for w in by_kind[kind]
        )
        lines.append(
            f"  {kind:8} n={len(levels[kind])} first {by_kind[kind][0].start_s:.2f} s, later "
            f"{median(later):.2f} s (max {max(later):.2f}) to loaded, first run "
            f"{median(w.first_s for w in by_kind[kind]):.2f} s, end "
            f"{median(w.end_s for w in by_kind[kind]):.2f} s; spread between "
            f"{stdev(levels[kind]):.2%}, within {within:.2%}; {by_kind[kind][-1].started}"
        )
    n = len(levels["forked"])
    ratio = (stdev(levels["forked"]) / stdev(levels["program"])) ** 2
    p_less = f_cdf(ratio, (n - 1, n - 1))
    differences = [b - a for a, b in zip(levels["forked"], levels["program"], strict=True)]
    half = t_quantile(0.995, n - 1) * stdev(differences) / math.sqrt(n)
    speed = fmean(differences)
    lines.append(
        f"  variance of forks over programs {ratio:.2f}, P(as small or smaller) {p_less:.3f}: "
        f"{'less' if p_less < 0.05 else 'not less'}"
    )
    lines.append(
        f"  speed of forks over programs {math.exp(speed):.4f} "
        f"[{math.exp(speed - half):.4f}, {math.exp(speed + half):.4f}] 99 %"
    )
    return "\n".join(lines)


def main() -> None:
    """Measure in pairs, write each worker to the file at once, and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="arch:tiny-llama")
    parser.add_argument("--strategies", default="bf16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("-n", type=int, default=8, help="pairs")
    parser.add_argument("--new-tokens", type=int, default=50)
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--limit-s", type=float, default=math.inf, help="start no pair after it")
    parser.add_argument("--out", type=Path, default=None, help="JSON lines, one a worker")
    options = parser.parse_args()
    end_s = time.monotonic() + options.limit_s
    workload = Decode(batch=1, prompt_tokens=8, new_tokens=options.new_tokens)
    order = random.Random(0)  # noqa: S311 - the same order in every run
    strategies = options.strategies.split(",")
    workers: dict[str, list[Worker]] = {strategy: [] for strategy in strategies}
    with tempfile.TemporaryDirectory() as logs:
        for _ in range(options.n):
            for strategy in strategies:
                if time.monotonic() > end_s:
                    break
                plan = parse(strategy).apply(
                    LoadPlan(model=model_ref(options.model), device=options.device)
                )
                for kind in order.sample(KINDS, 2):
                    worker = measure(plan, kind, workload, options.repetitions, Path(logs))
                    workers[strategy].append(worker)
                    _write(options.out, worker)
    for strategy, measured in workers.items():
        if len(measured) > 4:
            print(report(strategy, measured, by_cpu=options.device == "cpu"))


def _write(path: Path | None, worker: Worker) -> None:
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(worker)) + "\n")


if __name__ == "__main__":
    sys.exit(main())
