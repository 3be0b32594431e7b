"""Architectures of 30 and 40 billion weights over two GPUs: speed, peak memory of each rank, and what loading takes.

    python benchmarks/parallel.py [--out parallel.json] [--only fsdp2] [--device cpu]

Each step starts workers of its own and has its own time limit; what is done is in the JSON file when a later step fails.
On a CPU the same steps run with a small model, to try the script.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.errors import LlmperfError
from pytest_llmperf.session.sampling import duration_s
from pytest_llmperf.strategies import parse, require_in_effect
from pytest_llmperf.wire.commands import Describe, Open, ReadCollectives, ReadMemory, Run
from pytest_llmperf.workers.group import WorkerGroup
from pytest_llmperf.workers.ranks import Ranks
from pytest_llmperf.workloads import Decode

SHORT = tuple(Decode(batch=batch, prompt_tokens=8, new_tokens=16) for batch in (1, 8))
LONGER = (Decode(batch=1, prompt_tokens=8, new_tokens=64),)
LOADING_BAR = 1.2
REPETITIONS = 5


@dataclass(frozen=True, kw_only=True)
class Step:
    """A model under a strategy.

    `bars` are least tok/s by batch, `peak_gb` the most that a rank may take in a run.
    """

    model: str
    strategy: str
    works: tuple[Decode, ...]
    limit_s: float
    bars: dict[int, float] = field(default_factory=dict)
    peak_gb: float | None = None


STEPS = (
    Step(
        model="falcon-40b",
        strategy="bf16+fsdp2",
        works=SHORT,
        limit_s=110,
        bars={1: 0.60},
        peak_gb=47.0,
    ),
    Step(model="falcon-40b", strategy="bf16+own-tp2", works=SHORT, limit_s=60),
    Step(model="llama-30b", strategy="bf16+own-tp2", works=LONGER, limit_s=60, bars={1: 13.7}),
    Step(model="llama-30b", strategy="bf16+own-tp2+static-cache+compile", works=LONGER, limit_s=110),
)


def run_step(step: Step, device: str, logs: Path, repetitions: int) -> dict[str, Any]:
    """Load, check what is in effect, measure each workload.

    Raises LlmperfError, within the step's limit.
    """
    end_s = time.monotonic() + step.limit_s
    model = f"arch:{step.model}" if device == "cuda" else "arch:small-llama"
    plan = parse(step.strategy).apply(LoadPlan(model=model_ref(model), device=device))

    def left_s() -> float:
        return max(1.0, end_s - time.monotonic())

    with WorkerGroup.start(
        ranks=plan.ranks, log_dir=logs, name=step.strategy, start_deadline_s=left_s()
    ) as group:
        ranks = Ranks(group, plan)

        def ask(command: Any) -> Any:
            return ranks.call(command, deadline_s=left_s())

        opened = ask(Open(plan=plan)).facts
        require_in_effect(opened.effective, parse(plan.strategy).promises(plan), when="loaded")
        found = {"load_s": opened.load_s, "device": opened.device_name, "versions": opened.versions}
        found["ranks"] = [_loading(shard, plan) for shard in opened.effective.shards]
        found["runs"] = [_measured(ask, work, step, repetitions) for work in step.works]
        effective = ask(Describe()).description.effective
        require_in_effect(effective, parse(plan.strategy).promises(plan), when="warm")
        return found | {
            "decode_loop": effective.decode_loop,
            "cache": effective.cache,
            "notes": list(effective.notes),
        }


def _loading(shard: Any, plan: LoadPlan) -> dict[str, Any]:
    """One rank's bytes, and the peak while loading against LOADING_BAR x (bytes / N + largest layer)."""
    limit = LOADING_BAR * (
        shard.whole_bytes / (plan.tp * plan.fsdp * plan.pp) + shard.largest_layer_bytes
    )
    peak = shard.load_peak_bytes
    return {
        "rank": shard.rank,
        "device": shard.device,
        "held_gb": shard.bytes / 1e9,
        "whole_gb": shard.whole_bytes / 1e9,
        "load_peak_gb": None if peak is None else peak / 1e9,
        "load_peak_limit_gb": limit / 1e9,
        "holds_loading_bar": None if peak is None else peak <= limit,
    }


def _measured(
    ask: Callable[[Any], Any], work: Decode, step: Step, repetitions: int
) -> dict[str, Any]:
    runs = [ask(Run(workload=work, repetition=i)).run for i in range(repetitions + 2)][2:]
    rates = [work.batch * work.new_tokens / duration_s(ran.trace) for ran in runs]
    memory = ask(ReadMemory(workload=work, repetition=90))
    talk = ask(ReadCollectives(workload=work, repetition=91))
    peaks = [None if gauges.peak is None else gauges.peak / 1e9 for gauges in memory.ranks]
    bar = step.bars.get(work.batch)
    rate = statistics.median(rates)
    return {
        "batch": work.batch,
        "prompt_tokens": work.prompt_tokens,
        "new_tokens": work.new_tokens,
        "tok_per_s": rate,
        "tok_per_s_all": rates,
        "bar_tok_per_s": bar,
        "holds_bar": None if bar is None else rate >= bar,
        "peak_gb": peaks,
        "holds_peak": None
        if step.peak_gb is None or None in peaks
        else max(p for p in peaks if p is not None) <= step.peak_gb,
        "collectives": talk.share if talk.share is not None else talk.reason,
    }


def main(argv: list[str] | None = None) -> int:
    """Run the steps, write the file after each, say what held.

    1 when a step failed or missed a bar.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("parallel.json"))
    parser.add_argument("--only", default="", help="steps whose model and strategy contain this")
    parser.add_argument(
        "--repetitions",
        type=int,
        default=REPETITIONS,
        help="of each workload, after two to warm up",
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    options = parser.parse_args(argv)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as logs:
        for step in STEPS:
            name = f"{step.model} {step.strategy}"
            if options.only not in name:
                continue
            start_s = time.monotonic()
            try:
                found: dict[str, Any] = run_step(
                    step, options.device, Path(logs), options.repetitions
                )
            except LlmperfError as error:
                found = {"error": f"{type(error).__name__}: {error}"}
            results.append({"step": name, "seconds": round(time.monotonic() - start_s, 1), **found})
            options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            print(_line(results[-1]), flush=True)
    return int(any("error" in row or not _holds(row) for row in results) or not results)


def _holds(row: dict[str, Any]) -> bool:
    checks = [each["holds_loading_bar"] for each in row["ranks"]]
    checks += [run[name] for run in row["runs"] for name in ("holds_bar", "holds_peak")]
    return all(check is not False for check in checks)


def _line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['step']}: {row['error']}"
    runs = "; ".join(
        f"batch {run['batch']}: {run['tok_per_s']:.2f} tok/s, peak {', '.join(f'{p:.1f}' for p in run['peak_gb'] if p)} GB"
        f", collectives {run['collectives'] if isinstance(run['collectives'], str) else format(run['collectives'], '.0%')}"
        for run in row["runs"]
    )
    loading = ", ".join(
        f"{each['load_peak_gb'] or 0:.1f} of {each['load_peak_limit_gb']:.1f}"
        for each in row["ranks"]
    )
    return f"{row['step']} ({row['seconds']} s, loaded in {row['load_s']:.1f} s, loading peak {loading} GB): {runs}"


if __name__ == "__main__":
    sys.exit(main())
