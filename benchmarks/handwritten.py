"""The hand-written loop, in a process of its own: a line in, seconds of one repetition out.

"bare" times `model.generate` with a clock around it; "plugin" has the engine run the same work on
the same model, with its token timestamps and telemetry. The model is loaded once, by the engine, so
that both run on the same weights and settings.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec
import torch

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines import engine
from pytest_llmperf.session.sampling import duration_s
from pytest_llmperf.workloads import Decode


def bare_loop(model: torch.nn.Module, device: str, workload: Decode) -> Callable[[int], float]:
    """Return the loop that one would write by hand.

    It decodes greedily to a fixed length from fresh random prompts, and the device is idle at both
    ends of the clock.
    """

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def repeat(seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        shape = (workload.batch, workload.prompt_tokens)
        ids = torch.randint(0, model.config.vocab_size, shape, generator=generator).to(device)
        mask = torch.ones_like(ids)
        wait()
        start_ns = time.perf_counter_ns()
        out = model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=workload.new_tokens,
            eos_token_id=None,
        )
        out.cpu()
        wait()
        took_s = (time.perf_counter_ns() - start_ns) / 1e9
        assert out.shape[1] == ids.shape[1] + workload.new_tokens
        return took_s

    return repeat


def main() -> None:
    """Load, then answer lines until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr
    plan = msgspec.json.decode(sys.argv[1], type=LoadPlan)
    workload = msgspec.json.decode(sys.argv[2], type=Decode)
    session: Any = engine(plan.engine).load().open(plan)
    # The comparison needs the very same model.
    bare = bare_loop(session._loaded.model, plan.device, workload)  # noqa: SLF001
    for repetition, line in enumerate(sys.stdin):
        match line.strip():
            case "bare":
                took_s = bare(repetition)
            case "plugin":
                took_s = duration_s(session.run(workload, repetition).trace)
            case other:
                raise SystemExit(f"{other!r} is neither 'bare' nor 'plugin'")
        print(json.dumps(took_s), file=answers, flush=True)


if __name__ == "__main__":
    main()
