"""Architectures of 30 and 40 billion weights over two GPUs: speed, memory of each rank, loading.

    python benchmarks/parallel.py [--out parallel.json] [--only fsdp2] [--device cpu]

Each step starts workers of its own and has its own time limit; what is done is in the JSON file
when a later step fails. On a CPU the same steps run with a small model, to try the script.
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

    @property
    def name(self) -> str:
        """The model and the strategy."""
        return f"{self.model} {self.strategy}"


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
    Step(
        model="llama-30b", strategy="bf16+own-tp2+static-cache+compile", works=LONGER, limit_s=110
    ),
)


def run_step(step: Step, device: str, logs: Path, repetitions: int) -> dict[str, Any]:
    """Load, check what is in effect, measure each workload.

    Raises LlmperfError, within the step's limit.
    """
    model = f"arch:{step.model}" if device == "cuda" else "arch:small-llama"
    plan = parse(step.strategy).apply(LoadPlan(model=model_ref(model), device=device))
    end_s = time.monotonic() + step.limit_s

    def left_s() -> float:
        return max(1.0, end_s - time.monotonic())

    with WorkerGroup.start(
        ranks=plan.ranks, log_dir=logs, name=step.strategy, start_deadline_s=left_s()
    ) as group:
        ranks = Ranks(group, plan)
        return _results(
            lambda command: ranks.call(command, deadline_s=left_s()), plan, step, repetitions
        )


def _results(
    ask: Callable[[Any], Any], plan: LoadPlan, step: Step, repetitions: int
) -> dict[str, Any]:
    opened = ask(Open(plan=plan)).facts
    require_in_effect(opened.effective, parse(plan.strategy).promises(plan), when="loaded")
    runs = [_measured(ask, work, step, repetitions) for work in step.works]
    effective = ask(Describe()).description.effective
    require_in_effect(effective, parse(plan.strategy).promises(plan), when="warm")
    return {
        "load_s": opened.load_s,
        "device": opened.device_name,
        "versions": opened.versions,
        "ranks": [_loading(shard, plan) for shard in opened.effective.shards],
        "runs": runs,
        "decode_loop": effective.decode_loop,
        "cache": effective.cache,
        "notes": list(effective.notes),
    }


def _loading(shard: Any, plan: LoadPlan) -> dict[str, Any]:
    """Return one rank's bytes, and its peak while loading against the limit.

    The limit is LOADING_BAR x (bytes / N + largest layer).
    """
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
    collectives = ask(ReadCollectives(workload=work, repetition=91))
    peaks_gb = [None if gauges.peak is None else gauges.peak / 1e9 for gauges in memory.ranks]
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
        "peak_gb": peaks_gb,
        "holds_peak": _holds_peak(peaks_gb, step.peak_gb),
        "collectives": collectives.reason if collectives.share is None else collectives.share,
    }


def _holds_peak(peaks_gb: list[float | None], limit_gb: float | None) -> bool | None:
    """Whether no rank exceeds the limit; None without one, or where a rank's peak is not known."""
    known = [peak_gb for peak_gb in peaks_gb if peak_gb is not None]
    if limit_gb is None or len(known) < len(peaks_gb):
        return None
    return max(known) <= limit_gb


def main(argv: list[str] | None = None) -> int:
    """Run the steps, write the file after each, say what held.

    1 when a step failed or missed a bar.
    """
    options = _parser().parse_args(argv)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as logs:
        for step in STEPS:
            if options.only not in step.name:
                continue
            results.append(_row(step, options.device, Path(logs), options.repetitions))
            options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            print(_line(results[-1]), flush=True)
    return int(any("error" in row or not _holds(row) for row in results) or not results)


def _row(step: Step, device: str, logs: Path, repetitions: int) -> dict[str, Any]:
    """Run one step; its error is a row too."""
    start_s = time.monotonic()
    try:
        result = run_step(step, device, logs, repetitions)
    except LlmperfError as error:
        result = {"error": f"{type(error).__name__}: {error}"}
    return {"step": step.name, "seconds": round(time.monotonic() - start_s, 1), **result}


def _parser() -> argparse.ArgumentParser:
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
    return parser


def _holds(row: dict[str, Any]) -> bool:
    checks = [rank["holds_loading_bar"] for rank in row["ranks"]]
    checks += [run[name] for run in row["runs"] for name in ("holds_bar", "holds_peak")]
    return all(check is not False for check in checks)


def _line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['step']}: {row['error']}"
    runs = "; ".join(_run_text(run) for run in row["runs"])
    loading = ", ".join(
        f"{rank['load_peak_gb'] or 0:.1f} of {rank['load_peak_limit_gb']:.1f}"
        for rank in row["ranks"]
    )
    return (
        f"{row['step']} ({row['seconds']} s, loaded in {row['load_s']:.1f} s, "
        f"loading peak {loading} GB): {runs}"
    )


def _run_text(run: dict[str, Any]) -> str:
    peaks_gb = ", ".join(f"{peak_gb:.1f}" for peak_gb in run["peak_gb"] if peak_gb)
    collectives = run["collectives"]
    share = collectives if isinstance(collectives, str) else f"{collectives:.0%}"
    return (
        f"batch {run['batch']}: {run['tok_per_s']:.2f} tok/s, peak {peaks_gb} GB, "
        f"collectives {share}"
    )


if __name__ == "__main__":
    sys.exit(main())
