"""What a worker answers, and what the other sides answer: a result type for each command."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from pytest_llmperf.core.agreement.comparison import PromptComparison
from pytest_llmperf.core.agreement.layers import ModuleError
from pytest_llmperf.core.agreement.next_tokens import TopTokens
from pytest_llmperf.core.foreign_load import OthersWork
from pytest_llmperf.core.loaded import Description, ModelFacts, ServingRun, TimedRun
from pytest_llmperf.core.side import SideFacts
from pytest_llmperf.core.trace import Ceilings, EnergyReading, MemoryGauges
from pytest_llmperf.core.verdicts.loads import Load
from pytest_llmperf.workloads import TaskAnswer


class Opened(Struct, frozen=True, kw_only=True, tag=True):
    """Answer to Open: the model is loaded."""

    facts: ModelFacts


class Described(Struct, frozen=True, kw_only=True, tag=True):
    """Answer to Describe."""

    description: Description


class Ran(Struct, frozen=True, kw_only=True, tag=True):
    """Answer to Run."""

    run: TimedRun


class Served(Struct, frozen=True, kw_only=True, tag=True):
    """Answer to RunServing."""

    run: ServingRun


class MemoryRead(Struct, frozen=True, kw_only=True, tag=True):
    """Answer to ReadMemory.

    `ranks` has the gauges of each where there are several; `memory` is then their sum.
    """

    memory: MemoryGauges | None
    ranks: tuple[MemoryGauges, ...] = ()


class CollectivesRead(Struct, frozen=True, kw_only=True, tag=True):
    """Answer to ReadCollectives: the share of wall time (0 to 1), or None and why."""

    share: float | None
    reason: str = ""


class EnergyRead(Struct, frozen=True, kw_only=True, tag=True):
    """Answer to ReadEnergy."""

    energy: EnergyReading


class CeilingsRead(Struct, frozen=True, kw_only=True, tag=True):
    """Answer to MeasureCeilings."""

    ceilings: Ceilings | None


class ReferenceMade(Struct, frozen=True, kw_only=True, tag=True):
    """Answer to MakeReference."""

    n_prompts: int
    n_positions: int


class ReferenceCompared(Struct, frozen=True, kw_only=True, tag=True):
    """Answer to CompareReference: one row for each prompt."""

    prompts: tuple[PromptComparison, ...]


class LayersRead(Struct, frozen=True, kw_only=True, tag=True):
    """Answer to WriteLayers and CompareLayers: the error of each module, in a pass's order."""

    errors: tuple[ModuleError, ...]


class AdaptersUsed(Struct, frozen=True, kw_only=True, tag=True):
    """Answer to UseAdapters: the adapters in force, as the model's modules have them.

    Several names apply to the rows of a batch in turn.
    """

    names: tuple[str, ...]


class TasksAnswered(Struct, frozen=True, kw_only=True, tag=True):
    """Answer to AnswerTasks: one answer for each item, in order."""

    answers: tuple[TaskAnswer, ...]


class TopTokensRead(Struct, frozen=True, kw_only=True, tag=True):
    """Answer to ReadTopTokens."""

    top: TopTokens


class Closed(Struct, frozen=True, kw_only=True, tag=True):
    """Answer to Close, and to GiveBack."""


class Reached(Struct, frozen=True, kw_only=True, tag=True):
    """The base's test is about to measure: one model, or two in turn.

    `strays` are modules that came from the other tree.
    """

    sides: tuple[SideFacts, ...]
    strays: tuple[str, ...] = ()


class Ended(Struct, frozen=True, kw_only=True, tag=True):
    """The base's test has ended.

    `outcome` is "passed", "failed", "skipped", "missing" (no such test) or "broken" (not
    collected).
    """

    outcome: str
    message: str = ""


class BlockMeasured(Struct, frozen=True, kw_only=True, tag=True):
    """Answer to MeasureBlock: the metrics of each side, and the seconds of warm-up and samples.

    A metric is None where it is not measurable; `reasons` then says why. `load` is what the side's
    process cost; None from a side of an earlier version. `answers` are the texts that each side's
    server gave, by the repetition whose prompts they answer.
    """

    values: tuple[dict[str, float | None], ...]
    reasons: dict[str, str]
    spent_s: float
    load: Load | None = None
    others: OthersWork = OthersWork()
    answers: tuple[dict[int, tuple[str, ...]], ...] = ()


class BodyRan(Struct, frozen=True, kw_only=True, tag=True):
    """Answer to RunBody: pytest's reports of the phases, as pytest serialises them.

    `called` is True when the test function was entered.
    """

    reports: tuple[dict[str, Any], ...]
    called: bool


Result = (
    Opened
    | Described
    | Ran
    | Served
    | MemoryRead
    | EnergyRead
    | CollectivesRead
    | CeilingsRead
    | LayersRead
    | ReferenceMade
    | ReferenceCompared
    | TopTokensRead
    | AdaptersUsed
    | TasksAnswered
    | Closed
    | Reached
    | Ended
    | BlockMeasured
    | BodyRan
)
