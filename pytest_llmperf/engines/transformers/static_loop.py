"""Greedy decoding over a static KV cache with a compiled one-token step.

The loop has no host sync, and replays CUDA graphs on a GPU. What `generate` costs per step
(building masks and inputs, reading the stop flag) is gone: the step reads and writes its own
buffers at fixed addresses, the next token is fed back on the device, and the host only queues
replays.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from transformers import StaticCache
from transformers.cache_utils import StaticLayer

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.outputs.decoding import Decoded, autocast
from pytest_llmperf.engines.outputs.inputs import TokenBatch
from pytest_llmperf.engines.transformers.compiling import CompileOptions, option_choice
from pytest_llmperf.engines.transformers.kv_cache import cache_seen, unusual_layers
from pytest_llmperf.errors import UsageError

CACHE_MULTIPLE = 16
"""Cache lengths are rounded up to this, so that rows of attention scores stay aligned."""

MAX_STATES = 4
"""Compiled shapes kept at once; dynamo gives up on a function after 8."""

PREFILL = ("auto", "eager", "compile", "graph")


class StepLayer(StaticLayer):  # type: ignore[no-untyped-call]  # transformers is partly typed
    """A static cache layer that reads its position from one tensor shared by all layers.

    transformers' own layer advances a counter of its own, which is one more kernel a layer and
    step. Whoever drives the model advances the shared position.
    """

    def __init__(self, max_cache_len: int, position: Tensor) -> None:
        super().__init__(max_cache_len)
        self.position = position

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: object, **_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write [batch, heads, n, head_dim] at `position` and return the whole cache."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        n = key_states.shape[-2]
        positions = self.position if n == 1 else torch.arange(n, device=self.device) + self.position
        keys, values = cast("Tensor", self.keys), cast("Tensor", self.values)
        keys.index_copy_(2, positions, key_states)
        values.index_copy_(2, positions, value_states)
        return keys, values

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate keys and values, each in its own dtype.

        Under autocast the values have another dtype than the (rotated) keys.
        """
        super().lazy_initialization(key_states, value_states)
        if value_states.dtype != key_states.dtype:
            self.values = cast("Tensor", self.values).to(value_states.dtype)
            # transformers marks its own static cache in the same way.
            torch._dynamo.mark_static_address(self.values)  # noqa: SLF001

    # The length of transformers' own static layer is a tensor too.
    def get_seq_length(self) -> Tensor:  # type: ignore[override]
        """Return how many positions are filled.

        The result is a zero-dimensional tensor on the device, so that asking costs no sync.
        """
        return self.position[0]


def step_cache(model: Any, max_len: int, position: Tensor) -> StaticCache:
    """Return a static cache whose layers share `position` ([1] int64).

    Raises UsageError for a model that needs cache layers of another kind.
    """
    config = model.config.get_text_config()
    cache = StaticCache(config=config, max_cache_len=max_len)
    unusual = unusual_layers(cache, StaticLayer)
    if unusual:
        raise UsageError(
            f"static-cache+compile: {type(model).__name__} needs cache layers "
            f"{unusual}, and the compiled loop drives full attention only. "
            "Use 'static-cache' or 'compile' alone.",
        )
    cache.layers = [StepLayer(max_len, position) for _ in cache.layers]
    return cache


class Ticks(Protocol):
    """Notes when each token is on the host."""

    clock: str

    def start(self) -> None:
        """Start the clock."""

    def token(self, index: int, token: Tensor) -> None:
        """Note token `index`, [batch, 1]."""

    def finish(self) -> tuple[int, tuple[int, ...], Tensor]:
        """Return the start, the times of the tokens (both in ns) and the tokens [batch, n]."""


class HostTicks:
    """Reads the host's clock: a CPU has computed the token when the call returns."""

    clock = "host"

    def __init__(self, batch: int, new_tokens: int) -> None:
        self._tokens = torch.empty(new_tokens, batch, dtype=torch.long)
        self._times: list[int] = []
        self._start = 0

    def start(self) -> None:
        """Start the clock."""
        self._start = time.perf_counter_ns()

    def token(self, index: int, token: Tensor) -> None:
        """Note token `index`, [batch, 1], which is on the host already."""
        self._tokens[index].copy_(token[:, 0])
        self._times.append(time.perf_counter_ns())

    def finish(self) -> tuple[int, tuple[int, ...], Tensor]:
        """Return the start, the times of the tokens (both in ns) and the tokens [batch, n]."""
        return self._start, tuple(self._times), self._tokens.T.contiguous()


