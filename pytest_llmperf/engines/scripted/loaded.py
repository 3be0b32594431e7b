"""An engine without a model: a script says its times, memory, agreement and faults.

A virtual clock passes, no time does.
"""

from __future__ import annotations

import hashlib
import math
import random
from typing import Any

import msgspec

from pytest_llmperf.core.agreement.comparison import PromptComparison
from pytest_llmperf.core.agreement.next_tokens import TopTokens
from pytest_llmperf.core.effective import AdapterGroup, Effective, LinearGroup, TensorGroup
from pytest_llmperf.core.loaded import Description, ModelFacts, ServingRun, TimedRun
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.trace import (
    Ceilings,
    EnergyReading,
    Mark,
    MemoryGauges,
    RequestTrace,
    StepCost,
    TokenEvent,
    Trace,
)
from pytest_llmperf.engines.refusals.parallel import rows_of_a_replica
from pytest_llmperf.engines.scripted import batches, pruning, ranks, reference, serving
from pytest_llmperf.engines.scripted.faults import Faults
from pytest_llmperf.engines.scripted.options import ScriptedOptions, parse
from pytest_llmperf.engines.scripted.virtual_clock import VirtualClock
from pytest_llmperf.errors import UsageError, WorkerError, did_you_mean
from pytest_llmperf.workloads import (
    Batch,
    Lockstep,
    PromptSet,
    Serve,
    TaskAnswer,
    TaskSet,
    Workload,
)

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
GAP_NS = 1_000_000
PROCESS_BYTES = 100_000_000
RESERVE_STEP_BYTES = 2 * 2**20
N_LINEARS = 7
_CACHES = {
    "static": "StaticCache",
    "dynamic": "DynamicCache",
    "int8": "Cache of int8",
    "fp8": "QuantizedCache of float8_e4m3fn",
}
_WARMUP_FACTOR = 2.0
_SLOW_FACTOR = 10.0


class ScriptedEngine:
    """Opens models of kind "scripted"; `location` is the script (see `scripted_options`)."""

    def __init__(self, clock: VirtualClock | None = None) -> None:
        self._clock = clock or VirtualClock()

    def open(self, plan: LoadPlan) -> ScriptedModel:
        """Read the script.

        Raises UsageError for one that does not parse, and what its faults at "open" say.
        """
        if plan.model.kind != "scripted":
            raise UsageError(
                f"engine 'scripted' runs models such as 'scripted:ttft=50ms', not {plan.model.name!r}."
            )
        options = parse(plan.model.location, plan.strategy)
        faults = Faults(options.faults)
        kinds = faults.at("open")
        self._clock.sleep(options.load_s)
        return ScriptedModel(
            plan,
            options,
            self._clock,
            faults,
            padding_side="right" if "right_padding" in kinds else "left",
        )


