"""torch.compile as a load plan asks for it: mode, inductor options, CUDA graphs, and proof that something was compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo.utils
import torch._inductor.config
from torch._inductor import list_mode_options

from pytest_llmperf.core.plan import LoadPlan
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
    """How to compile. `options` are names of torch._inductor.config; `text` is what is reported."""

    mode: str
    cudagraphs: str
    options: dict[str, Any]
    device: torch.device

    @property
    def text(self) -> str:
        """Short text for the description of the decode loop."""
        return f"{self.mode}, cudagraphs {self.cudagraphs}"

    def compile_step(
        self, step: Callable[[], None], rewind: Callable[[], None]
    ) -> Callable[[], None]:
        """`step` compiled as one graph for its fixed shapes, warmed up, and captured if asked.

        `rewind` comes before each run.
        """
        compiled: Callable[[], None] = torch.compile(
            step, fullgraph=True, dynamic=False, options=self.options
        )
        if self.cudagraphs == "manual":
            return capture(compiled, rewind)
        replay = _marking_steps(compiled) if self.cudagraphs == "trees" else compiled
        for _ in range(WARM_UPS):
            rewind()
            replay()
        return replay

    def compile_prefill(
        self, prefill: Callable[[], None], how: str, rewind: Callable[[], None]
    ) -> Callable[[], None]:
        """`prefill` compiled ("compile"), or captured as it is ("graph": the same kernels without the host)."""
        if how == "compile":
            return self.compile_step(prefill, rewind)
        if self.device.type != "cuda":
            raise UsageError(
                "option prefill='graph' needs a CUDA device. Choices here: auto, eager, compile."
            )
        return capture(prefill, rewind)

    def compile_forward(self, model: Any) -> None:
        """Compile the forward pass of `model` for lengths that grow."""
        model.compile(dynamic=True, options=self.options)


def compile_options(plan: LoadPlan, device: torch.device, *, static: bool) -> CompileOptions:
    """The options of `plan`. Raises UsageError for a knob or a choice that does not exist."""
    mode = plan.compile or "default"
    if static and mode == "default" and device.type == "cuda":
        mode = "max-autotune"
    cudagraphs = _cudagraphs(plan, mode, device)
    options: dict[str, object] = dict(list_mode_options(mode))
    if static and device.type == "cuda" and mode == "max-autotune":
        options |= SMALL_BATCH_OPTIONS
    if device.type == "cuda":
        options["triton.cudagraphs"] = cudagraphs == "trees"
    return CompileOptions(
        mode, cudagraphs, options | parse_knobs(str(plan.option("compile_knobs", ""))), device
    )


def _cudagraphs(plan: LoadPlan, mode: str, device: torch.device) -> str:
    if mode == "reduce-overhead" and plan.cache != "static" and device.type == "cuda":
        raise UsageError(
            "compile:reduce-overhead means CUDA graphs, and a dynamic cache grows with every token: each length would be "
            "recorded anew. Use 'static-cache+compile', or plain 'compile' with the dynamic cache.",
        )
    asked = plan.option("cudagraphs")
    if asked is not None and asked not in CUDAGRAPHS:
        raise UsageError(
            f"option cudagraphs={asked!r} is not known. Choices: {', '.join(CUDAGRAPHS)}."
        )
    if device.type != "cuda":
        return "off"
    if asked is not None:
        return str(asked)
    return "off" if mode == "default" or plan.cache != "static" else "trees"


def parse_knobs(text: str) -> dict[str, object]:
    """Typed values of a text like `combo_kernels=1,triton.enable_pdl=true`.

    Raises UsageError for unknown names.
    """
    known = torch._inductor.config.get_config_copy()  # noqa: SLF001  # the only list of them
    knobs: dict[str, object] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = item.partition("=")
        if not equals or name not in known:
            raise UsageError(
                f"compile_knobs: {item!r} is not a setting of torch._inductor.config in torch {torch.__version__}."
                f"{did_you_mean(name, known)} Expected name=value, comma-separated.",
            )
        knobs[name] = _typed(value, known[name])
    return knobs


def _typed(value: str, default: object) -> object:
    if isinstance(default, bool) or value.lower() in {"true", "false"}:
        return value.lower() in {"1", "true"}
    return int(value) if value.lstrip("-").isdigit() else value


def _marking_steps(compiled: Callable[[], None]) -> Callable[[], None]:
    """Tell CUDA graph trees that each call starts over, so that it replays one graph and does not record a chain of them."""

    def step() -> None:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]  # torch
        compiled()

    return step


def capture(work: Callable[[], None], rewind: Callable[[], None]) -> Callable[[], None]:
    """Record `work` as one CUDA graph after warming it up on a side stream; the result replays it."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            rewind()
            work()
    torch.cuda.current_stream().wait_stream(side)
    rewind()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def cudagraph_skips() -> int:
    """Graphs that inductor refused to record as CUDA graphs so far."""
    # As above.
    return int(torch._dynamo.utils.counters["inductor"]["cudagraph_skips"])  # noqa: SLF001
