"""What an engine is: it opens a load plan as a model that runs workloads and describes itself.

An engine runs inside a worker. It may import heavy packages at the top of its own file; nothing
imports that file but through the table in `pytest_llmperf.engines`. It returns values; the worker
alone makes messages of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

from pytest_llmperf.core.agreement.comparison import PromptComparison
from pytest_llmperf.core.agreement.layers import ModuleError
from pytest_llmperf.core.agreement.next_tokens import TopTokens
from pytest_llmperf.core.loaded import Description, ModelFacts, ServingRun, TimedRun
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.trace import Ceilings, EnergyReading, MemoryGauges
from pytest_llmperf.workloads import PromptSet, Serve, TaskAnswer, TaskSet, Workload


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What an engine can do; callers ask this, never the engine's name.

    Attributes:
        plan_fields: the values of a LoadPlan field that the engine honours (`core.plan.ANY`: every
            value); a field that is missing takes its default only.
        refusal: gives the reason why a plan cannot be loaded although each of its fields is
            honoured by itself (a device that a library lacks, parts that exclude each other), or
            None.
        missing_library: gives the library that a plan needs and that this interpreter has not
            installed. It is not asked where the engine runs with an interpreter of its own.
        devices: kinds of devices that the engine runs on.
        logits: the engine shows logits, so that it can be the reference of an agreement.
        max_ranks: most ranks of one model; None sets no limit.
        occupies_device: False for an engine whose time is virtual: on a CPU nobody waits for it,
            and it waits for nobody.
        processes_differ: whether processes that hold the same plan may differ in their times.
        serves: the engine takes traffic: its loaded models are `Serves`.
        has_address: another program can send its own requests to the engine.
        starts_afresh: gives the reason why a plan's workers cannot be forks of a process that has
            imported the engine, or None. What can be seen in that process (threads, open devices)
            need not be named: it is looked at before each fork.
        fits_in_process: whether a plan can be loaded inside of pytest's own process: nothing heavy
            is imported for it, no real time passes, and nothing of it can end the process.
    """

    plan_fields: dict[str, frozenset[object]] = field(default_factory=dict)
    refusal: Callable[[LoadPlan], str | None] = lambda _plan: None
    missing_library: Callable[[LoadPlan], str | None] = lambda _plan: None
    devices: frozenset[str] = frozenset({"cpu", "cuda"})
    logits: bool = True
    max_ranks: int | None = 1
    occupies_device: bool = True
    processes_differ: Callable[[LoadPlan], bool] = lambda _plan: True
    serves: bool = False
    has_address: bool = False
    starts_afresh: Callable[[LoadPlan], str | None] = lambda _plan: None
    fits_in_process: Callable[[LoadPlan], bool] = lambda _plan: False


class LoadedModel(Protocol):
    """What every loaded model does. One call at a time; each blocks until the device is idle."""

    def opened(self) -> ModelFacts:
        """Return what was loaded and how long it took."""

    def describe(self) -> Description:
        """Return what is in effect: after loading, and again after warm-up."""

    def run(self, workload: Workload, repetition: int, /) -> TimedRun:
        """Run the workload once, timed. Prompts are fresh for each repetition.

        Exactly `new_tokens` tokens a sequence, or InvalidRun.
        """

    def read_memory(self, workload: Workload, repetition: int, /) -> MemoryGauges | None:
        """Run the workload once with memory watched; its times are discarded."""

    def read_energy(self, workload: Workload, repetition: int, seconds: float, /) -> EnergyReading:
        """Read the energy over repetitions that last at least `seconds`."""

    def ceilings(self, dtypes: tuple[str, ...], /) -> Ceilings | None:
        """Measure the bandwidths (bytes a second, of a copy and of a read) and the matmul rates."""

    def close(self) -> None:
        """Free everything. The worker exits afterwards."""


# What only some loaded models do: a worker asks for the protocol, and refuses the command without.


@runtime_checkable
class Serves(Protocol):
    """A loaded model that takes traffic."""

    def serve(self, workload: Serve, repetition: int, program: str = "", /) -> ServingRun:
        """Send the traffic once; `program` is the command of the workload's generator, if any."""


@runtime_checkable
class ReadsCollectives(Protocol):
    """A loaded model that knows what its ranks spend on communication."""

    def read_collectives(self, workload: Workload, repetition: int, /) -> float | str:
        """Return the share of wall time (0 to 1) in collectives, or why it is not known."""


@runtime_checkable
class MakesReferences(Protocol):
    """A loaded model that others can be compared with."""

    def make_reference(
        self, prompts: PromptSet, new_tokens: int, batch: int, path: str, /
    ) -> tuple[int, int]:
        """Write greedy continuations and teacher-forced logits to `path`.

        Returns the numbers of prompts and of positions.
        """


@runtime_checkable
class ComparesReferences(Protocol):
    """A loaded model that can be compared with a reference."""

    def compare_reference(self, path: str, batch: int, /) -> tuple[PromptComparison, ...]:
        """Compare with the reference at `path`, teacher-forced and free-running."""


@runtime_checkable
class ShowsLayers(Protocol):
    """A loaded model whose layers can be looked at. See `outputs.layers`.

    `path` is that of a reference, `prompts` the places of some of its prompts, and `inside` the
    path of a layer, or empty for all layers.
    """

    def write_layers(
        self, path: str, prompts: tuple[int, ...], inside: str, dtype: str, file: str, /
    ) -> tuple[ModuleError, ...]:
        """Write the outputs to `file`, and return how far `dtype`'s rounding moves them."""

    def compare_layers(
        self, path: str, prompts: tuple[int, ...], inside: str, file: str, /
    ) -> tuple[ModuleError, ...]:
        """Return how far the outputs are from those in `file`. Raises UsageError."""


@runtime_checkable
class SwitchesAdapters(Protocol):
    """A loaded model that can hold several adapters."""

    def use_adapters(self, names: tuple[str, ...], /) -> tuple[str, ...]:
        """Go through these adapters from now on (see `UseAdapters`); returns those in force.

        Raises UsageError, NotInEffect.
        """


@runtime_checkable
class AnswersTasks(Protocol):
    """A loaded model that answers the items of a task set."""

    def answer_tasks(self, tasks: TaskSet, batch: int, /) -> tuple[TaskAnswer, ...]:
        """Answer each item, in order: the likeliest of its choices, or its greedy text.

        Raises UsageError if it cannot.
        """


@runtime_checkable
class PredictsTokens(Protocol):
    """A loaded model that shows its next tokens."""

    def top_tokens(self, prompt: str | tuple[int, ...], k: int, /) -> TopTokens:
        """Return the k likeliest tokens after a text or after token ids.

        A text is tokenised once, with the tokenizer's own special tokens. Raises UsageError for a
        prompt without tokens or with ids that the model lacks.
        """


@runtime_checkable
class GivesReasons(Protocol):
    """A loaded model that says why it lacks some of the protocols above.

    `refusals` maps the name of a method that is missing to the sentence that the caller reads.
    """

    refusals: ClassVar[Mapping[str, str]]


class Engine(Protocol):
    """Opens load plans."""

    def open(self, plan: LoadPlan) -> LoadedModel:
        """Load. Raises LoadError, UsageError or OutOfMemory."""
