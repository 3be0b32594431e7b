"""Runs workloads on a loaded model: makes inputs, decodes with the plan's loop, keeps what ran."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from pytest_llmperf.engines.outputs.bounds import Bounds
from pytest_llmperf.engines.outputs.decoding import Decoded, DecodeLoop
from pytest_llmperf.engines.outputs.inputs import TokenBatch, Vocabulary, token_batch
from pytest_llmperf.engines.outputs.requests import BatchRequests, batch_requests
from pytest_llmperf.engines.transformers.assisted import AssistedLoop
from pytest_llmperf.engines.transformers.batches import Answered, in_static_batches
from pytest_llmperf.engines.transformers.compiling import CompileOptions, compile_options
from pytest_llmperf.engines.transformers.continuous import ContinuousLoop
from pytest_llmperf.engines.transformers.generate import GenerateLoop
from pytest_llmperf.engines.transformers.load import ModelOnDevice
from pytest_llmperf.engines.transformers.observed.compiled import Matrices
from pytest_llmperf.engines.transformers.observed.computed import require_finite
from pytest_llmperf.engines.transformers.parallel.group import own_rows
from pytest_llmperf.engines.transformers.static_loop import StaticLoop
from pytest_llmperf.errors import UsageError
from pytest_llmperf.instruments.torch_runtime import DeviceRuntime, out_of_memory_named
from pytest_llmperf.workloads import Batch, Lockstep, Workload, describe


class Runner:
    """Runs workloads, and keeps what came of the last one.

    Which decode loop runs follows from the plan: a static cache with compile gets its own.
    `adapters_of_rows` are the adapters that the rows of a batch take in turn, where there are
    several.
    """

    def __init__(
        self, loaded: ModelOnDevice, runtime: DeviceRuntime, vocabulary: Vocabulary
    ) -> None:
        self.loop, self._compiling = _decode_loop(loaded, vocabulary.pad)
        self._runs_before: list[int] = []
        self._runs_after: list[int] = []
        self._passes = 0
        self._finite: set[Workload] = set()
        self.last: Decoded | Answered | None = None
        self.adapters_of_rows: tuple[str, ...] = ()
        self.grid = None if loaded.cut is None else loaded.cut.grid
        assistant = None if loaded.assistant is None else loaded.assistant.model
        self.bounds = Bounds.of(loaded.model, assistant)
        self._loaded = loaded
        self._runtime = runtime
        self._vocabulary = vocabulary

    def prepared(self, workload: Workload, repetition: int) -> Callable[[], Decoded | Answered]:
        """Return one repetition as a call, with its inputs ready."""
        if isinstance(workload, Batch):
            requests = self.requests(workload, repetition)
            return lambda: self.answer(requests, workload)
        batch = self.inputs(workload, repetition)
        return lambda: self.decode(batch, workload)

    def inputs(self, workload: Lockstep, repetition: int) -> TokenBatch:
        """Return the prompts of a repetition on the device; those of this replica alone.

        Raises UsageError for what the model has no positions or no embedding for.
        """
        loaded = self._loaded
        batch = token_batch(workload, repetition, self._vocabulary, loaded.tokenizer, loaded.device)
        self.bounds.require_lengths(batch.lengths, [workload.new_tokens] * len(batch.lengths))
        self.bounds.require_ids(int(batch.ids.min()), int(batch.ids.max()))
        if self.grid is None or loaded.plan.dp == 1:
            return batch
        rows = own_rows(batch.ids, loaded.plan.dp, self.grid.place("dp"))
        mask = None if batch.mask is None else batch.mask[rows]
        return TokenBatch(batch.ids[rows], mask, batch.lengths[rows])

    def requests(self, workload: Batch, repetition: int) -> BatchRequests:
        """Return the requests of a repetition.

        Raises UsageError for what cannot divide them, and as `inputs` does.
        """
        if self._loaded.plan.dp > 1 or self.adapters_of_rows:
            raise UsageError(
                "a Batch is not divided among replicas or adapters. Take Decode, or one of them."
            )
        requests = batch_requests(workload, repetition, self._vocabulary, self._loaded.tokenizer)
        self.bounds.require(requests.rows, requests.new_tokens)
        return requests

    def meet(self) -> None:
        """Wait until the device is idle and every rank is here: what is timed starts together."""
        self._runtime.synchronise()
        if self.grid is not None:
            self.grid.barrier()

    def decode(self, batch: TokenBatch, workload: Lockstep) -> Decoded:
        """Decode one batch, in lockstep."""
        with out_of_memory_named(f"running {describe(workload)}"), self._adapters(batch):
            self._note_start(workload.new_tokens)
            decoded = self.loop.decode(batch, workload.new_tokens)
        self._note_end()
        self.last = decoded
        return decoded

    def answer(self, requests: BatchRequests, workload: Batch) -> Answered:
        """Answer requests that are there together, continuously or in static batches."""
        with out_of_memory_named(f"running {describe(workload)}"):
            if isinstance(self.loop, ContinuousLoop):
                answered = self.loop.answer(requests)
            else:
                self._note_start(_steps(requests, workload.batch))
                answered = in_static_batches(
                    self.loop, requests, workload.batch, self._vocabulary.pad, self._loaded.device
                )
        self._note_end()
        self.last = answered
        return answered

    @property
    def compile_mode(self) -> str | None:
        """The mode of torch.compile, if the plan compiles."""
        return None if self._compiling is None else self._compiling.mode

    def _compile_notes(self) -> tuple[str, ...]:
        """Say how often and why graphs were broken and compiled anew."""
        return () if self._compiling is None else self._compiling.work.notes()

    def compiled_share(self, matrices: Matrices) -> float | None:
        """Return the share of the last run's products that compiled graphs ran, 0 to 1.

        The static loop's step is one graph, which a CUDA graph may replay: what went into it
        counts.
        """
        if self._compiling is None or self.last is None:
            return None
        work = self._compiling.work
        if isinstance(self.loop, StaticLoop):
            return work.captured_share(matrices)
        return work.executed_share(matrices, self._runs_before, self._runs_after, self._passes)

    def require_finite(self, workload: Workload, prompt: Tensor, output: Tensor) -> None:
        """Look at the logits of a run's first row, [n] each, once for each workload.

        Raises InvalidRun where they are not finite.
        """
        if workload in self._finite:
            return
        loaded = self._loaded
        row = torch.cat([prompt.to(loaded.device), output[:-1].to(loaded.device)])
        require_finite(loaded.model, row, len(output), loaded.plan.autocast_dtype)
        self._finite.add(workload)

    def _note_start(self, passes: int) -> None:
        """Remember where a run of so many forward passes starts."""
        self._runs_before = [] if self._compiling is None else self._compiling.work.runs()
        self._passes = passes

    def _note_end(self) -> None:
        """Remember where a run ends: what comes after it is another's."""
        self._runs_after = [] if self._compiling is None else self._compiling.work.runs()

    @property
    def batching(self) -> str:
        """How the last run's sequences were batched, by their times; empty before the first."""
        if self.last is None:
            return ""
        return self.loop.in_flight.batching if isinstance(self.loop, ContinuousLoop) else "static"

    @property
    def notes(self) -> tuple[str, ...]:
        """Say how the last run was batched, where that is continuously, and what was compiled."""
        loop = self.loop
        if isinstance(loop, ContinuousLoop) and loop.in_flight.requests > 1:
            return (loop.in_flight.note,)
        return self._compile_notes()

    @property
    def assistance(self) -> str:
        """Who proposed tokens in the last run; empty for nobody."""
        if not isinstance(self.last, Decoded) or self.last.assisted is None:
            return ""
        return self.last.assisted.source

    def _adapters(self, batch: TokenBatch) -> AbstractContextManager[None]:
        adapters = self._loaded.adapters
        if adapters is None or not self.adapters_of_rows:
            return nullcontext()
        return adapters.rows(self.adapters_of_rows, batch.ids.shape[0])


