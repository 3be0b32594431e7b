"""An engine without a model: a script says its times, memory, agreement and faults.

A virtual clock passes, no time does.
"""

from __future__ import annotations

import hashlib
import math

from msgspec import structs

from pytest_llmperf.core.agreement.comparison import PromptComparison
from pytest_llmperf.core.agreement.next_tokens import TopTokens
from pytest_llmperf.core.foreign_load import CPU_SHARE
from pytest_llmperf.core.loaded import Description, ModelFacts, ServingRun, TimedRun
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.trace import Ceilings, EnergyReading, MemoryGauges, Trace
from pytest_llmperf.engines.scripted import batches, reference, serving
from pytest_llmperf.engines.scripted.claims import Claims, hash_of
from pytest_llmperf.engines.scripted.faults import Faults
from pytest_llmperf.engines.scripted.options import ScriptedOptions, parse
from pytest_llmperf.engines.scripted.timing import Timing
from pytest_llmperf.engines.scripted.virtual_clock import VirtualClock
from pytest_llmperf.errors import UsageError, WorkerError, did_you_mean
from pytest_llmperf.workloads import Batch, PromptSet, Serve, TaskAnswer, TaskSet, Workload


class ScriptedEngine:
    """Opens models of kind "scripted"; `location` is the script (see `scripted.options`)."""

    def __init__(self, clock: VirtualClock | None = None) -> None:
        self._clock = clock or VirtualClock()

    def open(self, plan: LoadPlan) -> ScriptedModel:
        """Read the script.

        Raises UsageError for one that does not parse, and what its faults at "open" say.
        """
        if plan.model.kind != "scripted":
            raise UsageError(
                "engine 'scripted' runs models such as 'scripted:ttft=50ms', "
                f"not {plan.model.name!r}."
            )
        options = parse(plan.model.location, plan.strategy)
        faults = Faults(options.faults)
        padding_side = "right" if "right_padding" in faults.at("open") else "left"
        self._clock.sleep(options.load_s)
        return ScriptedModel(plan, options, self._clock, faults, padding_side=padding_side)


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
        self._seed = plan.seed
        self._options = options
        self._clock = clock
        self._faults = faults
        self._claims = Claims(plan, options, padding_side=padding_side)
        self._timing = Timing(options, plan.strategy, clock)
        self._closed = False
        self._ran = False

    def opened(self) -> ModelFacts:
        """Return what was loaded; it took the script's `load`, in virtual time."""
        self._require_open()
        content = f"{self._options.seed}|{self._options.weights_bytes}|{self._seed}"
        return ModelFacts(
            effective=self._claims.effective(ran=self._ran),
            load_s=self._options.load_s,
            content_hash=hashlib.sha256(content.encode()).hexdigest()[:16],
            vocab_size=self._options.vocab,
            versions={"scripted": "1"},
            device_name="scripted device",
            device_facts={},
            memory=self._claims.memory(0),
            special_ids=(0,),
        )

    def describe(self) -> Description:
        """Return what is in effect; the cache and the graphs are those of the last run."""
        self._begin("describe")
        effective = self._claims.effective(ran=self._ran)
        return Description(effective=effective, memory=self._claims.memory(0))

    def run(self, workload: Workload, repetition: int) -> TimedRun:
        """Run the workload once, in virtual time."""
        faults = self._begin("run")
        self._ran = True
        prompts = hash_of(
            workload.prompts.content_hash, repetition, workload.batch, workload.prompt_tokens
        )
        return TimedRun(
            trace=self._trace(workload, repetition, faults),
            step=self._claims.step(),
            telemetry={} if self._options.others is None else {CPU_SHARE: self._options.others},
            prompts_hash=prompts,
            outputs_hash=hash_of(prompts, self._options.seed, workload.new_tokens),
        )

    def serve(self, workload: Serve, repetition: int, _program: str = "") -> ServingRun:
        """Serve the traffic once, in virtual time; see `scripted.serving`."""
        factor = self._factor(repetition, self._begin("run"))
        return serving.serve(self._options, workload, self._clock, factor)

    def read_memory(self, workload: Workload, _repetition: int) -> MemoryGauges:
        """Return the weights in the dtype in effect, the KV cache, and the script's activations."""
        self._begin("memory")
        self._ran = True
        positions = workload.batch * (_longest_prompt(workload) + workload.new_tokens)
        return self._claims.memory(positions * self._options.kv_bytes_per_token)

    def read_energy(self, workload: Workload, _repetition: int, seconds: float) -> EnergyReading:
        """Return the energy of the script's power over the repetitions that fill `seconds`."""
        self._begin("energy")
        once_s = self._options.ttft_s + (workload.new_tokens - 1) * self._options.tpot_s
        times = max(1, math.ceil(seconds / once_s)) if once_s > 0 else 1
        self._clock.sleep(times * once_s)
        reading = EnergyReading(
            joules=None,
            seconds=times * once_s,
            n_output_tokens=times * workload.batch * workload.new_tokens,
            reason="the script says power=none",
        )
        power_w = self._options.power_w
        if power_w is None:
            return reading
        joules = power_w * times * once_s
        return structs.replace(reading, joules=joules, source="scripted", reason="")

    def ceilings(self, dtypes: tuple[str, ...]) -> Ceilings:
        """Return the script's bandwidth and matmul rate."""
        self._begin("ceilings")
        return Ceilings(
            device="scripted device",
            copy_bytes_per_s=self._options.bandwidth_bytes_per_s,
            matmul_flop_per_s=dict.fromkeys(dtypes, self._options.matmul_flop_per_s),
        )

    def make_reference(
        self, prompts: PromptSet, new_tokens: int, batch: int, path: str
    ) -> tuple[int, int]:
        """Write a reference file; see `scripted.reference`."""
        self._begin("reference")
        return reference.write_reference(self._options, prompts, new_tokens, batch, path)

    def compare_reference(self, path: str, batch: int) -> tuple[PromptComparison, ...]:
        """Disagree with the reference as the script's `quality` and its companions say."""
        self._begin("compare")
        return reference.compare(self._options, reference.read_reference(path), batch)

    def use_adapters(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Use these adapters, if the plan has them; without names, the first."""
        self._require_open()
        loaded = self._claims.plan.adapter_names
        known = (*loaded, "base")
        for name in names:
            if name not in known:
                near = did_you_mean(name, known, otherwise=f"There are: {', '.join(known)}.")
                raise UsageError(f"adapter {name!r} is not loaded.{near}")
        self._claims.using = tuple(dict.fromkeys(names)) or loaded[:1]
        return self._claims.using

    def answer_tasks(self, tasks: TaskSet, _batch: int) -> tuple[TaskAnswer, ...]:
        """Answer the script's `quality` as the share of right answers, spread evenly.

        A wrong answer is another choice, or empty.
        """
        self._begin("tasks")
        return reference.answers(self._options, tasks)

    def top_tokens(self, prompt: str | tuple[int, ...], k: int) -> TopTokens:
        """Return tokens that follow from the seed and the ids; a text has one id a character.

        They are others where the script says `astray`.
        """
        self._begin("tokens")
        return reference.top_tokens(self._options, prompt, k)

    def close(self) -> None:
        """Forget everything; every later call is an error."""
        self._faults.at("close")
        self._closed = True

    def _begin(self, place: str) -> set[str]:
        """Act on the faults of a call, and return the kinds that change what it answers."""
        self._require_open()
        return self._faults.at(place)

    def _require_open(self) -> None:
        if self._closed:
            raise WorkerError("the scripted session is closed.")

    def _factor(self, repetition: int, faults: set[str]) -> float:
        return self._timing.factor(repetition, self._faults.calls["run"], faults)

    def _trace(self, workload: Workload, repetition: int, faults: set[str]) -> Trace:
        factor, plan = self._factor(repetition, faults), self._claims.plan
        if isinstance(workload, Batch):
            continuous = plan.batching is not None
            return self._timing.of_batch(workload, repetition, factor, continuous=continuous)
        short = "short_output" in faults
        return self._timing.of_lockstep(workload, plan, repetition, factor, short=short)


def _longest_prompt(workload: Workload) -> int:
    if isinstance(workload, Batch):
        return max(batches.prompt_lengths(workload))
    return workload.prompt_tokens or 0
