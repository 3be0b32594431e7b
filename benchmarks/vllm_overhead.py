"""What this package's step loop costs over vLLM's own benchmark, on one engine in one process.

Both sides are measured in pairs of random order. The other side is what `vllm bench latency` and
`vllm bench throughput` time: `LLM.generate` of prompts that are there at once. Run it with an
interpreter that has vLLM and this package:
`vllm-env/bin/python benchmarks/vllm_overhead.py [--pairs N]`.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics
import time
from collections.abc import Callable

from pytest_llmperf.engines.vllm.arguments import ENVIRONMENT, arguments

os.environ.update(ENVIRONMENT)  # vLLM reads them while it is imported

import torch
from vllm import LLM, SamplingParams, TokensPrompt

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.verdicts import stats
from pytest_llmperf.engines.loading.folder import model_folder
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.engines.vllm.loaded import VllmModel
from pytest_llmperf.engines.vllm.requesting import LoadedEngine
from pytest_llmperf.strategies import parse
from pytest_llmperf.workloads import Batch, Decode, Workload

LIMIT = 0.02
WARM_UP = 2
Times = tuple[float, float]
"""Wall time and CPU time of one call, in seconds."""


def main() -> None:
    """Print a row for each workload: the ratio of seconds, this package over vLLM, at 99 %."""
    options = parser().parse_args()
    llm, session = both(options)
    print(
        f"{options.model} {options.strategy} on {session.opened().device_name}: "
        "seconds of this package over vLLM's own"
    )
    for work in (
        Decode(batch=1, prompt_tokens=32, new_tokens=options.new_tokens),
        Batch(requests=8, prompt_tokens=32, max_new_tokens=options.new_tokens),
    ):
        row(work, llm, session, options.pairs)


def both(options: argparse.Namespace) -> tuple:
    """The LLM of vLLM, and a session of this package around the same engine."""
    chosen = (("kv_cache_gib", options.kv_cache_gib),)
    base = LoadPlan(
        model=model_ref(options.model), engine="vllm", device=options.device, options=chosen
    )
    plan = parse(options.strategy).apply(base)
    source = model_folder(plan)
    dtype = source.dtype if plan.weights_dtype == "auto" else plan.weights_dtype
    llm = LLM(**arguments(plan, source.folder, dtype=dtype, dummy=source.dummy))
    loaded = LoadedEngine(
        engine=llm.llm_engine,
        plan=plan,
        source=source,
        device=torch.device(options.device),
        load_s=0.0,
        versions={},
    )
    return llm, VllmModel(loaded)


def row(work: Workload, llm, session, pairs: int) -> None:
    """Print the ratio of pairs of one repetition each; both sides get the same prompts."""
    own_times, vllm_times = timed(work, llm, session, pairs)
    for i, clock in enumerate(("wall", "CPU")):
        own_s = [both_s[i] for both_s in own_times]
        vllm_s = [both_s[i] for both_s in vllm_times]
        ratio = stats.log_ratio_interval(own_s, vllm_s, paired=True)
        low, center, high = (math.exp(x) for x in (ratio.low, ratio.center, ratio.high))
        medians = f"medians {statistics.median(own_s):.3f} and {statistics.median(vllm_s):.3f} s"
        print(
            f"  {type(work).__name__}, {clock}: {center:.4f} [{low:.4f}, {high:.4f}], "
            f"{pairs} pairs, {medians}; bar {1 + LIMIT:g}",
        )


def timed(work: Workload, llm, session, pairs: int) -> tuple[list[Times], list[Times]]:
    """Measure this package and vLLM in pairs of random order, after a warm-up."""

    def by_vllm(repetition: int) -> None:
        # What a run does, without what is read around it.
        _, requests = session._requester.requests(work, repetition)  # noqa: SLF001
        params = [sampling_params(request.new_tokens) for request in requests]
        prompts = [TokensPrompt(prompt_token_ids=list(request.ids)) for request in requests]
        llm.generate(prompts, params, use_tqdm=False)

    def by_this_package(repetition: int) -> None:
        # What a run does, without what is read around it.
        _, requests = session._requester.requests(work, repetition)  # noqa: SLF001
        session._requester.step(requests)  # noqa: SLF001

    draw = random.Random(0)  # noqa: S311 - an order, not a secret
    own_times: list[Times] = []
    vllm_times: list[Times] = []
    for repetition in range(pairs + WARM_UP):
        sides = [(own_times, by_this_package), (vllm_times, by_vllm)]
        draw.shuffle(sides)
        for times, side in sides:
            both_s = seconds(side, repetition)
            if repetition >= WARM_UP:
                times.append(both_s)
    return own_times, vllm_times


def sampling_params(new_tokens: int) -> SamplingParams:
    """Return greedy sampling of exactly so many tokens, without text."""
    return SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)


def seconds(side: Callable[[int], None], repetition: int) -> Times:
    """Return the wall time of one call, and the CPU time of all threads.

    On a busy machine only the second is worth something.
    """
    start, cpu = time.perf_counter(), time.process_time()
    side(repetition)
    return time.perf_counter() - start, time.process_time() - cpu


def parser() -> argparse.ArgumentParser:
    """The model, where it runs, and how often."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", default="smollm2-135m")
    arguments.add_argument("--strategy", default="fp32")
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--pairs", type=int, default=12)
    arguments.add_argument("--new-tokens", type=int, default=32)
    arguments.add_argument("--kv-cache-gib", type=float, default=0.5)
    return arguments


if __name__ == "__main__":
    main()
