"""Decoding through the plugin against a hand-written loop, and the cost of what it observes.

What it observes is token timestamps and telemetry.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from pairs import Finding, finding, interleave

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.devices.held import Gpus
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.session.sampling import duration_s
from pytest_llmperf.wire.commands import Run
from pytest_llmperf.workers.pool import Pool
from pytest_llmperf.workers.this_host import ThisHost
from pytest_llmperf.workloads import Decode

CHILD = Path(__file__).with_name("handwritten.py")
THROUGH_PLUGIN_BAR = {"cpu": 0.03, "cuda": 0.01}
TIMESTAMPS_BAR = 0.01


def load_plan(model: str, device: str) -> LoadPlan:
    """The model in fp32 on a CPU and in bf16 on a GPU, through plain `generate`."""
    strategy, dtype = ("fp32", "float32") if device == "cpu" else ("bf16", "bfloat16")
    return LoadPlan(model=model_ref(model), device=device, strategy=strategy, weights_dtype=dtype)


@contextmanager
def plugin_worker() -> Iterator[Pool]:
    """A pool whose workers are started as a session starts them."""
    with tempfile.TemporaryDirectory() as logs:
        host = ThisHost(Gpus("all", wait_s=600), wait_s=600, log_dir=Path(logs))
        pool = Pool(
            lambda plan: host.start(plan, sys.executable),
            place=host,
            host=host,
            timeout_s=600,
            progress=lambda *_: None,
        )
        try:
            yield pool
        finally:
            pool.close()


@contextmanager
def handwritten(plan: LoadPlan, workload: Decode) -> Iterator[Callable[[str], float]]:
    """A child process that holds the same model.

    Asked for "bare" or "plugin", it answers with seconds of one repetition.
    """
    arguments = [msgspec.json.encode(plan).decode(), msgspec.json.encode(workload).decode()]
    child = subprocess.Popen(
        [sys.executable, str(CHILD), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None

    def ask(what: str) -> float:
        print(what, file=child.stdin, flush=True)
        line = child.stdout.readline()
        if not line:
            raise SystemExit(f"the hand-written loop ended with exit code {child.wait()}")
        return float(json.loads(line))

    try:
        yield ask
    finally:
        child.stdin.close()
        child.wait(timeout=60)


def decode(
    model: str, device: str, workload: Decode, n: int, *, timestamps: bool = True
) -> list[Finding]:
    """Measure the plugin against a hand-written loop on one workload, in pairs.

    Unless told otherwise, measure timestamps against none as well.
    """
    plan = load_plan(model, device)
    with plugin_worker() as pool, handwritten(plan, workload) as child:
        opened = pool.open(plan)
        repetitions = iter(range(10**6))

        def through_plugin() -> float:
            ran = opened.call(Run(workload=workload, repetition=next(repetitions))).run
            return duration_s(ran.trace)

        findings = [
            _speed(
                interleave(through_plugin, lambda: child("bare"), n, warm_up=3),
                device,
                model,
                workload,
            )
        ]
        if timestamps:
            inside = interleave(lambda: child("plugin"), lambda: child("bare"), n, warm_up=3)
            findings.append(_timestamps(inside, model, workload))
    return findings


def _speed(pairs: list[tuple[float, float]], device: str, model: str, workload: Decode) -> Finding:
    bar = THROUGH_PLUGIN_BAR[device]
    ratios = [bare / plugin for plugin, bare in pairs]
    return finding(
        "throughput through the plugin over a hand-written loop (two processes)",
        ratios,
        unit="x",
        bar=f"within {bar:.0%}",
        within=(1 - bar, 1 + bar),
        detail=_detail(model, workload, pairs),
    )


def _timestamps(pairs: list[tuple[float, float]], model: str, workload: Decode) -> Finding:
    added = [plugin / bare - 1 for plugin, bare in pairs]
    return finding(
        "token timestamps and telemetry, share of TPOT (one process)",
        [100 * share for share in added],
        unit="%",
        bar=f"< {TIMESTAMPS_BAR:.0%}",
        within=(-math.inf, 100 * TIMESTAMPS_BAR),
        detail=_detail(model, workload, pairs),
    )


def _detail(model: str, workload: Decode, pairs: list[tuple[float, float]]) -> str:
    bare_s = sorted(bare for _, bare in pairs)[len(pairs) // 2]
    rate = workload.batch * workload.new_tokens / bare_s
    return (
        f"{model}, batch {workload.batch}, {workload.prompt_tokens} in, "
        f"{workload.new_tokens} out, {rate:.1f} tok/s by hand"
    )