class CudaTicks:
    """Queues a copy to pinned host memory and an event behind each token.

    They are read after one sync at the end. The device is idle at `start`, so its event and the
    host's clock mark the same moment (within the launch, ~10 us).
    """

    clock = "cuda-events"

    def __init__(self, batch: int, new_tokens: int) -> None:
        self._tokens = torch.empty(new_tokens, batch, dtype=torch.long, pin_memory=True)
        self._begin = _timing_event()
        self._events = [_timing_event() for _ in range(new_tokens)]
        self._start = 0

    def start(self) -> None:
        """Start the clock on the host and on the idle device."""
        self._start = time.perf_counter_ns()
        self._begin.record()

    def token(self, index: int, token: Tensor) -> None:
        """Queue the copy of token `index` ([batch, 1]) and the event that says it arrived."""
        self._tokens[index].copy_(token[:, 0], non_blocking=True)
        self._events[index].record()

    def finish(self) -> tuple[int, tuple[int, ...], Tensor]:
        """Return the start, the times of the tokens and the tokens [batch, n].

        Times are in ns, those of the tokens mapped to the host's clock.
        """
        self._events[-1].synchronize()
        times = tuple(
            self._start + round(self._begin.elapsed_time(event) * 1e6) for event in self._events
        )
        return self._start, times, self._tokens.T.contiguous()


def _timing_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Shape:
    """The sizes that a state is compiled for.

    `length` is the capacity of the cache; a prefill alone (`steps` False) has its own state.
    """

    batch: int
    width: int
    length: int
    padded: bool
    steps: bool


