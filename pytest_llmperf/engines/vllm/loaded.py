"""A loaded vLLM engine that runs workloads, describes itself and compares itself with a reference."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from vllm import LLMEngine, SamplingParams, TokensPrompt
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
from vllm.sampling_params import RequestOutputKind

from pytest_llmperf.core.agreement.comparison import PromptComparison
from pytest_llmperf.core.agreement.next_tokens import TopTokens
from pytest_llmperf.core.effective import Effective
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.trace import Ceilings, EnergyReading, MemoryGauges, RequestTrace, Trace
from pytest_llmperf.engines.loading.folder import ModelFolder
from pytest_llmperf.engines.outputs import reference
from pytest_llmperf.engines.outputs.answering import answer_tasks
from pytest_llmperf.engines.outputs.decoding import CacheSeen, Decoded
from pytest_llmperf.engines.outputs.inputs import TokenBatch, Vocabulary, ids_hash, token_batch
from pytest_llmperf.engines.outputs.next_tokens import top_tokens
from pytest_llmperf.engines.outputs.requests import batch_requests, matrix
from pytest_llmperf.engines.vllm import inspection
from pytest_llmperf.engines.vllm.adapters import Adapters
from pytest_llmperf.engines.vllm.logits import capture
from pytest_llmperf.engines.vllm.quantized import quantized_layers
from pytest_llmperf.engines.vllm.shards import leave_shared_memory, shards
from pytest_llmperf.engines.vllm.stepping import Ask, Stepped, require_no_cached, run
from pytest_llmperf.errors import NotInEffect, UsageError
from pytest_llmperf.instruments.compiled import graphs_compiled
from pytest_llmperf.instruments.ranks import ranks_on_this_host
from pytest_llmperf.instruments.torch_runtime import (
    DeviceRuntime,
    measure_ceilings,
    measure_energy,
    out_of_memory_named,
)
from pytest_llmperf.strategies.assistance import LOOKUP
from pytest_llmperf.wire.messages import Described, MemoryRead, Opened, Ran
from pytest_llmperf.workloads import Batch, PromptSet, TaskAnswer, TaskSet, Workload, describe

LOOP = "LLMEngine.step"


@dataclass(frozen=True, kw_only=True)
class LoadedEngine:
    """An engine that is ready, what it was made from, and how long that took."""

    engine: LLMEngine
    plan: LoadPlan
    source: ModelFolder
    device: torch.device
    load_s: float
    versions: dict[str, str]

    @property
    def config(self) -> Any:
        """The configuration of vLLM, as it ended up."""
        return self.engine.vllm_config

    def runner(self) -> Any:
        """The model runner of this rank's worker."""
        return self.engine.collective_rpc(lambda worker: worker)[0].model_runner