def _steps(requests: BatchRequests, batch: int) -> int:
    """Return how many forward passes static batches take: as many as each one's longest request."""
    new_tokens = requests.new_tokens
    return sum(max(new_tokens[i : i + batch]) for i in range(0, len(new_tokens), batch))


def _decode_loop(loaded: ModelOnDevice, pad: int) -> tuple[DecodeLoop, CompileOptions | None]:
    """Return the loop that the plan asks for, and how it compiles, if it does."""
    model, plan = loaded.model, loaded.plan
    if plan.batching is not None:
        return ContinuousLoop(model, pad), None
    if plan.assist is not None:
        assistant = None if loaded.assistant is None else loaded.assistant.model
        return AssistedLoop(model, plan, pad, assistant), None
    if plan.compile is not None:
        return _compiled_loop(loaded, pad)
    return GenerateLoop(model, plan, pad), None


def _compiled_loop(loaded: ModelOnDevice, pad: int) -> tuple[DecodeLoop, CompileOptions]:
    model, plan = loaded.model, loaded.plan
    static = plan.cache == "static"
    options = compile_options(plan, loaded.device, static=static)
    if static:
        return StaticLoop(model, plan, loaded.device, options), options
    options.compile_forward(model)
    return GenerateLoop(model, plan, pad), options
