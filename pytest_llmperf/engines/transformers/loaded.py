"""A loaded transformers model that runs workloads, describes itself and compares itself with a reference."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from msgspec import structs

from pytest_llmperf.core.agreement.comparison import PromptComparison
from pytest_llmperf.core.agreement.next_tokens import TopTokens
from pytest_llmperf.core.effective import Effective
from pytest_llmperf.core.trace import (
    Ceilings,
    EnergyReading,
    Mark,
    RequestTrace,
    StepCost,
    TokenEvent,
    Trace,
)
from pytest_llmperf.engines.outputs import reference
from pytest_llmperf.engines.outputs.answering import answer_tasks
from pytest_llmperf.engines.outputs.decoding import Decoded, DecodeLoop
from pytest_llmperf.engines.outputs.inputs import TokenBatch, Vocabulary, ids_hash, token_batch
from pytest_llmperf.engines.outputs.next_tokens import top_tokens
from pytest_llmperf.engines.outputs.requests import BatchRequests, batch_requests, matrix
from pytest_llmperf.engines.transformers import effective
from pytest_llmperf.engines.transformers.assisted import AssistedLoop
from pytest_llmperf.engines.transformers.batches import Answered, in_static_batches
from pytest_llmperf.engines.transformers.batches import trace_of as trace_of_requests
from pytest_llmperf.engines.transformers.compiling import compile_options, cudagraph_skips
from pytest_llmperf.engines.transformers.continuous import ContinuousLoop
from pytest_llmperf.engines.transformers.cost import step_cost
from pytest_llmperf.engines.transformers.generate import GenerateLoop
from pytest_llmperf.engines.transformers.kv_cache import cache_maker
from pytest_llmperf.engines.transformers.load import Loaded
from pytest_llmperf.engines.transformers.parallel.collectives import share_in_collectives
from pytest_llmperf.engines.transformers.parallel.group import leave, own_rows
from pytest_llmperf.engines.transformers.positions import counted_positions
from pytest_llmperf.engines.transformers.static_loop import StaticLoop
from pytest_llmperf.errors import UsageError
from pytest_llmperf.instruments.compiled import graphs_compiled
from pytest_llmperf.instruments.ranks import ranks_on_this_host
from pytest_llmperf.instruments.torch_runtime import (
    DeviceRuntime,
    measure_ceilings,
    measure_energy,
    out_of_memory_named,
)
from pytest_llmperf.strategies.adapters import BASE
from pytest_llmperf.wire.messages import CollectivesRead, Described, MemoryRead, Opened, Ran
from pytest_llmperf.workloads import (
    Batch,
    Lockstep,
    PromptSet,
    TaskAnswer,
    TaskSet,
    Workload,
    describe,
)


class TransformersModel:
    """See engines.base.Session.

    Which decode loop runs follows from the plan: a static cache with compile gets its own.
    """

    def __init__(self, loaded: Loaded) -> None:
        require_left_padding_side(loaded)
        if loaded.device.type == "cuda":
            # Events and streams made without a device are this one's.
            torch.cuda.set_device(loaded.device)
        self._loaded = loaded
        self._grid = None if loaded.cut is None else loaded.cut.grid
        share_cores = self._grid is not None and loaded.device.type == "cpu"
        self._runtime = DeviceRuntime(loaded.device, ranks_on_this_host() if share_cores else ())
        self._vocabulary = Vocabulary.of(loaded.model, loaded.tokenizer)
        self._before = graphs_compiled(), cudagraph_skips()
        self._mode: str | None = None
        self._loop = self._decode_loop()
        self._last: Decoded | Answered | None = None
        self._rows: tuple[str, ...] = ()
        self._effective = effective.describe(loaded)

    def _decode_loop(self) -> DecodeLoop:
        model, plan, device = self._loaded.model, self._loaded.plan, self._loaded.device
        if plan.batching is not None:
            return ContinuousLoop(model, self._vocabulary.pad)
        if plan.assist is not None:
            assistant = self._loaded.assistant
            return AssistedLoop(
                model,
                plan,
                self._vocabulary.pad,
                assistant.model if assistant is not None else None,
            )
        if plan.compile is None:
            return GenerateLoop(model, plan, self._vocabulary.pad)
        options = compile_options(plan, device, static=plan.cache == "static")
        self._mode = options.mode
        if plan.cache == "static":
            return StaticLoop(model, plan, device, options)
        options.compile_forward(model)
        return GenerateLoop(model, plan, self._vocabulary.pad)

    def opened(self) -> Opened:
        """What was loaded, and the device it is on."""
        loaded = self._loaded
        return Opened(
            effective=self._effective,
            load_s=loaded.load_s,
            content_hash=loaded.content_hash,
            base_hash=loaded.base_hash,
            vocab_size=loaded.vocab_size,
            versions=loaded.versions,
            device_name=self._runtime.name(),
            device_facts=dict(self._runtime.facts()),
            memory=self._runtime.memory(self._effective.weights_bytes),
            special_ids=self._vocabulary.special_below(loaded.vocab_size),
        )

    def describe(self) -> Described:
        """What is in effect, with the cache, loop and compiled graphs of the last run."""
        self._effective = self._describe()
        kv_cache = self._last.cache.bytes if self._last else None
        return Described(
            effective=self._effective,
            memory=self._runtime.memory(self._effective.weights_bytes, kv_cache=kv_cache),
        )

    def _describe(self) -> Effective:
        graphs, skips = graphs_compiled() - self._before[0], cudagraph_skips() - self._before[1]
        ran = self._last is not None
        facts = effective.RunFacts(
            cache=self._last.cache.kind if self._last else "",
            assistance=assisted_by(self._last),
            batching=(
                ""
                if not ran
                else "continuous"
                if isinstance(self._loop, ContinuousLoop)
                else "static"
            ),
            compile_mode=self._mode if graphs else None,
            compiled_graphs=graphs if ran else 0,
            decode_loop=self._loop.name if ran else "",
            notes=(f"{skips} graphs were not recorded as CUDA graphs",) if skips else (),
        )
        found = effective.describe(self._loaded, last_run=facts)
        return (
            found
            if not self._rows
            else structs.replace(found, adapters=tuple(n for n in self._rows if n != BASE))
        )

    def run(self, workload: Workload, repetition: int) -> Ran:
        """One timed repetition.

        Inputs are on the device before the clock starts; telemetry is read outside it.
        """
        if isinstance(workload, Batch):
            return self._run_requests(workload, repetition)
        batch = self._inputs(workload, repetition)
        watch = self._runtime.watch()
        self._meet()
        watch.start()
        decoded = self._decode(batch, workload)
        self._runtime.synchronise()
        seen = watch.finish()
        return Ran(
            trace=trace_of(decoded, batch, repetition, seen.marks),
            step=self._step_cost(decoded, batch.ids.shape[0]),
            telemetry=seen.gauges | proposals(decoded),
            prompts_hash=ids_hash(batch.ids),
            outputs_hash=ids_hash(decoded.tokens),
        )

    def use_adapters(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """See engines.base.Session: one name holds for all rows, several for the rows of each batch in turn."""
        adapters = self._loaded.adapters
        if adapters is None:
            if names:
                raise UsageError(
                    f"adapter {names[0]!r} was asked for, none is loaded. Add 'lora:PATH' to the strategy."
                )
            return ()
        if names and self._loaded.plan.compile is not None:
            raise UsageError(
                "adapters cannot be switched in a compiled model, whose graphs hold one. Leave out 'compile'."
            )
        adapters.use(names)
        self._rows = names if len(set(names)) > 1 else ()
        return self._rows or adapters.in_force()

    def answer_tasks(self, tasks: TaskSet, batch: int) -> tuple[TaskAnswer, ...]:
        """See answering.answer_tasks."""
        with out_of_memory_named(f"answering {tasks.name!r} in batches of {batch}"):
            return answer_tasks(self._scorer(), tasks, batch)

    def read_memory(self, workload: Workload, repetition: int) -> MemoryRead:
        """One repetition with the peak watched."""
        once = self._prepared(workload, repetition)
        with self._runtime.peak_memory() as region:
            done = once()
        weights = self._effective.weights_bytes
        return MemoryRead(memory=self._runtime.memory(weights, region, kv_cache=done.cache.bytes))

    def read_collectives(self, workload: Workload, repetition: int) -> CollectivesRead:
        """One repetition under the profiler."""
        once = self._prepared(workload, repetition)
        if self._grid is None:
            return CollectivesRead(share=None, reason="one device has nobody to communicate with")
        self._meet()
        found = share_in_collectives(once, self._loaded.device)
        return (
            CollectivesRead(share=None, reason=found)
            if isinstance(found, str)
            else CollectivesRead(share=found)
        )

    def read_energy(self, workload: Workload, repetition: int, seconds: float) -> EnergyReading:
        """Repetitions from `repetition` on until `seconds` have passed, the energy counter read around them."""
        repetitions = iter(range(repetition, repetition + 10**9))

        def repeat() -> int:
            done = self._prepared(workload, next(repetitions))()
            return sum(map(len, done.tokens))

        return measure_energy(
            self._runtime,
            seconds,
            repeat,
            bool if self._grid is None else self._grid.as_rank_0_says,
        )

    def ceilings(self, dtypes: tuple[str, ...]) -> Ceilings:
        """Copy bandwidth and matmul rates of this device."""
        return measure_ceilings(self._runtime, dtypes)

    def make_reference(
        self, prompts: PromptSet, new_tokens: int, batch: int, path: str
    ) -> tuple[int, int]:
        """See reference.make_reference."""
        with out_of_memory_named(f"making the reference of {prompts.name!r} in batches of {batch}"):
            return reference.make_reference(self._scorer(), prompts, new_tokens, batch, path)

    def compare_reference(self, path: str, batch: int) -> tuple[PromptComparison, ...]:
        """See reference.compare_reference."""
        with out_of_memory_named(f"comparing with the reference in batches of {batch}"):
            return reference.compare_reference(self._scorer(), path, batch)

    def top_tokens(self, prompt: str | tuple[int, ...], k: int) -> TopTokens:
        """See next_tokens.top_tokens."""
        with out_of_memory_named("reading the next token of a prompt"):
            return top_tokens(self._scorer(), prompt, k)

    def close(self) -> None:
        """Drop the model and everything compiled for it."""
        vars(self).clear()
        leave()
        torch._dynamo.reset()  # noqa: SLF001  # compiled graphs hold the weights
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _run_requests(self, workload: Batch, repetition: int) -> Ran:
        """One timed repetition of requests that are there together."""
        requests = self._asked(workload, repetition)
        watch = self._runtime.watch()
        self._meet()
        watch.start()
        with nullcontext() if self._mode else counted_positions(self._loaded.model) as positions:
            answered = self._answer(requests, workload)
        self._runtime.synchronise()
        seen = watch.finish()
        computed = None if positions is None else positions.at_least(requests.positions)
        return Ran(
            trace=trace_of_requests(answered, requests, repetition, seen.marks, computed),
            step=None,
            telemetry=seen.gauges,
            prompts_hash=ids_hash(matrix(requests.rows)),
            outputs_hash=ids_hash(matrix(answered.tokens)),
        )

    def _asked(self, workload: Batch, repetition: int) -> BatchRequests:
        if self._loaded.plan.dp > 1 or self._rows:
            raise UsageError(
                "a Batch is not divided among replicas or adapters. Take Decode, or one of them."
            )
        return batch_requests(workload, repetition, self._vocabulary, self._loaded.tokenizer)

    def _answer(self, requests: BatchRequests, workload: Batch) -> Answered:
        with out_of_memory_named(f"running {describe(workload)}"):
            if isinstance(self._loop, ContinuousLoop):
                self._last = self._loop.answer(requests)
            else:
                self._last = in_static_batches(
                    self._loop, requests, workload.batch, self._vocabulary.pad, self._loaded.device
                )
        return self._last

    def _prepared(self, workload: Workload, repetition: int) -> Callable[[], Decoded | Answered]:
        """One repetition, its inputs ready."""
        if isinstance(workload, Batch):
            requests = self._asked(workload, repetition)
            return lambda: self._answer(requests, workload)
        batch = self._inputs(workload, repetition)
        return lambda: self._decode(batch, workload)

    def _inputs(self, workload: Lockstep, repetition: int) -> TokenBatch:
        batch = token_batch(
            workload, repetition, self._vocabulary, self._loaded.tokenizer, self._loaded.device
        )
        if self._grid is None or self._loaded.plan.dp == 1:
            return batch
        rows = own_rows(batch.ids, self._loaded.plan.dp, self._grid.place("dp"))
        return TokenBatch(
            batch.ids[rows], None if batch.mask is None else batch.mask[rows], batch.lengths[rows]
        )

    def _decode(self, batch: TokenBatch, workload: Lockstep) -> Decoded:
        with out_of_memory_named(f"running {describe(workload)}"), self._mixed(batch):
            decoded = self._loop.decode(batch, workload.new_tokens)
        self._last = decoded
        return decoded

    def _meet(self) -> None:
        """The device is idle, and every rank is here: what is timed starts together."""
        self._runtime.synchronise()
        if self._grid is not None:
            self._grid.barrier()

    def _mixed(self, batch: TokenBatch) -> AbstractContextManager[None]:
        adapters = self._loaded.adapters
        return (
            adapters.rows(self._rows, batch.ids.shape[0])
            if adapters is not None and self._rows
            else nullcontext()
        )

    def _step_cost(self, decoded: Decoded, batch: int) -> StepCost:
        cost = step_cost(self._loaded.model, decoded.cache, batch, self._effective.compute_dtype)
        if decoded.assisted is not None:
            cost = structs.replace(
                cost, assistant_bytes_read=decoded.assisted.bytes_read / decoded.assisted.forwards
            )
        if self._grid is not None:
            per_rank = cost.attention_flops_per_token_per_position / self._grid.along("tp")
            cost = structs.replace(cost, attention_flops_per_token_per_position=per_rank)
        adapters = self._loaded.adapters
        if adapters is None or self._rows:
            return cost
        return structs.replace(
            cost,
            weight_bytes_read=cost.weight_bytes_read
            - sum(tensor.nbytes for tensor in adapters.unused()),
            flops_per_token=cost.flops_per_token + 2.0 * adapters.elements(),
        )

    def _scorer(self) -> reference.Scorer:
        loaded = self._loaded
        return reference.Scorer(
            model=loaded.model,
            tokenizer=loaded.tokenizer,
            loop=self._loop,
            vocabulary=self._vocabulary,
            device=loaded.device,
            autocast_dtype=loaded.plan.autocast_dtype,
            new_cache=cache_maker(loaded.model, loaded.plan),
            one_by_one=isinstance(self._loop, AssistedLoop),
            writes=self._grid is None or self._grid.rank == 0,
        )


def trace_of(
    decoded: Decoded, batch: TokenBatch, repetition: int, marks: tuple[Mark, ...]
) -> Trace:
    """One request for each sequence.

    They were decoded together, so they share the times of their tokens.
    """
    arrivals = decoded.arrivals or (1,) * len(decoded.t_tokens_ns)
    events = tuple(TokenEvent(t, n) for t, n in zip(decoded.t_tokens_ns, arrivals, strict=True))
    requests = tuple(
        RequestTrace(n_prompt_tokens=length, t_due_ns=decoded.t_start_ns, events=events)
        for length in batch.lengths
    )
    forwards = decoded.assisted.forwards if decoded.assisted is not None else None
    return Trace(
        repetition=repetition,
        requests=requests,
        marks=marks,
        clock=decoded.clock,
        forwards=forwards,
    )


def assisted_by(last: Decoded | Answered | None) -> str:
    """Who proposed tokens in the last run; "" for nobody."""
    return last.assisted.source if isinstance(last, Decoded) and last.assisted else ""


def proposals(decoded: Decoded) -> dict[str, float]:
    """How many tokens were proposed in an assisted run; nothing in another."""
    return (
        {}
        if decoded.assisted is None
        else {"assist_proposed_tokens": float(decoded.assisted.proposed)}
    )


def require_left_padding_side(loaded: Any) -> None:
    """Raise UsageError where the plan or the tokenizer pads on the right."""
    asked = loaded.plan.option("padding_side", "left")
    found = loaded.tokenizer.padding_side if loaded.tokenizer is not None else "left"
    if "right" in (asked, found) or asked != "left":
        raise UsageError(
            f"padding_side is {asked!r} in the plan and {found!r} in the tokenizer. A decoder's batch is padded on the left: "
            "padded on the right it continues from padding, and its outputs change. Use padding_side='left'.",
        )
