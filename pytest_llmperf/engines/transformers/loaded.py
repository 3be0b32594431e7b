"""A loaded transformers model: it runs workloads, describes itself and compares outputs."""

from __future__ import annotations

import gc
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from msgspec import structs

from pytest_llmperf.core.agreement.comparison import PromptComparison
from pytest_llmperf.core.agreement.layers import ModuleError
from pytest_llmperf.core.agreement.next_tokens import TopTokens
from pytest_llmperf.core.effective import Effective
from pytest_llmperf.core.loaded import Description, ModelFacts, TimedRun
from pytest_llmperf.core.trace import (
    Ceilings,
    EnergyReading,
    MemoryGauges,
    RequestTrace,
    StepCost,
    TokenEvent,
    Trace,
)
from pytest_llmperf.engines.outputs import candidate, layers, reference
from pytest_llmperf.engines.outputs.answering import answer_tasks
from pytest_llmperf.engines.outputs.decoding import Decoded
from pytest_llmperf.engines.outputs.inputs import TokenBatch, Vocabulary, ids_hash
from pytest_llmperf.engines.outputs.next_tokens import top_tokens
from pytest_llmperf.engines.outputs.requests import matrix
from pytest_llmperf.engines.outputs.scorer import Scorer
from pytest_llmperf.engines.transformers import effective
from pytest_llmperf.engines.transformers.accounting.cost import attention_divided, step_cost
from pytest_llmperf.engines.transformers.accounting.forward_pass import (
    EverythingOnce,
    Passed,
    one_token,
)
from pytest_llmperf.engines.transformers.assisted import AssistedLoop
from pytest_llmperf.engines.transformers.batches import trace_of as trace_of_requests
from pytest_llmperf.engines.transformers.compiling import cudagraph_skips, end_compilers
from pytest_llmperf.engines.transformers.kv_cache import cache_maker
from pytest_llmperf.engines.transformers.load import ModelOnDevice
from pytest_llmperf.engines.transformers.parallel.collectives import share_in_collectives
from pytest_llmperf.engines.transformers.parallel.group import leave
from pytest_llmperf.engines.transformers.positions import Positions, counted_positions
from pytest_llmperf.engines.transformers.runner import Runner
from pytest_llmperf.errors import UsageError
from pytest_llmperf.instruments.ceilings import measure_ceilings
from pytest_llmperf.instruments.compiled import graphs_compiled
from pytest_llmperf.instruments.ranks import ranks_on_this_host
from pytest_llmperf.instruments.telemetry import Telemetry
from pytest_llmperf.instruments.torch_runtime import (
    DeviceRuntime,
    measure_energy,
    out_of_memory_named,
)
from pytest_llmperf.strategies.adapters import BASE
from pytest_llmperf.workloads import Batch, Lockstep, PromptSet, TaskAnswer, TaskSet, Workload