class LoopState:
    """The buffers of one shape, and the step and prefill that run on them.

    The addresses of the buffers never change.
    """

    def __init__(self, model: Any, shape: Shape, device: torch.device) -> None:
        self.model = model
        self.shape = shape
        zeros = partial(torch.zeros, dtype=torch.long, device=device)
        batch, width = shape.batch, shape.width
        self.token = zeros(batch, 1)
        self.prompt = zeros(batch, width)
        self.prompt_positions = zeros(batch, width)
        self.positions = zeros(batch, 1)
        self.position = zeros(1)
        self.mask = zeros(batch, shape.length).fill_(1) if shape.padded else None
        self.cache = step_cache(model, shape.length, self.position)
        self._last_logits_only = _last_logits_only(model)
        self._fix_addresses()
        self.step: Callable[[], Tensor] = self.eager_step
        self.prefill: Callable[[], Tensor] = self.eager_prefill

    def _fix_addresses(self) -> None:
        for buffer in (
            self.token,
            self.prompt,
            self.prompt_positions,
            self.positions,
            self.position,
            self.mask,
        ):
            if buffer is not None:
                # transformers marks its own static cache in the same way.
                torch._dynamo.mark_static_address(buffer)  # noqa: SLF001

    def take(self, batch: TokenBatch) -> None:
        """Put a batch into the buffers and go back to before the prefill.

        Old keys and values stay: they are masked until they are overwritten.
        """
        self.prompt.copy_(batch.ids)
        if self.mask is not None and batch.mask is not None:
            self.mask[:, : self.shape.width].copy_(batch.mask)
            self.prompt_positions.copy_((batch.mask.cumsum(dim=1) - 1).clamp(min=0))
        else:
            self.prompt_positions.copy_(torch.arange(self.shape.width, device=self.prompt.device))
        self.rewind()

    def rewind(self) -> None:
        """Go back to before the prefill."""
        self.position.zero_()

    def rewind_to_step(self) -> None:
        """Go back to just after the prefill."""
        self.position.fill_(self.shape.width)

    def eager_prefill(self) -> Tensor:
        """Run the prompt through the model, and return the [batch, vocab] logits behind it.

        The first token is left in `token`, and everything is set for the next step.
        """
        logits = self._logits(self.prompt, self.prompt_positions)
        self.token.copy_(logits.argmax(dim=-1, keepdim=True))
        self.positions.copy_(self.prompt_positions[:, -1:] + 1)
        self.position.add_(self.shape.width)
        return logits

    def eager_step(self) -> Tensor:
        """Decode one token: read `token`, and leave the next one there.

        Returns the [batch, vocab] logits that it was chosen from, which the step has made anyway.
        """
        logits = self._logits(self.token, self.positions)
        self.token.copy_(logits.argmax(dim=-1, keepdim=True))
        self.positions.add_(1)
        self.position.add_(1)
        return logits

    def _logits(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Return [batch, vocab] of the last position."""
        out = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            **self._last_logits_only,
        )
        return out.logits[:, -1]  # type: ignore[no-any-return]


def _last_logits_only(model: Any) -> dict[str, int]:
    """Return the argument by which a forward pass computes the logits of the last position only."""
    can_skip_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
    return {"logits_to_keep": 1} if can_skip_logits else {}


class StaticLoop:
    """The decode loop of `static-cache+compile`; see DecodeLoop.

    LoadPlan options: "prefill" (auto, eager, compile, graph), "cudagraphs" (trees, manual, off) and
    "compile_knobs" ("name=value,…" of torch._inductor.config).
    """

    def __init__(
        self, model: Any, plan: LoadPlan, device: torch.device, options: CompileOptions
    ) -> None:
        self._model = model
        self._device = device
        self._autocast_dtype = plan.autocast_dtype
        self._options = options
        self._prefill = option_choice(plan, "prefill", PREFILL, "auto")
        self._states: dict[Shape, LoopState] = {}
        self.name = f"static-cache loop ({self._options.text})"

    def decode(self, batch: TokenBatch, new_tokens: int) -> Decoded:
        """Decode as DecodeLoop says.

        The clock starts before the prefill is queued, while the device is idle.
        """
        with torch.no_grad(), autocast(self._device, self._autocast_dtype):
            state = self._state(batch, new_tokens)
            state.take(batch)
            ticks: Ticks = self._ticks(batch.ids.shape[0], new_tokens)
            self._synchronise()
            ticks.start()
            state.prefill()
            ticks.token(0, state.token)
            for index in range(1, new_tokens):
                state.step()
                ticks.token(index, state.token)
            start, times, tokens = ticks.finish()
        return Decoded(tokens, start, times, cache_seen(state.cache), ticks.clock)

    @property
    def unforced(self) -> str:
        """See ForcesTokens."""
        return ""

    def force(self, batch: TokenBatch, tokens: Tensor) -> Tensor:
        """Run the same compiled step as `decode`; see ForcesTokens."""
        with torch.no_grad(), autocast(self._device, self._autocast_dtype):
            state = self._state(batch, tokens.shape[1])
            state.take(batch)
            logits = [state.prefill().float().cpu()]
            for token in tokens[:, :-1].T:
                state.token.copy_(token[:, None])
                # A replay writes where the one before did, so that a copy is taken at once.
                logits.append(state.step().float().cpu())
        return torch.stack(logits, dim=1)

    def _ticks(self, batch: int, new_tokens: int) -> Ticks:
        ticks = CudaTicks if self._device.type == "cuda" else HostTicks
        return ticks(batch, new_tokens)

    def _synchronise(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _state(self, batch: TokenBatch, new_tokens: int) -> LoopState:
        """Return the state compiled for the batch, at most MAX_STATES of which are kept."""
        shape = _shape(batch, new_tokens)
        if shape not in self._states:
            if len(self._states) >= MAX_STATES:
                self._states.clear()
                torch._dynamo.reset()  # noqa: SLF001  # compiled graphs hold the weights
            self._states[shape] = self._prepare(shape, batch)
        return self._states[shape]

    def _prepare(self, shape: Shape, batch: TokenBatch) -> LoopState:
        """Make the buffers of a shape and compile its step, and its prefill where the plan says so.

        The first eager prefill allocates the cache at its final address.
        """
        state = LoopState(self._model, shape, self._device)
        state.take(batch)
        state.eager_prefill()
        if shape.steps:
            state.step = self._options.compile_step(state.eager_step, state.rewind_to_step)
        self._compile_prefill(state)
        return state

    def _compile_prefill(self, state: LoopState) -> None:
        """Compile or capture the prefill where the plan says so, or where it runs alone."""
        how = self._prefill
        if how == "auto":
            how = "eager" if state.shape.steps else "compile"
        if how != "eager":
            compile_prefill = self._options.compile_prefill
            state.prefill = compile_prefill(state.eager_prefill, how, state.rewind)


def _shape(batch: TokenBatch, new_tokens: int) -> Shape:
    rows, width = batch.ids.shape
    length = _rounded_up(width + new_tokens)
    return Shape(rows, width, length, padded=batch.mask is not None, steps=new_tokens > 1)


def _rounded_up(positions: int) -> int:
    return -(-positions // CACHE_MULTIPLE) * CACHE_MULTIPLE
