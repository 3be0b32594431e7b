"""A loaded vLLM engine: it runs workloads, describes itself and compares outputs."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from types import SimpleNamespace

import torch
from msgspec import structs
from torch import nn
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

from pytest_llmperf.core.agreement.comparison import PromptComparison
from pytest_llmperf.core.agreement.next_tokens import TopTokens
from pytest_llmperf.core.effective import Effective
from pytest_llmperf.core.loaded import Description, ModelFacts, TimedRun
from pytest_llmperf.core.trace import (
    Ceilings,
    EnergyReading,
    MemoryGauges,
    RequestTrace,
    StepCost,
    Trace,
)
from pytest_llmperf.engines.loading.reference_key import reference_key
from pytest_llmperf.engines.outputs import candidate, reference
from pytest_llmperf.engines.outputs.answering import answer_tasks
from pytest_llmperf.engines.outputs.inputs import ids_hash
from pytest_llmperf.engines.outputs.next_tokens import top_tokens
from pytest_llmperf.engines.outputs.requests import matrix
from pytest_llmperf.engines.vllm import inspection
from pytest_llmperf.engines.vllm.quantized import quantized_layers
from pytest_llmperf.engines.vllm.requesting import LOOP, LoadedEngine, Requester, VllmScorer
from pytest_llmperf.engines.vllm.shards import carrier, leave_shared_memory, shards
from pytest_llmperf.engines.vllm.stepping import Ask, Stepped
from pytest_llmperf.errors import NotInEffect, UsageError
from pytest_llmperf.instruments.ceilings import measure_ceilings
from pytest_llmperf.instruments.compiled import graphs_compiled
from pytest_llmperf.instruments.ranks import ranks_on_this_host
from pytest_llmperf.instruments.telemetry import Telemetry
from pytest_llmperf.instruments.torch_runtime import (
    DeviceRuntime,
    measure_energy,
    out_of_memory_named,
)
from pytest_llmperf.strategies.assistance import LOOKUP
from pytest_llmperf.workloads import PromptSet, TaskAnswer, TaskSet, Workload, describe


class VllmModel:
    """See `engines.base.LoadedModel`."""

    def __init__(self, loaded: LoadedEngine) -> None:
        self._loaded = loaded
        share_cores = loaded.plan.tp > 1 and loaded.device.type == "cpu"
        peers = ranks_on_this_host() if share_cores else ()
        self._runtime = DeviceRuntime(loaded.device, peers, ranks=loaded.plan.ranks)
        self._requester = Requester(loaded)
        self._last: Stepped | None = None
        self._compute_dtype = self._requester.observed_dtype()
        self._effective = self._describe()
        _require_prefix_cache(loaded)

    def opened(self) -> ModelFacts:
        """Return what was loaded, and the device it is on."""
        loaded = self._loaded
        return ModelFacts(
            effective=self._effective,
            load_s=loaded.load_s,
            content_hash=loaded.source.content_hash,
            reference_key=reference_key(nn.Module(), loaded.source.tokenizer),
            vocab_size=loaded.vocab_size,
            versions=loaded.versions,
            device_name=self._runtime.name(),
            device_facts=dict(self._runtime.facts()),
            memory=self._memory(),
            special_ids=self._requester.vocabulary.special_below(loaded.vocab_size),
        )

    def describe(self) -> Description:
        """Return what is in effect, with what the last run used."""
        self._effective = self._describe()
        _require_prefix_cache(self._loaded)
        return Description(effective=self._effective, memory=self._memory())

    def run(self, workload: Workload, repetition: int) -> TimedRun:
        """Run the workload once, timed.

        The time is from before the first request is handed over to the step that gave the last
        token.
        """
        prompts, requests = self._requester.requests(workload, repetition)
        watch = self._runtime.watch()
        self._runtime.synchronise()
        watch.start()
        with out_of_memory_named(f"running {describe(workload)}"):
            stepped = self._requester.step(requests)
        telemetry = watch.finish()
        self._last = stepped
        return TimedRun(
            trace=self._trace(stepped, requests, repetition, telemetry),
            step=self._step_cost(len(requests)),
            telemetry=telemetry.gauges | _counts(stepped),
            prompts_hash=ids_hash(prompts),
            outputs_hash=ids_hash(matrix([answer.tokens for answer in stepped.answers])),
        )

    def read_memory(self, workload: Workload, repetition: int) -> MemoryGauges:
        """Run the workload once with the peak watched. The whole KV cache was allocated before."""
        _, requests = self._requester.requests(workload, repetition)
        with self._runtime.peak_memory() as region:
            self._requester.step(requests)
        weights = self._effective.weights_bytes
        return self._runtime.memory(weights, region, kv_cache=self._requester.cache.bytes)

    def read_energy(self, workload: Workload, repetition: int, seconds: float) -> EnergyReading:
        """Repeat until `seconds` have passed, and read the energy counter around the repetitions.

        They count from `repetition` on.
        """
        repetitions = iter(range(repetition, repetition + 10**9))

        def repeat() -> int:
            _, requests = self._requester.requests(workload, next(repetitions))
            return sum(len(answer.tokens) for answer in self._requester.step(requests).answers)

        return measure_energy(self._runtime, seconds, repeat)

    def ceilings(self, dtypes: tuple[str, ...]) -> Ceilings:
        """Measure the bandwidth and the matmul rates of this device."""
        return measure_ceilings(self._runtime, dtypes)

    def make_reference(
        self, prompts: PromptSet, new_tokens: int, batch: int, path: str
    ) -> tuple[int, int]:
        """See `outputs.reference.make_reference`."""
        return reference.make_reference(self._scorer(), prompts, new_tokens, batch, path)

    def compare_reference(self, path: str, batch: int) -> tuple[PromptComparison, ...]:
        """See `outputs.candidate.compare_reference`."""
        return candidate.compare_reference(self._scorer(), path, batch)

    def use_adapters(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """See `engines.base.SwitchesAdapters`.

        One name applies to all requests, several to those of each batch in turn.
        """
        adapters = self._requester.adapters
        if names and not adapters.names:
            raise UsageError(
                f"adapter {names[0]!r} was asked for, none is loaded. "
                "Add 'lora:PATH' to the strategy."
            )
        return adapters.use(names)

    def answer_tasks(self, tasks: TaskSet, batch: int) -> tuple[TaskAnswer, ...]:
        """See `outputs.answering.answer_tasks`."""
        return answer_tasks(self._scorer(), tasks, batch)

    def top_tokens(self, prompt: str | tuple[int, ...], k: int) -> TopTokens:
        """See `outputs.next_tokens.top_tokens`."""
        return top_tokens(self._scorer(), prompt, k)

    def close(self) -> None:
        """End the engine and give its memory back."""
        loaded: LoadedEngine | None = vars(self).get("_loaded")
        if loaded is not None:
            loaded.engine.engine_core.shutdown()
        del loaded
        vars(self).clear()
        cleanup_dist_env_and_memory()
        leave_shared_memory()
        gc.collect()

    def _step_cost(self, n_requests: int) -> StepCost:
        model, cache = self._requester.model, self._requester.cache
        return inspection.step_cost(
            model, self._loaded.text_config, cache, n_requests, self._compute_dtype
        )

    def _trace(
        self,
        stepped: Stepped,
        requests: Sequence[Ask],
        repetition: int,
        telemetry: Telemetry,
    ) -> Trace:
        traces = tuple(
            RequestTrace(
                n_prompt_tokens=len(request.ids),
                t_due_ns=stepped.start_ns,
                events=tuple(answer.events),
                n_cached_tokens=answer.cached,
            )
            for request, answer in zip(requests, stepped.answers, strict=True)
        )
        assisted = self._loaded.plan.assist is not None
        return Trace(
            repetition=repetition,
            requests=traces,
            marks=telemetry.marks,
            forwards=_mean_steps(stepped) if assisted else None,
            cpu_s=telemetry.cpu_s,
            no_cpu_s=telemetry.no_cpu_s,
        )

    def _describe(self) -> Effective:
        return structs.replace(self._describe_model(), **self._run_facts())

    def _describe_model(self) -> Effective:
        loaded, model = self._loaded, self._requester.model
        mode = inspection.compile_mode(loaded.config)
        return Effective(
            engine=loaded.plan.engine,
            model_class=type(model).__name__,
            tensors=inspection.tensors(model),
            linears=inspection.linear_groups(model),
            compute_dtype=self._compute_dtype,
            autocast_dtype=None,
            checkpoint_dtype=loaded.source.dtype,
            attention=inspection.attention_backends(loaded.config),
            cache="",
            compile_mode=mode,
            compiled_graphs=graphs_compiled() if mode is not None else 0,
            decode_loop="",
            adapters=self._requester.adapters.in_force,
            resident_adapters=self._requester.adapters.groups(),
            padding_side="left",  # nothing is padded
            device=str(loaded.device),
            ranks=loaded.plan.ranks,
            shards=shards(model, loaded.plan, loaded.device),
            tensor_parallel=carrier(),
            quantized=quantized_layers(model, loaded.plan, loaded.source.packed),
            notes=self._notes(),
        )

    def _run_facts(self) -> dict[str, str]:
        """Return what runs alone show; nothing before the first."""
        if self._last is None:
            return {}
        cache = self._requester.cache
        return {
            "cache": f"paged, blocks of {cache.block_tokens} positions of {cache.dtype}",
            "decode_loop": LOOP,
            "assistance": self._assistance(),
            "batching": "continuous",
        }

    def _notes(self) -> tuple[str, ...]:
        config = self._loaded.config
        prefix = "on" if config.cache_config.enable_prefix_caching else "off"
        limits = config.scheduler_config
        tokens = self._requester.cache.tokens
        n_requests, n_tokens = limits.max_num_seqs, limits.max_num_batched_tokens
        notes = [
            f"the KV cache holds {tokens} tokens and is allocated at once; prefix cache {prefix}",
            f"a step takes up to {n_requests} requests and {n_tokens} tokens",
        ]
        packed = self._packed_bytes()
        if packed:
            notes.append(
                f"{packed} B of the weights lie in a CPU library's own layout, "
                "counted by their shapes"
            )
        if self._loaded.source.dummy:
            notes.append("the weights are vLLM's own random ones")
        return tuple(notes)

    def _packed_bytes(self) -> int:
        groups = inspection.tensors(self._requester.model)
        return sum(group.bytes for group in groups if group.device == inspection.PACKED)

    def _assistance(self) -> str:
        config = self._loaded.config.speculative_config
        method = "" if config is None else str(getattr(config, "method", ""))
        return LOOKUP if method == "ngram" else method

    def _memory(self) -> MemoryGauges:
        weights = self._effective.weights_bytes
        return self._runtime.memory(weights, kv_cache=self._requester.cache.bytes)

    def _scorer(self) -> VllmScorer:
        loaded = self._loaded
        return VllmScorer(
            model=SimpleNamespace(config=loaded.config.model_config.hf_config),
            tokenizer=loaded.source.tokenizer,
            loop=self._requester,
            vocabulary=self._requester.vocabulary,
            device=torch.device("cpu"),
            autocast_dtype=None,
            requester=self._requester,
            writes=loaded.plan.ranks == 1,
        )


def _counts(stepped: Stepped) -> dict[str, float]:
    cached = sum(answer.cached for answer in stepped.answers)
    return {"steps": float(stepped.steps), "prefix_cached_tokens": float(cached)}


def _mean_steps(stepped: Stepped) -> int:
    """Return the steps that gave tokens, on average over the requests."""
    n_events = sum(len(answer.events) for answer in stepped.answers)
    return round(n_events / len(stepped.answers))


def _require_prefix_cache(loaded: LoadedEngine) -> None:
    """Raise NotInEffect unless vLLM keeps a prefix cache exactly where the plan asks for one."""
    expected = bool(loaded.plan.option("prefix_cache", default=False))
    enabled = bool(loaded.config.cache_config.enable_prefix_caching)
    if expected != enabled:
        words = {True: "on", False: "off"}
        raise NotInEffect(
            f"vLLM's prefix cache is {words[enabled]}, asked for {words[expected]}: "
            "prompts would be answered from it."
        )