class VllmModel:
    """See engines.base.Session.

    All requests of a workload are handed over at once; vLLM batches them continuously.
    """

    def __init__(self, loaded: LoadedEngine) -> None:
        self._loaded = loaded
        self._runner = loaded.runner()
        self._model = self._runner.get_model()
        share_cores = loaded.plan.tp > 1 and loaded.device.type == "cpu"
        self._runtime = DeviceRuntime(loaded.device, ranks_on_this_host() if share_cores else ())
        self._text_config = loaded.config.model_config.hf_config.get_text_config()
        self._vocabulary = Vocabulary.of(
            SimpleNamespace(config=loaded.config.model_config.hf_config), loaded.source.tokenizer
        )
        self._cache = inspection.kv_cache(self._runner, loaded.config)
        self._adapters = Adapters.load(loaded.engine, self._runner, loaded.plan)
        self._graphs_before = 0
        self._last: Stepped | None = None
        self._compute_dtype = self._observed_dtype()
        self._effective = self._describe()
        require_prefix_cache_as_asked(loaded)

    def opened(self) -> Opened:
        """What was loaded, and the device it is on."""
        loaded = self._loaded
        size = int(self._text_config.vocab_size)
        return Opened(
            effective=self._effective,
            load_s=loaded.load_s,
            content_hash=loaded.source.content_hash,
            vocab_size=size,
            versions=loaded.versions,
            device_name=self._runtime.name(),
            device_facts=dict(self._runtime.facts()),
            memory=self._memory(),
            special_ids=self._vocabulary.special_below(size),
        )

    def describe(self) -> Described:
        """What is in effect, with what the last run used."""
        self._effective = self._describe()
        require_prefix_cache_as_asked(self._loaded)
        return Described(effective=self._effective, memory=self._memory())

    def run(self, workload: Workload, repetition: int) -> Ran:
        """One timed repetition: from before the first request is handed over to the step that gave the last token."""
        batch, asks = self._asks(workload, repetition)
        watch = self._runtime.watch()
        self._runtime.synchronise()
        watch.start()
        with out_of_memory_named(f"running {describe(workload)}"):
            stepped = self._step(asks)
        seen = watch.finish()
        self._last = stepped
        cached = sum(answer.cached for answer in stepped.answers)
        return Ran(
            trace=self._trace(stepped, asks, repetition, seen.marks),
            step=inspection.step_cost(
                self._model, self._text_config, self._cache, len(asks), self._compute_dtype
            ),
            telemetry=seen.gauges
            | {"steps": float(stepped.steps), "prefix_cached_tokens": float(cached)},
            prompts_hash=ids_hash(batch),
            outputs_hash=ids_hash(matrix([answer.tokens for answer in stepped.answers])),
        )

    def read_memory(self, workload: Workload, repetition: int) -> MemoryRead:
        """One repetition with the peak watched. The KV cache was allocated before, whole."""
        _, asks = self._asks(workload, repetition)
        with self._runtime.peak_memory() as region:
            self._step(asks)
        weights = self._effective.weights_bytes
        return MemoryRead(memory=self._runtime.memory(weights, region, kv_cache=self._cache.bytes))

    def read_energy(self, workload: Workload, repetition: int, seconds: float) -> EnergyReading:
        """Repetitions from `repetition` on until `seconds` have passed, the energy counter read around them."""
        repetitions = iter(range(repetition, repetition + 10**9))

        def repeat() -> int:
            _, asks = self._asks(workload, next(repetitions))
            return sum(len(answer.tokens) for answer in self._step(asks).answers)

        return measure_energy(self._runtime, seconds, repeat)

    def ceilings(self, dtypes: tuple[str, ...]) -> Ceilings:
        """Copy bandwidth and matmul rates of this device."""
        return measure_ceilings(self._runtime, dtypes)

    def make_reference(
        self, prompts: PromptSet, new_tokens: int, batch: int, path: str
    ) -> tuple[int, int]:
        """See transformers.reference.make_reference."""
        return reference.make_reference(self._scorer(), prompts, new_tokens, batch, path)

    def compare_reference(self, path: str, batch: int) -> tuple[PromptComparison, ...]:
        """See transformers.reference.compare_reference."""
        return reference.compare_reference(self._scorer(), path, batch)

    def use_adapters(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """See engines.base.Session: one name holds for all requests, several for those of each batch in turn."""
        if names and not self._adapters.names:
            raise UsageError(
                f"adapter {names[0]!r} was asked for, none is loaded. Add 'lora:PATH' to the strategy."
            )
        return self._adapters.use(names)

    def answer_tasks(self, tasks: TaskSet, batch: int) -> tuple[TaskAnswer, ...]:
        """See transformers.answering.answer_tasks."""
        return answer_tasks(self._scorer(), tasks, batch)

    def top_tokens(self, prompt: str | tuple[int, ...], k: int) -> TopTokens:
        """See transformers.next_tokens.top_tokens."""
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

    # Running

    def _asks(self, workload: Workload, repetition: int) -> tuple[Tensor, list[Ask]]:
        """The prompts of a repetition, those of the other engines: as a padded matrix, and as requests."""
        tokenizer = self._loaded.source.tokenizer
        if isinstance(workload, Batch):
            if len(self._adapters.used) > 1:
                raise UsageError(
                    "a Batch is not divided among adapters. Take Decode, or one of them."
                )
            requests = batch_requests(workload, repetition, self._vocabulary, tokenizer)
            lengths = zip(requests.rows, requests.new_tokens, strict=True)
            return matrix(requests.rows), [
                self._ask(i, row, n) for i, (row, n) in enumerate(lengths)
            ]
        made = token_batch(workload, repetition, self._vocabulary, tokenizer, torch.device("cpu"))
        return made.ids, [
            self._ask(i, row, workload.new_tokens) for i, row in enumerate(unpadded(made))
        ]

    def _ask(self, row: int, ids: Sequence[int], new_tokens: int) -> Ask:
        return Ask(ids, new_tokens, self._adapters.of_row(row))

    def _step(self, asks: Sequence[Ask]) -> Stepped:
        stepped = run(self._loaded.engine, self._submit, asks)
        if not self._loaded.plan.option("prefix_cache", default=False):
            require_no_cached(stepped, sum(len(ask.ids) for ask in asks))
        return stepped

    def _submit(self, name: str, ask: Ask, **more: Any) -> None:
        params = SamplingParams(
            temperature=0.0,
            max_tokens=ask.new_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            **more,
        )
        prompt = TokensPrompt(prompt_token_ids=list(ask.ids))
        self._loaded.engine.add_request(name, prompt, params, lora_request=ask.adapter)

    def _trace(self, stepped: Stepped, asks: Sequence[Ask], repetition: int, marks: Any) -> Trace:
        requests = tuple(
            RequestTrace(
                n_prompt_tokens=len(ask.ids),
                t_due_ns=stepped.start_ns,
                events=tuple(answer.events),
                n_cached_tokens=answer.cached,
            )
            for ask, answer in zip(asks, stepped.answers, strict=True)
        )
        forwards = None
        if self._loaded.plan.assist is not None:
            forwards = round(
                sum(len(answer.events) for answer in stepped.answers) / len(stepped.answers)
            )
        return Trace(repetition=repetition, requests=requests, marks=marks, forwards=forwards)

    # Looking

    def _describe(self) -> Effective:
        loaded, config = self._loaded, self._loaded.config
        ran = self._last is not None
        mode = inspection.compile_mode(config)
        return Effective(
            engine=loaded.plan.engine,
            model_class=type(self._model).__name__,
            tensors=inspection.tensors(self._model),
            linears=inspection.linear_groups(self._model),
            compute_dtype=self._compute_dtype,
            autocast_dtype=None,
            checkpoint_dtype=loaded.source.dtype,
            attention=inspection.attention_backends(config),
            cache=f"paged, blocks of {self._cache.block_tokens} positions of {self._cache.dtype}"
            if ran
            else "",
            compile_mode=mode,
            compiled_graphs=graphs_compiled() if mode is not None else 0,
            decode_loop=LOOP if ran else "",
            assistance=self._assistance() if ran else "",
            batching="continuous" if ran else "",
            adapters=self._adapters.in_force,
            resident_adapters=self._adapters.groups(),
            padding_side="left",  # nothing is padded
            device=str(loaded.device),
            ranks=loaded.plan.ranks,
            shards=shards(self._model, loaded.plan, loaded.device),
            quantized=quantized_layers(self._model, loaded.plan, loaded.source.packed),
            notes=self._notes(),
        )

    def _notes(self) -> tuple[str, ...]:
        packed = sum(
            group.bytes
            for group in inspection.tensors(self._model)
            if group.device == inspection.PACKED
        )
        prefix = "on" if self._loaded.config.cache_config.enable_prefix_caching else "off"
        limits = self._loaded.config.scheduler_config
        notes = [
            f"the KV cache holds {self._cache.tokens} tokens and is allocated at once; prefix cache {prefix}",
            f"a step takes up to {limits.max_num_seqs} requests and {limits.max_num_batched_tokens} tokens",
        ]
        if packed:
            notes.append(
                f"{packed} B of the weights lie in a CPU library's own layout, counted by their shapes"
            )
        if self._loaded.source.dummy:
            notes.append("the weights are vLLM's own random ones")
        return tuple(notes)

    def _assistance(self) -> str:
        config = self._loaded.config.speculative_config
        found = getattr(config, "method", "") if config is not None else ""
        return LOOKUP if found == "ngram" else str(found)

    def _memory(self) -> MemoryGauges:
        return self._runtime.memory(self._effective.weights_bytes, kv_cache=self._cache.bytes)

    # Outputs

    def _observed_dtype(self) -> str:
        """Dtype of the output head's product over one token.

        Of a stage without a head, that of vLLM's configuration.
        """
        some = int(self._vocabulary.plain_ids()[0])
        with capture(self._model) as captured:
            run(self._loaded.engine, self._submit, [Ask([some], 1)])
        found = (
            self._loaded.config.model_config.dtype if captured.sampled is None else captured.dtype
        )
        return str(found).removeprefix("torch.")

    def logits(self, ids: Sequence[int]) -> tuple[Tensor, torch.dtype]:
        """[positions, vocab] float32 logits after each token of a prompt, and the dtype they had."""
        size = int(self._text_config.vocab_size)
        with capture(self._model) as captured:
            run(
                self._loaded.engine,
                lambda name, ask: self._submit(name, ask, prompt_logprobs=1),
                [self._ask(0, ids, 1)],
                after_step=captured.end_of_step,
            )
        return captured.rows(len(ids), size), captured.dtype

    def decode(self, batch: TokenBatch, new_tokens: int) -> Decoded:
        """Free-running greedy tokens of a padded batch, which goes in without its padding."""
        stepped = self._step(
            [self._ask(i, row, new_tokens) for i, row in enumerate(unpadded(batch))]
        )
        seen = CacheSeen(
            self._cache.dtype, self._cache.bytes, self._cache.bytes_per_token, self._cache.layers
        )
        return Decoded(
            matrix([answer.tokens for answer in stepped.answers]), stepped.start_ns, (), seen
        )

    def _scorer(self) -> VllmScorer:
        return VllmScorer(
            model=SimpleNamespace(config=self._loaded.config.model_config.hf_config),
            tokenizer=self._loaded.source.tokenizer,
            loop=_Loop(self),
            vocabulary=self._vocabulary,
            device=torch.device("cpu"),
            autocast_dtype=None,
            session=self,
            writes=self._loaded.plan.ranks == 1,
        )


class _Loop:
    """See transformers.generate.DecodeLoop."""

    name = LOOP

    def __init__(self, session: VllmModel) -> None:
        self._session = session

    def decode(self, batch: TokenBatch, new_tokens: int) -> Decoded:
        """See VllmModel.decode."""
        return self._session.decode(batch, new_tokens)


@dataclass(frozen=True)
class VllmScorer(reference.Scorer):
    """Teacher-forced logits of vLLM: each row is a prompt of its own, without padding."""

    session: VllmModel | None = None

    def forced_logits(self, batch: TokenBatch, continuation: Tensor) -> tuple[Tensor, torch.dtype]:
        """See Scorer.forced_logits."""
        assert self.session is not None  # noqa: S101 - given by the one caller
        n, found, dtype = continuation.shape[1], [], torch.float32
        for row, forced in zip(unpadded(batch), continuation.tolist(), strict=True):
            logits, dtype = self.session.logits([*row, *forced[:-1]])
            found.append(logits[-n:])
        return torch.stack(found), dtype


def require_prefix_cache_as_asked(loaded: LoadedEngine) -> None:
    """Raise NotInEffect where vLLM keeps a prefix cache that nobody asked for, or the other way round."""
    asked = bool(loaded.plan.option("prefix_cache", default=False))
    found = bool(loaded.config.cache_config.enable_prefix_caching)
    if asked != found:
        words = {True: "on", False: "off"}
        raise NotInEffect(
            f"vLLM's prefix cache is {words[found]}, asked for {words[asked]}: prompts would be answered from it."
        )


def unpadded(batch: TokenBatch) -> list[list[int]]:
    """The rows of a left-padded batch as they are without padding."""
    return [
        row[len(row) - length :]
        for row, length in zip(batch.ids.tolist(), batch.lengths, strict=True)
    ]
