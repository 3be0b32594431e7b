"""Messages between the pytest process and a worker: typed, msgpack, length-prefixed (4 bytes, big endian). No pickle.

The parent sends one command at a time to every rank; a rank answers with exactly one `Reply`, and sends `Heartbeat`s
in between. `Reply.result` is the command's own result type (see `Command` classes), or `failure` is set.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from pytest_llmperf.core.agreement.comparison import PromptComparison
from pytest_llmperf.core.agreement.next_tokens import TopTokens
from pytest_llmperf.core.effective import Effective
from pytest_llmperf.core.metrics.serving import ServingTrace
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.side import SideFacts
from pytest_llmperf.core.trace import Ceilings, EnergyReading, Mark, MemoryGauges, StepCost, Trace
from pytest_llmperf.workloads import PromptSet, Serve, TaskAnswer, TaskSet, Workload


class Open(Struct, frozen=True, kw_only=True, tag=True):
    """Load the model. Result: Opened."""

    plan: LoadPlan


class Describe(Struct, frozen=True, kw_only=True, tag=True):
    """What is in effect now. Result: Described."""


class Run(Struct, frozen=True, kw_only=True, tag=True):
    """One timed repetition of the workload. Result: Ran."""

    workload: Workload
    repetition: int


class RunServing(Struct, frozen=True, kw_only=True, tag=True):
    """One run of a load on a server. Result: Served.

    `program` is the command of the workload's generator, where it has one.
    """

    workload: Serve
    repetition: int
    program: str = ""


class ReadMemory(Struct, frozen=True, kw_only=True, tag=True):
    """One untimed repetition with memory watched. Result: MemoryRead."""

    workload: Workload
    repetition: int


class ReadEnergy(Struct, frozen=True, kw_only=True, tag=True):
    """Repetitions for at least `seconds`, energy read around them. Result: EnergyRead."""

    workload: Workload
    repetition: int
    seconds: float


class MeasureCeilings(Struct, frozen=True, kw_only=True, tag=True):
    """Copy bandwidth and matmul rate of the device. Result: CeilingsRead.

    Cached by the parent per device.
    """

    dtypes: tuple[str, ...]


class ReadCollectives(Struct, frozen=True, kw_only=True, tag=True):
    """One untimed repetition under a profiler, of a model that several ranks share.

    Result: CollectivesRead.
    """

    workload: Workload
    repetition: int


class MakeReference(Struct, frozen=True, kw_only=True, tag=True):
    """Greedy continuations and teacher-forced logits of the prompts, written to `path`.

    Result: ReferenceMade.
    """

    prompts: PromptSet
    new_tokens: int
    batch: int
    path: str


class CompareReference(Struct, frozen=True, kw_only=True, tag=True):
    """Score this model against the reference file at `path`, `batch` prompts at a time.

    Result: ReferenceCompared.
    """

    path: str
    batch: int


class UseAdapters(Struct, frozen=True, kw_only=True, tag=True):
    """Go through these adapters from now on: one for all rows, or several for the rows of a batch in turn ("base": none).

    No names: the default, which is the first one loaded. Result: AdaptersUsed.
    """

    names: tuple[str, ...]


class AnswerTasks(Struct, frozen=True, kw_only=True, tag=True):
    """Answer the items, `batch` at a time. Result: TasksAnswered."""

    tasks: TaskSet
    batch: int


class ReadTopTokens(Struct, frozen=True, kw_only=True, tag=True):
    """The k likeliest tokens after a prompt: a text, which the worker tokenises, or token ids.

    Result: TopTokensRead.
    """

    prompt: str | tuple[int, ...]
    k: int


class Close(Struct, frozen=True, kw_only=True, tag=True):
    """Free everything and exit. Result: Closed."""


class RunTest(Struct, frozen=True, kw_only=True, tag=True):
    """To a base side (`against`): run a test until it wants to measure. Result: Reached or Ended.

    `next_nodeid` is the test that is likely to follow, so that fixtures both use are kept. With
    `release` the side gives the device's memory back whenever it waits. `gpus` are the UUIDs of the
    devices that its session has leased: it uses those.
    """

    nodeid: str
    next_nodeid: str | None
    release: bool = False
    gpus: tuple[str, ...] = ()


class GoOn(Struct, frozen=True, kw_only=True, tag=True):
    """To a base side that waits in a test: go on to the next measurement. Result: Reached or Ended."""

    gpus: tuple[str, ...] = ()


class GiveBack(Struct, frozen=True, kw_only=True, tag=True):
    """To a base side that waits in a test: close the models that are on GPUs. Result: Closed."""


class MeasureBlock(Struct, frozen=True, kw_only=True, tag=True):
    """To a base side that waits in a test: warm up and sample what the test wants to measure.

    Result: BlockMeasured.

    `fresh` starts new workers before it. `first_repetition` numbers the prompts, as on the other
    side.
    """

    metrics: tuple[str, ...]
    precision: float
    budget_s: float
    first_repetition: int
    fresh: bool = False


class LeaveTest(Struct, frozen=True, kw_only=True, tag=True):
    """To a base side that waits in a test: end the test here. Result: Ended."""


BaseCommand = RunTest | GoOn | MeasureBlock | GiveBack | LeaveTest


class RunBody(Struct, frozen=True, kw_only=True, tag=True):
    """Run one test's body in a pytest process of its own. Result: BodyRan.

    `arguments` are pytest's command line, which collects the test; `gpus` are UUIDs that the
    sending session holds for it.
    """

    arguments: tuple[str, ...]
    nodeid: str
    gpus: tuple[str, ...] = ()


Command = (
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


class Opened(Struct, frozen=True, kw_only=True, tag=True):
    """Loaded.

    `content_hash` identifies the weights and config that were read (or the seed of random ones).

    `base_hash` is that of the model alone where `content_hash` covers adapters too. `special_ids`
    are those of the vocabulary that no text holds: markers, and rows that only pad the embedding.
    """

    effective: Effective
    load_s: float
    content_hash: str
    vocab_size: int
    versions: dict[str, str]
    device_name: str
    device_facts: dict[str, Any]
    memory: MemoryGauges
    base_hash: str = ""
    special_ids: tuple[int, ...] = ()


class Described(Struct, frozen=True, kw_only=True, tag=True):
    """Answer to Describe."""

    effective: Effective
    memory: MemoryGauges


class Ran(Struct, frozen=True, kw_only=True, tag=True):
    """Answer to Run.

    The two hashes are of the token ids that went in and came out, taken outside the timed work.

    `step` is None where the engine cannot see what a step moves.
    """

    trace: Trace
    step: StepCost | None
    telemetry: dict[str, float] = {}
    prompts_hash: str = ""
    outputs_hash: str = ""


class Served(Struct, frozen=True, kw_only=True, tag=True):
    """Answer to RunServing.

    `samples` are the server's metrics over the run, `counted` how the tokens of a message were
    counted.
    """

    trace: ServingTrace
    marks: tuple[Mark, ...] = ()
    samples: tuple[dict[str, float], ...] = ()
    counted: str = ""


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
    """Answer to CompareReference: one row a prompt."""

    prompts: tuple[PromptComparison, ...]


class AdaptersUsed(Struct, frozen=True, kw_only=True, tag=True):
    """Answer to UseAdapters: the adapters in force, as the modules have it.

    Several for rows in turn.
    """

    names: tuple[str, ...]


class TasksAnswered(Struct, frozen=True, kw_only=True, tag=True):
    """Answer to AnswerTasks: one answer an item, in order."""

    answers: tuple[TaskAnswer, ...]


class TopTokensRead(Struct, frozen=True, kw_only=True, tag=True):
    """Answer to ReadTopTokens."""

    top: TopTokens


class Closed(Struct, frozen=True, kw_only=True, tag=True):
    """Answer to Close."""


class Reached(Struct, frozen=True, kw_only=True, tag=True):
    """The test is about to measure: one model, or two in turn.

    `strays` are modules that came from the other tree.
    """

    sides: tuple[SideFacts, ...]
    strays: tuple[str, ...] = ()


class Ended(Struct, frozen=True, kw_only=True, tag=True):
    """The test has ended.

    `outcome` is "passed", "failed", "skipped", "missing" (no such test) or "broken" (not
    collected).
    """

    outcome: str
    message: str = ""


class BlockMeasured(Struct, frozen=True, kw_only=True, tag=True):
    """Answer to MeasureBlock: each side's metrics (None: not measurable, with its reason), and the seconds it sampled."""

    values: tuple[dict[str, float | None], ...]
    reasons: dict[str, str]
    spent_s: float


class BodyRan(Struct, frozen=True, kw_only=True, tag=True):
    """Answer to RunBody: pytest's reports of the phases, as pytest serialises them.

    `called`: the test function was entered.
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


class Failure(Struct, frozen=True, kw_only=True):
    """Why a command failed.

    `kind` is a class name of `pytest_llmperf.errors`; unknown kinds become WorkerError.
    """

    kind: str
    message: str
    traceback: str = ""


class Hello(Struct, frozen=True, kw_only=True, tag=True):
    """First message of a worker."""

    rank: int
    pid: int
    python: str


class Heartbeat(Struct, frozen=True, kw_only=True, tag=True):
    """Sent every second by a thread of the worker, with what it is doing."""

    rank: int
    doing: str


class Reply(Struct, frozen=True, kw_only=True, tag=True):
    """The one answer to a command."""

    rank: int
    result: Result | None = None
    failure: Failure | None = None


FromWorker = Hello | Heartbeat | Reply