class TransformersModel:
    """See `engines.base.LoadedModel`."""

    def __init__(self, loaded: ModelOnDevice) -> None:
        require_left_padding_side(loaded)
        if loaded.device.type == "cuda":
            # Events and streams made without a device are this one's.
            torch.cuda.set_device(loaded.device)
        self._loaded = loaded
        share_cores = loaded.cut is not None and loaded.device.type == "cpu"
        peers = ranks_on_this_host() if share_cores else ()
        self._runtime = DeviceRuntime(loaded.device, peers, ranks=loaded.plan.ranks)
        self._vocabulary = Vocabulary.of(loaded.model, loaded.tokenizer)
        self._graphs_before, self._skips_before = graphs_compiled(), cudagraph_skips()
        self._runner = Runner(loaded, self._runtime, self._vocabulary)
        self._effective = effective.describe(loaded)
        self._passed: Passed | None = None

    def opened(self) -> ModelFacts:
        """Return what was loaded, and the device it is on."""
        loaded = self._loaded
        return ModelFacts(
            effective=self._effective,
            load_s=loaded.load_s,
            content_hash=loaded.content_hash,
            base_hash=loaded.base_hash,
            reference_key=loaded.reference_key,
            vocab_size=loaded.vocab_size,
            versions=loaded.versions,
            device_name=self._runtime.name(),
            device_facts=dict(self._runtime.facts()),
            memory=self._runtime.memory(self._effective.weights_bytes),
            special_ids=self._vocabulary.special_below(loaded.vocab_size),
            not_read=loaded.not_read,
        )

    def describe(self) -> Description:
        """Return what is in effect, with the cache, loop and compiled graphs of the last run."""
        self._effective = self._describe()
        last = self._runner.last
        memory = self._runtime.memory(
            self._effective.weights_bytes, kv_cache=None if last is None else last.cache.bytes
        )
        return Description(effective=self._effective, memory=memory)

    def run(self, workload: Workload, repetition: int) -> TimedRun:
        """Run the workload once, timed.

        Inputs are on the device before the clock starts; telemetry is read outside it.
        """
        if isinstance(workload, Batch):
            return self._run_requests(workload, repetition)
        return self._run_lockstep(workload, repetition)

    def use_adapters(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """See `engines.base.SwitchesAdapters`.

        One name applies to all rows, several to the rows of each batch in turn.
        """
        adapters = self._loaded.adapters
        if adapters is None:
            if names:
                raise UsageError(
                    f"adapter {names[0]!r} was asked for, none is loaded. "
                    "Add 'lora:PATH' to the strategy."
                )
            return ()
        if names and self._loaded.plan.compile is not None:
            raise UsageError(
                "adapters cannot be switched in a compiled model, whose graphs hold one. "
                "Leave out 'compile'."
            )
        adapters.use(names)
        self._runner.adapters_of_rows = names if len(set(names)) > 1 else ()
        return self._runner.adapters_of_rows or adapters.in_force()

    def answer_tasks(self, tasks: TaskSet, batch: int) -> tuple[TaskAnswer, ...]:
        """See `outputs.answering.answer_tasks`."""
        with out_of_memory_named(f"answering {tasks.name!r} in batches of {batch}"):
            return answer_tasks(self._scorer(), tasks, batch)

    def read_memory(self, workload: Workload, repetition: int) -> MemoryGauges:
        """Run the workload once with the peak watched."""
        run_once = self._runner.prepared(workload, repetition)
        with self._runtime.peak_memory() as region:
            run = run_once()
        weights = self._effective.weights_bytes
        return self._runtime.memory(weights, region, kv_cache=run.cache.bytes)

    def read_collectives(self, workload: Workload, repetition: int) -> float | str:
        """Run the workload once under the profiler."""
        run_once = self._runner.prepared(workload, repetition)
        if self._runner.grid is None:
            return "one device has nobody to communicate with"
        self._runner.meet()
        return share_in_collectives(run_once, self._loaded.device)

    def read_energy(self, workload: Workload, repetition: int, seconds: float) -> EnergyReading:
        """Repeat until `seconds` have passed, and read the energy counter around the repetitions.

        They count from `repetition` on. Rank 0 says when the time is over.
        """
        repetitions = iter(range(repetition, repetition + 10**9))

        def repeat() -> int:
            run = self._runner.prepared(workload, next(repetitions))()
            return sum(map(len, run.tokens))

        grid = self._runner.grid
        go_on = bool if grid is None else grid.as_rank_0_says
        return measure_energy(self._runtime, seconds, repeat, go_on)

    def ceilings(self, dtypes: tuple[str, ...]) -> Ceilings:
        """Measure the bandwidth and the matmul rates of this device."""
        return measure_ceilings(self._runtime, dtypes)

    def make_reference(
        self, prompts: PromptSet, new_tokens: int, batch: int, path: str
    ) -> tuple[int, int]:
        """See `outputs.reference.make_reference`."""
        with out_of_memory_named(f"making the reference of {prompts.name!r} in batches of {batch}"):
            return reference.make_reference(self._scorer(), prompts, new_tokens, batch, path)

    def compare_reference(self, path: str, batch: int) -> tuple[PromptComparison, ...]:
        """See `outputs.candidate.compare_reference`."""
        with out_of_memory_named(f"comparing with the reference in batches of {batch}"):
            return candidate.compare_reference(self._scorer(), path, batch)

    def write_layers(
        self, path: str, prompts: tuple[int, ...], inside: str, dtype: str, file: str
    ) -> tuple[ModuleError, ...]:
        """See `outputs.layers.write_layers`."""
        with out_of_memory_named("writing the outputs of its layers"):
            look = layers.Look(path=path, prompts=prompts, inside=inside)
            return layers.write_layers(self._scorer(), look, dtype, file)

    def compare_layers(
        self, path: str, prompts: tuple[int, ...], inside: str, file: str
    ) -> tuple[ModuleError, ...]:
        """See `outputs.layers.compare_layers`."""
        with out_of_memory_named("comparing the outputs of its layers"):
            look = layers.Look(path=path, prompts=prompts, inside=inside)
            return layers.compare_layers(self._scorer(), look, file)

    def top_tokens(self, prompt: str | tuple[int, ...], k: int) -> TopTokens:
        """See `outputs.next_tokens.top_tokens`."""
        with out_of_memory_named("reading the next token of a prompt"):
            return top_tokens(self._scorer(), prompt, k)

    def close(self) -> None:
        """Drop the model and everything compiled for it."""
        vars(self).clear()
        leave()
        end_compilers()
        torch._dynamo.reset()  # noqa: SLF001  # compiled graphs hold the weights
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _run_lockstep(self, workload: Lockstep, repetition: int) -> TimedRun:
        """Run a batch of sequences once, timed."""
        batch = self._runner.inputs(workload, repetition)
        watch = self._runtime.watch()
        self._runner.meet()
        watch.start()
        decoded = self._runner.decode(batch, workload)
        self._runtime.synchronise()
        telemetry = watch.finish()
        self._runner.require_finite(workload, batch.ids[0][-batch.lengths[0] :], decoded.tokens[0])
        return TimedRun(
            trace=_trace_of(decoded, batch, repetition, telemetry),
            step=self._with_other_matrices(self._step_cost(decoded, batch.ids.shape[0])),
            telemetry=telemetry.gauges | _proposals(decoded),
            prompts_hash=ids_hash(batch.ids),
            outputs_hash=ids_hash(decoded.tokens),
        )

    def _run_requests(self, workload: Batch, repetition: int) -> TimedRun:
        """Run requests that are there together once, timed."""
        requests = self._runner.requests(workload, repetition)
        watch = self._runtime.watch()
        self._runner.meet()
        watch.start()
        with self._positions_counted() as positions:
            answered = self._runner.answer(requests, workload)
        self._runtime.synchronise()
        telemetry = watch.finish()
        prompt, output = (torch.tensor(rows[0]) for rows in (requests.rows, answered.tokens))
        self._runner.require_finite(workload, prompt, output)
        computed = None if positions is None else positions.at_least(requests.positions)
        return TimedRun(
            trace=trace_of_requests(answered, requests, repetition, telemetry, computed),
            step=None,
            telemetry=telemetry.gauges,
            prompts_hash=ids_hash(matrix(requests.rows)),
            outputs_hash=ids_hash(matrix(answered.tokens)),
        )

    def _positions_counted(self) -> AbstractContextManager[Positions | None]:
        """Count the positions that go through the model; None where its graphs would be broken."""
        if self._runner.compile_mode:
            return nullcontext()
        return counted_positions(self._loaded.model)

    def _describe(self) -> Effective:
        described = effective.describe(self._loaded, last_run=self._run_facts())
        names = self._runner.adapters_of_rows
        if not names:
            return described
        return structs.replace(described, adapters=tuple(name for name in names if name != BASE))

    def _run_facts(self) -> effective.RunFacts:
        """Return what the last run shows, and nothing else does."""
        runner = self._runner
        graphs = graphs_compiled() - self._graphs_before
        skips = cudagraph_skips() - self._skips_before
        return effective.RunFacts(
            cache="" if runner.last is None else runner.last.cache.kind,
            assistance=runner.assistance,
            batching=runner.batching,
            compile_mode=runner.compile_mode if graphs else None,
            compiled_graphs=0 if runner.last is None else graphs,
            decode_loop="" if runner.last is None else runner.loop.name,
            notes=(*runner.notes, *_skipped(skips)),
            compiled_share=runner.compiled_share,
        )

    def _step_cost(self, decoded: Decoded, batch: int) -> StepCost:
        compute_dtype = self._effective.compute_dtype
        passed = self._one_token()
        cost = step_cost(self._loaded.model, decoded.cache, batch, compute_dtype, passed)
        if decoded.assisted is not None:
            per_step = decoded.assisted.bytes_read / decoded.assisted.forwards
            cost = structs.replace(cost, assistant_bytes_read=per_step)
        if self._runner.grid is not None:
            cost = attention_divided(cost, self._runner.grid.along("tp"))
        return self._with_adapters(cost)

    def _one_token(self) -> Passed:
        """Return what one token goes through; it is run once.

        Of a model that is cut or lies elsewhere all is counted once: its tensors come and go.
        """
        if self._passed is None:
            loaded = self._loaded
            is_whole = loaded.cut is None and loaded.plan.offload is None
            self._passed = one_token(loaded.model) if is_whole else EverythingOnce()
        return self._passed

    def _with_other_matrices(self, cost: StepCost) -> StepCost:
        """Return the cost with the matrices that a step reads and that are no parameters."""
        more = self._effective.also_read_bytes
        return structs.replace(cost, weight_bytes_read=cost.weight_bytes_read + more)

    def _with_adapters(self, cost: StepCost) -> StepCost:
        """Return the cost with the one adapter in force, and without those that are not read."""
        adapters = self._loaded.adapters
        if adapters is None or self._runner.adapters_of_rows:
            return cost
        unread = sum(tensor.nbytes for tensor in adapters.unused())
        return structs.replace(
            cost,
            weight_bytes_read=cost.weight_bytes_read - unread,
            flops_per_token=cost.flops_per_token + 2.0 * adapters.elements(),
        )

    def _scorer(self) -> Scorer:
        loaded, runner = self._loaded, self._runner
        return Scorer(
            model=loaded.model,
            tokenizer=loaded.tokenizer,
            loop=runner.loop,
            bounds=runner.bounds,
            vocabulary=self._vocabulary,
            device=loaded.device,
            autocast_dtype=loaded.plan.autocast_dtype,
            new_cache=cache_maker(loaded.model, loaded.plan),
            one_by_one=isinstance(runner.loop, AssistedLoop),
            compiled=runner.compile_mode is not None,
            writes=runner.grid is None or runner.grid.rank == 0,
        )


def _trace_of(decoded: Decoded, batch: TokenBatch, repetition: int, telemetry: Telemetry) -> Trace:
    """Return one request for each sequence.

    They were decoded together, so they share the times of their tokens.
    """
    arrivals = decoded.arrivals or (1,) * len(decoded.t_tokens_ns)
    events = tuple(TokenEvent(t, n) for t, n in zip(decoded.t_tokens_ns, arrivals, strict=True))
    requests = tuple(
        RequestTrace(n_prompt_tokens=length, t_due_ns=decoded.t_start_ns, events=events)
        for length in batch.lengths
    )
    return Trace(
        repetition=repetition,
        requests=requests,
        marks=telemetry.marks,
        clock=decoded.clock,
        forwards=None if decoded.assisted is None else decoded.assisted.forwards,
        cpu_s=telemetry.cpu_s,
        no_cpu_s=telemetry.no_cpu_s,
    )


def _skipped(graphs: int) -> list[str]:
    return [f"{graphs} graphs were not recorded as CUDA graphs"] if graphs else []


def _proposals(decoded: Decoded) -> dict[str, float]:
    """Return how many tokens were proposed in an assisted run; nothing for another."""
    if decoded.assisted is None:
        return {}
    return {"assist_proposed_tokens": float(decoded.assisted.proposed)}


def require_left_padding_side(loaded: Any) -> None:
    """Raise UsageError where the plan or the tokenizer pads on the right."""
    of_plan = loaded.plan.option("padding_side", "left")
    of_tokenizer = "left" if loaded.tokenizer is None else loaded.tokenizer.padding_side
    if of_plan != "left" or of_tokenizer == "right":
        raise UsageError(
            f"padding_side is {of_plan!r} in the plan and {of_tokenizer!r} in the tokenizer. "
            "A decoder's batch is padded on the left: padded on the right it continues from "
            "padding, and its outputs change. Use padding_side='left'.",
        )
