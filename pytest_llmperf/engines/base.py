"""What an engine is: it opens a load plan and gives a session that runs workloads and describes itself.

An engine runs inside a worker. It may import heavy packages at the top of its own file; nothing imports that file
but through the table in `pytest_llmperf.engines`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from pytest_llmperf.core.agreement.comparison import PromptComparison
from pytest_llmperf.core.agreement.next_tokens import TopTokens
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.trace import Ceilings, EnergyReading
from pytest_llmperf.wire.messages import Described, MemoryRead, Opened, Ran
from pytest_llmperf.workloads import PromptSet, TaskAnswer, TaskSet, Workload


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What an engine can do; callers ask this, never the engine's name.

    `plan_fields` maps a LoadPlan field to the values the engine honours (`core.plan.ANY`: whatever
    is asked); a field that is missing takes its default only. `refusal` gives the reason why a plan
    cannot be loaded although each of its fields is honoured by itself (a device that a library
    lacks, parts that exclude each other), or None. `missing_library` gives the library that a plan
    needs and that this interpreter has not installed; it is not asked where the engine runs with an
    interpreter of its own. An engine whose time is virtual does not occupy its device: on a CPU
    nobody waits for it, nor it for anybody. An engine that `serves` takes loads: its sessions have
    `serve(workload, repetition)`.
    """

    plan_fields: dict[str, frozenset[object]] = field(default_factory=dict)
    refusal: Callable[[LoadPlan], str | None] = lambda _plan: None
    missing_library: Callable[[LoadPlan], str | None] = lambda _plan: None
    devices: frozenset[str] = frozenset({"cpu", "cuda"})
    logits: bool = True
    max_ranks: int | None = 1
    occupies_device: bool = True
    serves: bool = False


class LoadedModel(Protocol):
    """A loaded model. One call at a time; every method blocks until the device is idle."""

    def opened(self) -> Opened:
        """What was loaded and how long it took."""

    def describe(self) -> Described:
        """What is in effect now: after loading, and again after warm-up."""

    def run(self, workload: Workload, repetition: int) -> Ran:
        """One timed repetition. Prompts are fresh for each repetition.

        Exactly `new_tokens` tokens a sequence, or InvalidRun.
        """

    def read_memory(self, workload: Workload, repetition: int) -> MemoryRead:
        """One repetition with memory watched, times discarded."""

    def read_energy(self, workload: Workload, repetition: int, seconds: float) -> EnergyReading:
        """Energy over repetitions that last at least `seconds`."""

    def ceilings(self, dtypes: tuple[str, ...]) -> Ceilings | None:
        """Copy bandwidth (bytes read + written per second) and matmul rates of the device."""

    def make_reference(
        self, prompts: PromptSet, new_tokens: int, batch: int, path: str
    ) -> tuple[int, int]:
        """Write greedy continuations and teacher-forced logits to `path`.

        Returns prompts and positions.
        """

    def compare_reference(self, path: str, batch: int) -> tuple[PromptComparison, ...]:
        """Teacher-forced and free-running comparison with the reference at `path`."""

    def use_adapters(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Go through these adapters from now on (see `UseAdapters`); returns those in force.

        Raises UsageError, NotInEffect.
        """

    def answer_tasks(self, tasks: TaskSet, batch: int) -> tuple[TaskAnswer, ...]:
        """Answer each item, in order: the likeliest of its choices, or its greedy text.

        Raises UsageError if it cannot.
        """

    def top_tokens(self, prompt: str | tuple[int, ...], k: int) -> TopTokens:
        """The k likeliest tokens after a text, tokenised once with the tokenizer's own special tokens, or after token ids.

        Raises UsageError for a prompt without tokens or with ids that the model lacks.
        """

    def close(self) -> None:
        """Free everything. The worker exits afterwards."""


class Engine(Protocol):
    """Opens load plans."""

    def open(self, plan: LoadPlan) -> LoadedModel:
        """Load. Raises LoadError, UsageError or OutOfMemory."""