class ScriptedModel:
    """A script that is loaded.

    All times are the virtual clock's; all answers follow from script, plan and call count.
    """

    def __init__(
        self,
        plan: LoadPlan,
        options: ScriptedOptions,
        clock: VirtualClock,
        faults: Faults,
        *,
        padding_side: str,
    ) -> None:
        self._asked = plan
        self._options = options
        self._clock = clock
        self._faults = faults
        self._padding_side = padding_side
        self._closed = False
        self._ran = False
        lies = _lies(options)
        self._plan = msgspec.structs.replace(plan, **_only(lies, LoadPlan))
        self._using = self._plan.adapter_names[:1]
        self._said = _only(lies, Effective)
        self._dtype = "float32" if self._plan.weights_dtype == "auto" else self._plan.weights_dtype
        self._elements = options.weights_bytes // DTYPE_BYTES["float32"] // ranks.cut(plan)

    def opened(self) -> ModelFacts:
        """The load took the script's `load`, in virtual time."""
        self._require_open()
        content = f"{self._options.seed}|{self._options.weights_bytes}|{self._asked.seed}"
        return ModelFacts(
            effective=self._effective(),
            load_s=self._options.load_s,
            content_hash=hashlib.sha256(content.encode()).hexdigest()[:16],
            vocab_size=self._options.vocab,
            versions={"scripted": "1"},
            device_name="scripted device",
            device_facts={},
            memory=self._memory(0),
            special_ids=(0,),
        )

    def describe(self) -> Description:
        """What is in effect; the cache and the graphs are those of the last run."""
        self._require_open()
        self._faults.at("describe")
        return Description(effective=self._effective(), memory=self._memory(0))

    def run(self, workload: Workload, repetition: int) -> TimedRun:
        """One repetition in virtual time."""
        self._require_open()
        kinds = self._faults.at("run")
        self._ran = True
        if isinstance(workload, Batch):
            trace = self._batch_trace(workload, repetition, kinds)
        else:
            trace = self._trace(workload, repetition, kinds)
        prompts = _hash(
            workload.prompts.content_hash, repetition, workload.batch, workload.prompt_tokens
        )
        outputs = _hash(prompts, self._options.seed, workload.new_tokens)
        return TimedRun(trace=trace, step=self._step(), prompts_hash=prompts, outputs_hash=outputs)

    def serve(self, workload: Serve, repetition: int, program: str = "") -> ServingRun:  # noqa: ARG002
        """One run of a load in virtual time; see `scripted_serving`."""
        self._require_open()
        return serving.serve(
            self._options, workload, self._clock, self._factor(repetition, self._faults.at("run"))
        )

    # The protocol's.
    def read_memory(self, workload: Workload, repetition: int) -> MemoryGauges | None:  # noqa: ARG002
        """Weights of the dtype in effect, the KV cache of the workload, and the script's activations."""
        self._require_open()
        self._faults.at("memory")
        self._ran = True
        prompt_tokens = (
            max(batches.prompt_lengths(workload))
            if isinstance(workload, Batch)
            else workload.prompt_tokens
        )
        positions = workload.batch * ((prompt_tokens or 0) + workload.new_tokens)
        return self._memory(positions * self._options.kv_bytes_per_token)

    def read_energy(self, workload: Workload, repetition: int, seconds: float) -> EnergyReading:  # noqa: ARG002
        """The script's power over the repetitions that fill `seconds`."""
        self._require_open()
        self._faults.at("energy")
        once_s = self._options.ttft_s + (workload.new_tokens - 1) * self._options.tpot_s
        times = max(1, math.ceil(seconds / once_s)) if once_s > 0 else 1
        self._clock.sleep(times * once_s)
        tokens = times * workload.batch * workload.new_tokens
        if self._options.power_w is None:
            return EnergyReading(
                joules=None,
                seconds=times * once_s,
                n_output_tokens=tokens,
                reason="the script says power=none",
            )
        joules = self._options.power_w * times * once_s
        return EnergyReading(
            joules=joules, seconds=times * once_s, n_output_tokens=tokens, source="scripted"
        )

    def ceilings(self, dtypes: tuple[str, ...]) -> Ceilings:
        """The script's bandwidth and matmul rate."""
        self._require_open()
        self._faults.at("ceilings")
        rates = dict.fromkeys(dtypes, self._options.matmul_flop_per_s)
        return Ceilings(
            device="scripted device",
            copy_bytes_per_s=self._options.bandwidth_bytes_per_s,
            matmul_flop_per_s=rates,
        )

    def make_reference(
        self, prompts: PromptSet, new_tokens: int, batch: int, path: str
    ) -> tuple[int, int]:
        """Write a reference file; see `scripted_reference`."""
        self._require_open()
        self._faults.at("reference")
        return reference.write_reference(self._options, prompts, new_tokens, batch, path)

    def compare_reference(self, path: str, batch: int) -> tuple[PromptComparison, ...]:
        """Disagree with the reference as the script's `quality` and its companions say."""
        self._require_open()
        self._faults.at("compare")
        return reference.compare(self._options, reference.read_reference(path), batch)

    def use_adapters(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Those asked for, if the plan has them; none: the first."""
        self._require_open()
        known = (*self._plan.adapter_names, "base")
        for name in names:
            if name not in known:
                raise UsageError(
                    f"adapter {name!r} is not loaded.{did_you_mean(name, known)} There are: {', '.join(known)}."
                )
        self._using = tuple(dict.fromkeys(names)) or self._plan.adapter_names[:1]
        return self._using

    # The protocol's.
    def answer_tasks(self, tasks: TaskSet, batch: int) -> tuple[TaskAnswer, ...]:  # noqa: ARG002
        """The script's `quality` is the share of right answers, spread evenly.

        A wrong one is another choice, or empty.
        """
        self._require_open()
        self._faults.at("tasks")
        return reference.answers(self._options, tasks)

    def top_tokens(self, prompt: str | tuple[int, ...], k: int) -> TopTokens:
        """Follow from the seed and the ids; a text has one id a character.

        Others where the script says `astray`.
        """
        self._require_open()
        self._faults.at("tokens")
        return reference.top_tokens(self._options, prompt, k)

    def close(self) -> None:
        """Forget everything; every later call is an error."""
        self._faults.at("close")
        self._closed = True

    def _require_open(self) -> None:
        if self._closed:
            raise WorkerError("the scripted session is closed.")

    def _batch_trace(self, workload: Batch, repetition: int, kinds: set[str]) -> Trace:
        factor = self._factor(repetition, kinds)
        due_ns = self._clock.advance_ns(GAP_NS)
        continuous = self._plan.batching is not None
        done = batches.schedule(
            workload, self._options.ttft_s, self._options.tpot_s, continuous=continuous
        )
        times = [[due_ns + round(t_s * factor * 1e9) for t_s in each] for each in done.times_s]
        self._clock.advance_ns(max(each[-1] for each in times) - due_ns)
        requests = tuple(
            RequestTrace(n_prompt_tokens=n, t_due_ns=due_ns, events=tuple(map(TokenEvent, each)))
            for n, each in zip(batches.prompt_lengths(workload), times, strict=True)
        )
        marks = tuple(Mark(kind=kind, detail="the script says so") for kind in self._options.marks)
        return Trace(
            repetition=repetition,
            requests=requests,
            marks=marks,
            clock="virtual",
            computed=done.computed,
        )

    def _trace(self, workload: Lockstep, repetition: int, kinds: set[str]) -> Trace:
        rows = rows_of_a_replica(workload.batch, self._plan.dp)
        factor = self._factor(repetition, kinds)
        due_ns = self._clock.advance_ns(GAP_NS)
        n_tokens = workload.new_tokens - (1 if "short_output" in kinds else 0)
        times_ns = [
            round((self._options.ttft_s + i * self._options.tpot_s) * factor * 1e9)
            for i in range(n_tokens)
        ]
        events = tuple(TokenEvent(due_ns + t_ns) for t_ns in times_ns)
        self._clock.advance_ns(times_ns[-1] if times_ns else 0)
        request = RequestTrace(
            n_prompt_tokens=workload.prompt_tokens or 1, t_due_ns=due_ns, events=events
        )
        marks = tuple(Mark(kind=kind, detail="the script says so") for kind in self._options.marks)
        return Trace(
            repetition=repetition, requests=(request,) * rows, marks=marks, clock="virtual"
        )

    def _factor(self, repetition: int, kinds: set[str]) -> float:
        """How much slower than the script's times this run is: warm-up, faults, and log-normal noise of the given spread."""
        count = self._faults.calls["run"]
        factor = _WARMUP_FACTOR if count <= self._options.warmup else 1.0
        factor *= 1 + 0.1 * count if "unstable" in kinds else 1.0
        factor *= _SLOW_FACTOR if "slow" in kinds else 1.0
        # Noise, not secrets.
        draw = random.Random(f"{self._options.seed}|{self._asked.strategy}|{repetition}|{count}")  # noqa: S311
        return (
            factor * math.exp(draw.gauss(0, self._options.noise)) if self._options.noise else factor
        )

    def _effective(self) -> Effective:
        plan, device = self._plan, self._plan.device
        weights: dict[str, Any] = {
            "dtype": self._dtype,
            "elements": self._elements,
            "bytes": self._weights_bytes(),
        }
        cache = _CACHES[plan.cache] if self._ran else ""
        found = Effective(
            engine="scripted",
            model_class="ScriptedModel",
            tensors=(TensorGroup(kind="parameter", device=device, tensors=N_LINEARS, **weights),),
            linears=(LinearGroup(cls="Linear", layers=N_LINEARS, **weights),),
            compute_dtype=plan.autocast_dtype or self._dtype,
            autocast_dtype=plan.autocast_dtype,
            checkpoint_dtype="float32",
            attention=plan.attention or "sdpa",
            cache=cache,
            compile_mode=plan.compile if self._ran else None,
            compiled_graphs=int(self._ran and plan.compile is not None),
            decode_loop="scripted",
            padding_side=self._padding_side,
            device=device,
            ranks=plan.ranks,
            shards=ranks.shards(plan, self._weights_bytes()),
            offloaded_bytes={} if plan.offload is None else {plan.offload: self._weights_bytes()},
            adapters=tuple(name for name in self._using if name != "base"),
            resident_adapters=_adapters(plan),
            assistance=plan.assist or "" if self._ran else "",
            batching=(plan.batching or "static") if self._ran else "",
            **pruning.fields(plan, self._elements, N_LINEARS),
        )
        return msgspec.structs.replace(found, **self._said)

    def _weights_bytes(self) -> int:
        return self._elements * DTYPE_BYTES[self._dtype]

    def _memory(self, kv_bytes: int) -> MemoryGauges:
        weights = self._weights_bytes()
        peak = weights + kv_bytes + (self._options.activations_bytes if kv_bytes else 0)
        return MemoryGauges(
            weights=weights,
            peak=peak,
            reserved=math.ceil(peak / RESERVE_STEP_BYTES) * RESERVE_STEP_BYTES,
            process=peak + PROCESS_BYTES,
            device=None,
            kv_cache=kv_bytes or None,
            reasons={
                "device": "a scripted device has no driver",
                **({} if kv_bytes else {"kv_cache": "read outside a run"}),
            },
        )

    def _step(self) -> StepCost:
        return StepCost(
            weight_bytes_read=self._weights_bytes(),
            kv_bytes_per_token=self._options.kv_bytes_per_token,
            flops_per_token=2.0 * self._elements,
            attention_flops_per_token_per_position=0.0,
            compute_dtype=self._plan.autocast_dtype or self._dtype,
        )


def _adapters(plan: LoadPlan) -> tuple[AdapterGroup, ...]:
    """Adapters of rank 8 in every layer, as their files hold them."""
    facts: dict[str, Any] = {
        "rank": 8,
        "layers": N_LINEARS,
        "elements": 0,
        "tensors": 2 * N_LINEARS,
    }
    return tuple(
        AdapterGroup(
            name=name,
            tensors_equal=2 * N_LINEARS,
            content_hash=_hash(name),
            active=i == 0,
            merged=bool(plan.merge_adapters),
            **facts,
        )
        for i, name in enumerate(plan.adapter_names)
    )


def _hash(*parts: object) -> str:
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:16]


def _value(text: str) -> Any:
    if text == "none":
        return None
    return int(text) if text.isdecimal() else text


def _only(fields: dict[str, Any], struct: type[msgspec.Struct]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name in struct.__struct_fields__}


def _lies(options: ScriptedOptions) -> dict[str, Any]:
    fields = {name: _value(text) for name, text in options.lies}
    known = {*LoadPlan.__struct_fields__, *Effective.__struct_fields__}
    for name in fields:
        if name not in known:
            raise UsageError(
                f"scripted model option lie={name!r}: not in LoadPlan or Effective.{did_you_mean(name, known)}"
            )
    if fields.get("weights_dtype", "float32") not in DTYPE_BYTES:
        raise UsageError(
            f"scripted model option lie=weights_dtype:{fields['weights_dtype']}: known are {', '.join(DTYPE_BYTES)}.",
        )
    return fields
