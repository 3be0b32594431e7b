"""What the session asks a worker to do.

The type of a command names its result: `Run` is a `Command[Ran]`.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar, get_args

from msgspec import Struct

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.errors import WorkerError
from pytest_llmperf.wire.results import (
    AdaptersUsed,
    BlockMeasured,
    BodyRan,
    CeilingsRead,
    Closed,
    CollectivesRead,
    Described,
    Ended,
    EnergyRead,
    LayersRead,
    MemoryRead,
    Opened,
    Ran,
    Reached,
    ReferenceCompared,
    ReferenceMade,
    Result,
    Served,
    TasksAnswered,
    TopTokensRead,
)
from pytest_llmperf.workloads import PromptSet, Serve, TaskSet, Workload

R = TypeVar("R", bound=Result)
R_co = TypeVar("R_co", bound=Result, covariant=True)


class Command(Struct, Generic[R_co], frozen=True, kw_only=True):
    """A command whose result is an `R_co`."""


# Commands to a worker that holds a model


class Open(Command[Opened], frozen=True, kw_only=True, tag=True):
    """Load the model."""

    plan: LoadPlan


class Describe(Command[Described], frozen=True, kw_only=True, tag=True):
    """Say what is in effect at the moment."""


class Run(Command[Ran], frozen=True, kw_only=True, tag=True):
    """Run the workload once, timed."""

    workload: Workload
    repetition: int


class RunServing(Command[Served], frozen=True, kw_only=True, tag=True):
    """Send one run of traffic to a server.

    `program` is the command of the workload's generator, where it has one.
    """

    workload: Serve
    repetition: int
    program: str = ""


class ReadMemory(Command[MemoryRead], frozen=True, kw_only=True, tag=True):
    """Run the workload once, untimed, with memory watched."""

    workload: Workload
    repetition: int


class ReadEnergy(Command[EnergyRead], frozen=True, kw_only=True, tag=True):
    """Repeat the workload for at least `seconds`, and read the energy counter around it."""

    workload: Workload
    repetition: int
    seconds: float


class MeasureCeilings(Command[CeilingsRead], frozen=True, kw_only=True, tag=True):
    """Measure the bandwidth and the matmul rate of the device.

    The session caches the answer per device.
    """

    dtypes: tuple[str, ...]


class ReadCollectives(Command[CollectivesRead], frozen=True, kw_only=True, tag=True):
    """Run a model that several ranks share once, untimed, under a profiler."""

    workload: Workload
    repetition: int


class MakeReference(Command[ReferenceMade], frozen=True, kw_only=True, tag=True):
    """Write greedy continuations and teacher-forced logits of the prompts to `path`."""

    prompts: PromptSet
    new_tokens: int
    batch: int
    path: str


class CompareReference(Command[ReferenceCompared], frozen=True, kw_only=True, tag=True):
    """Score this model against the reference file at `path`, `batch` prompts at a time."""

    path: str
    batch: int


class WriteLayers(Command[LayersRead], frozen=True, kw_only=True, tag=True):
    """Write the outputs of this model's layers on some prompts of the reference at `path`.

    With `inside`, those of the modules of one layer. The errors that it answers with are the noise
    floor of `dtype`.
    """

    path: str
    prompts: tuple[int, ...]
    dtype: str
    file: str
    inside: str = ""


class CompareLayers(Command[LayersRead], frozen=True, kw_only=True, tag=True):
    """Compare the outputs of this model's layers with those that WriteLayers wrote to `file`."""

    path: str
    prompts: tuple[int, ...]
    file: str
    inside: str = ""


class UseAdapters(Command[AdaptersUsed], frozen=True, kw_only=True, tag=True):
    """Go through these adapters from now on.

    One name applies to all rows; several apply to the rows of a batch in turn, where "base" stands
    for the model without an adapter. No names: the default, which is the first adapter loaded.
    """

    names: tuple[str, ...]


class AnswerTasks(Command[TasksAnswered], frozen=True, kw_only=True, tag=True):
    """Answer the items, `batch` at a time."""

    tasks: TaskSet
    batch: int


class ReadTopTokens(Command[TopTokensRead], frozen=True, kw_only=True, tag=True):
    """Give the k likeliest tokens after a text, which the worker tokenises, or after token ids."""

    prompt: str | tuple[int, ...]
    k: int


class Close(Command[Closed], frozen=True, kw_only=True, tag=True):
    """Free everything and exit."""


# Commands to a base side (`against`)


class RunTest(Command[Reached | Ended], frozen=True, kw_only=True, tag=True):
    """Run a test until it wants to measure.

    `next_nodeid` is the test that is likely to follow, so that fixtures that both use stay. With
    `release` the side gives the device's memory back whenever it waits. `gpus` are the UUIDs of the
    devices that its session has leased, which the side uses.
    """

    nodeid: str
    next_nodeid: str | None
    release: bool = False
    gpus: tuple[str, ...] = ()


class GoOn(Command[Reached | Ended], frozen=True, kw_only=True, tag=True):
    """Go on from the place in the test where the side waits to the next measurement."""

    gpus: tuple[str, ...] = ()


class GiveBack(Command[Closed], frozen=True, kw_only=True, tag=True):
    """Close the models that are on GPUs, while the side waits in a test."""


class MeasureBlock(Command[BlockMeasured], frozen=True, kw_only=True, tag=True):
    """Warm up and sample what the test wants to measure.

    `fresh` starts new workers before it. `first_repetition` numbers the prompts, as on the other
    side. `repetitions` are so many at most; 0: as precision and budget say.
    """

    metrics: tuple[str, ...]
    precision: float
    budget_s: float
    first_repetition: int
    fresh: bool = False
    repetitions: int = 0


class LeaveTest(Command[Ended], frozen=True, kw_only=True, tag=True):
    """End the test in which the side waits."""


# A command to the process of a test's body


class RunBody(Command[BodyRan], frozen=True, kw_only=True, tag=True):
    """Run the body of one test in a pytest process of its own.

    `arguments` are pytest's command line, which collects the test; `gpus` are UUIDs that the
    sending session holds for it.
    """

    arguments: tuple[str, ...]
    nodeid: str
    gpus: tuple[str, ...] = ()


AnyCommand = (
    Open
    | Describe
    | Run
    | RunServing
    | ReadMemory
    | ReadEnergy
    | ReadCollectives
    | MeasureCeilings
    | MakeReference
    | CompareReference
    | WriteLayers
    | CompareLayers
    | ReadTopTokens
    | UseAdapters
    | AnswerTasks
    | Close
    | RunTest
    | GoOn
    | MeasureBlock
    | GiveBack
    | LeaveTest
    | RunBody
)
"""Every command that can travel: what the receiving end decodes."""


def result_type(command: type[Command[Any]]) -> Any:
    """Return the type that `Command[…]` names for a command: a class, or a union of classes."""
    (base,) = vars(command)["__orig_bases__"]
    return get_args(base)[0]


def checked(result: Result, command: Command[R]) -> R:
    """Return `result` as the command's own result type. Raises WorkerError for another type."""
    expected = result_type(type(command))
    if not isinstance(result, expected):
        raise WorkerError(
            f"{type(command).__name__} was answered with {type(result).__name__}, "
            f"not with {_names(expected)}."
        )
    answer: R = result
    return answer


def _names(expected: Any) -> str:
    return " or ".join(cls.__name__ for cls in get_args(expected) or (expected,))
