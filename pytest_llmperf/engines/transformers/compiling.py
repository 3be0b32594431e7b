"""torch.compile as a load plan asks for it: mode, inductor options and CUDA graphs.

Counters prove what was compiled and captured.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch._dynamo.utils
import torch._inductor.config
from torch import Tensor
from torch._inductor import list_mode_options

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.transformers.observed.compiled import CompiledWork
from pytest_llmperf.errors import UsageError, did_you_mean

CUDAGRAPHS = ("trees", "manual", "off")
WARM_UPS = 3
"""CUDA graph trees run a function once eagerly and record it on the second call.

The third is a replay.
"""

SMALL_BATCH_OPTIONS: dict[str, object] = {
    # Also what makes inductor write a product with one row as its own reduction, with its
    # neighbours fused in, instead of calling the library's matrix-vector kernel.
    "coordinate_descent_tuning": True,
    "epilogue_fusion": True,
}


@dataclass(frozen=True)
class CompileOptions:
    """How to compile. `options` are settings of torch._inductor.config; `text` is reported.

    `work` notes what was compiled.
    """

    mode: str
    cudagraphs: str
    options: dict[str, Any]
    device: torch.device
    work: CompiledWork = field(default_factory=CompiledWork)

    @property
    def text(self) -> str:
        """Return a short text for the description of the decode loop."""
        return f"{self.mode}, cudagraphs {self.cudagraphs}"

    def compile_step(
        self, step: Callable[[], Tensor], rewind: Callable[[], None]
    ) -> Callable[[], Tensor]:
        """Compile `step` as one graph for its fixed shapes, warm it up, and capture it if asked.

        `rewind` is called before each run.
        """
        compiled: Callable[[], Tensor] = torch.compile(
            step,
            fullgraph=True,
            dynamic=False,
            backend=self.work.backend(self.options, dynamic=False),
        )
        if self.cudagraphs == "manual":
            return capture(compiled, rewind)
        replay = _marking_steps(compiled) if self.cudagraphs == "trees" else compiled
        _warm_up(replay, rewind)
        return replay

    def compile_prefill(
        self, prefill: Callable[[], Tensor], how: str, rewind: Callable[[], None]
    ) -> Callable[[], Tensor]:
        """Compile `prefill` ("compile"), or capture it as it is ("graph").

        A captured prefill runs the same kernels without the host. Raises UsageError where there is
        no CUDA device to capture on.
        """
        if how == "compile":
            return self.compile_step(prefill, rewind)
        if self.device.type != "cuda":
            raise UsageError(
                "option prefill='graph' needs a CUDA device. Choices here: auto, eager, compile."
            )
        return capture(prefill, rewind)

    def compile_forward(self, model: Any) -> None:
        """Compile the forward pass of `model` for lengths that grow."""
        model.compile(dynamic=True, backend=self.work.backend(self.options, dynamic=True))


def compile_options(plan: LoadPlan, device: torch.device, *, static: bool) -> CompileOptions:
    """Return the options of `plan`. Raises UsageError for a knob or choice that does not exist."""
    # Without it, inductor starts a pool of compilers before it knows whether it needs one: each
    # imports torch while the model is measured. A process that finds its kernels needs none.
    os.environ.setdefault("TORCH_WARM_POOL", "0")
    mode = plan.compile or "default"
    if static and mode == "default" and device.type == "cuda":
        mode = "max-autotune"
    cudagraphs = _cudagraphs(plan, mode, device)
    options: dict[str, object] = dict(list_mode_options(mode))
    if device.type == "cuda":
        options |= _cuda_options(mode, cudagraphs, static=static)
    options |= parse_knobs(str(plan.option("compile_knobs", "")))
    return CompileOptions(mode, cudagraphs, options, device)


def _cuda_options(mode: str, cudagraphs: str, *, static: bool) -> dict[str, object]:
    options: dict[str, object] = {"triton.cudagraphs": cudagraphs == "trees"}
    if static and mode == "max-autotune":
        options |= SMALL_BATCH_OPTIONS
    return options


def _cudagraphs(plan: LoadPlan, mode: str, device: torch.device) -> str:
    """Return one of CUDAGRAPHS: what the plan's option says, or what fits its mode and cache."""
    if mode == "reduce-overhead" and plan.cache != "static" and device.type == "cuda":
        raise UsageError(
            "compile:reduce-overhead means CUDA graphs, and a dynamic cache grows with every "
            "token: each length would be recorded anew. Use 'static-cache+compile', or plain "
            "'compile' with the dynamic cache.",
        )
    fitting = "off" if mode == "default" or plan.cache != "static" else "trees"
    cudagraphs = option_choice(plan, "cudagraphs", CUDAGRAPHS, fitting)
    return cudagraphs if device.type == "cuda" else "off"


def option_choice(plan: LoadPlan, option: str, choices: tuple[str, ...], default: str) -> str:
    """Return the value of a plan's option. Raises UsageError for one that is not in `choices`."""
    value = plan.option(option, default)
    if value not in choices:
        raise UsageError(f"option {option}={value!r} is not known. Choices: {', '.join(choices)}.")
    return str(value)


def parse_knobs(text: str) -> dict[str, object]:
    """Return typed values of a text like `combo_kernels=1,triton.enable_pdl=true`.

    Raises UsageError for unknown names.
    """
    known = torch._inductor.config.get_config_copy()  # noqa: SLF001  # the only list of them
    assignments = filter(None, map(str.strip, text.split(",")))
    return dict(_parse_knob(assignment, known) for assignment in assignments)


def _parse_knob(assignment: str, known: dict[str, Any]) -> tuple[str, object]:
    name, equals, value = assignment.partition("=")
    if not equals or name not in known:
        raise UsageError(
            f"compile_knobs: {assignment!r} is not a setting of torch._inductor.config in "
            f"torch {torch.__version__}.{did_you_mean(name, known)} "
            "Expected name=value, comma-separated.",
        )
    return name, _typed(value, known[name])


def _typed(value: str, default: object) -> object:
    word = value.lower()
    if isinstance(default, bool) or word in {"true", "false"}:
        return word in {"1", "true"}
    return int(value) if value.lstrip("-").isdigit() else value


def _marking_steps(compiled: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Tell CUDA graph trees that each call starts over.

    They then replay one graph, and do not record a chain of them.
    """

    def step() -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return compiled()

    return step


def capture(work: Callable[[], Tensor], rewind: Callable[[], None]) -> Callable[[], Tensor]:
    """Record `work` as one CUDA graph after warming it up on a side stream.

    Return what replays the graph. `rewind` is called before each run.
    """
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        _warm_up(work, rewind)
    torch.cuda.current_stream().wait_stream(side)
    rewind()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = work()

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay


def _warm_up(work: Callable[[], Tensor], rewind: Callable[[], None]) -> None:
    for _ in range(WARM_UPS):
        rewind()
        work()


def end_compilers() -> None:
    """End inductor's pools of compilers, which would otherwise be waited for at the exit."""
    async_compile: Any = sys.modules.get("torch._inductor.async_compile")
    if async_compile is None:
        return
    # torch offers the waiting only.
    for pool in async_compile._pool_set:  # noqa: SLF001
        process = getattr(pool, "process", None)
        if process is not None:
            process.kill()


def cudagraph_skips() -> int:
    """Return how many graphs inductor has refused to record as CUDA graphs so far."""
    counters = torch._dynamo.utils.counters  # noqa: SLF001  # torch offers no public counter
    return int(counters["inductor"]["cudagraph_skips"])
