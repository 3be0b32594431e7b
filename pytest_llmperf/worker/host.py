"""What a worker does with a command: it asks the loaded model, and wraps the value as a result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines import engine
from pytest_llmperf.engines.base import (
    AnswersTasks,
    ComparesReferences,
    Engine,
    GivesReasons,
    LoadedModel,
    MakesReferences,
    PredictsTokens,
    ReadsCollectives,
    Serves,
    ShowsLayers,
    SwitchesAdapters,
)
from pytest_llmperf.errors import UsageError, WorkerError
from pytest_llmperf.wire.commands import (
    AnswerTasks,
    AnyCommand,
    Close,
    Command,
    CompareLayers,
    CompareReference,
    Describe,
    MakeReference,
    MeasureCeilings,
    Open,
    R,
    ReadCollectives,
    ReadEnergy,
    ReadMemory,
    ReadTopTokens,
    Run,
    RunServing,
    UseAdapters,
    WriteLayers,
    checked,
)
from pytest_llmperf.wire.messages import Reply
from pytest_llmperf.wire.results import (
    AdaptersUsed,
    CeilingsRead,
    Closed,
    CollectivesRead,
    Described,
    EnergyRead,
    LayersRead,
    MemoryRead,
    Opened,
    Ran,
    ReferenceCompared,
    ReferenceMade,
    Result,
    Served,
    TasksAnswered,
    TopTokensRead,
)
from pytest_llmperf.worker.failures import failure

_NO_SERVER = (
    "Serve() is traffic on a server, and this engine is none. "
    "Use engine='server:vllm', for example."
)


def load_engine(plan: LoadPlan) -> Engine:
    """Return the plan's engine from the table. Heavy: this is where torch is imported.

    Raises UsageError for an unknown one.
    """
    return engine(plan.engine).load()


class Host:
    """Holds at most one loaded model.

    Needs no socket: the pytest process itself can use one for a model it already has.
    """

    def __init__(
        self, *, rank: int = 0, find_engine: Callable[[LoadPlan], Engine] = load_engine
    ) -> None:
        self.rank = rank
        self._find_engine = find_engine
        self._model: LoadedModel | None = None

    def handle(self, command: Command[R]) -> R:
        """Do one command.

        Raises whatever the engine raises, WorkerError for a command out of order, and UsageError
        for one that the loaded model cannot do.
        """
        handler = self._HANDLERS.get(type(command))
        if handler is None:
            raise WorkerError(f"{type(command).__name__} is not a command of this worker.")
        return checked(handler(self, command), command)

    def answer(self, command: AnyCommand) -> Reply:
        """Do one command; every error becomes the reply's failure."""
        try:
            return Reply(rank=self.rank, result=self.handle(command))
        # The boundary of the process: all errors travel.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            return Reply(rank=self.rank, failure=failure(error))

    def _open(self, command: Open) -> Opened:
        if self._model is not None:
            raise WorkerError(
                "Open was sent to a worker that already holds a model. "
                "Close it and start another worker."
            )
        self._model = self._find_engine(command.plan).open(command.plan)
        return Opened(facts=self._model.opened())

    def _close(self, _command: Close) -> Closed:
        model, self._model = self._model, None
        if model is not None:
            model.close()
        return Closed()

    def _describe(self, command: Describe) -> Described:
        return Described(description=self._model_for(command).describe())

    def _run(self, command: Run) -> Ran:
        return Ran(run=self._model_for(command).run(command.workload, command.repetition))

    def _serve(self, command: RunServing) -> Served:
        model = self._model_for(command)
        if not isinstance(model, Serves):
            raise _refusal(model, "serve", _NO_SERVER)
        return Served(run=model.serve(command.workload, command.repetition, command.program))

    def _read_memory(self, command: ReadMemory) -> MemoryRead:
        model = self._model_for(command)
        return MemoryRead(memory=model.read_memory(command.workload, command.repetition))

    def _read_energy(self, command: ReadEnergy) -> EnergyRead:
        model = self._model_for(command)
        reading = model.read_energy(command.workload, command.repetition, command.seconds)
        return EnergyRead(energy=reading)

    def _read_collectives(self, command: ReadCollectives) -> CollectivesRead:
        model = self._model_for(command)
        if not isinstance(model, ReadsCollectives):
            return CollectivesRead(
                share=None, reason="this engine does not tell what its ranks' time goes into"
            )
        share = model.read_collectives(command.workload, command.repetition)
        if isinstance(share, str):
            return CollectivesRead(share=None, reason=share)
        return CollectivesRead(share=share)

    def _measure_ceilings(self, command: MeasureCeilings) -> CeilingsRead:
        return CeilingsRead(ceilings=self._model_for(command).ceilings(command.dtypes))

    def _make_reference(self, command: MakeReference) -> ReferenceMade:
        model = self._model_for(command)
        if not isinstance(model, MakesReferences):
            raise _refusal(
                model, "make_reference", "this engine makes no reference for an agreement."
            )
        n_prompts, n_positions = model.make_reference(
            command.prompts, command.new_tokens, command.batch, command.path
        )
        return ReferenceMade(n_prompts=n_prompts, n_positions=n_positions)

    def _compare_reference(self, command: CompareReference) -> ReferenceCompared:
        model = self._model_for(command)
        if not isinstance(model, ComparesReferences):
            raise _refusal(
                model, "compare_reference", "this engine cannot be compared with a reference."
            )
        return ReferenceCompared(prompts=model.compare_reference(command.path, command.batch))

    def _write_layers(self, command: WriteLayers) -> LayersRead:
        model = self._model_for(command)
        if not isinstance(model, ShowsLayers):
            raise _refusal(model, "write_layers", _NO_LAYERS)
        look = command.path, command.prompts, command.inside
        return LayersRead(errors=model.write_layers(*look, command.dtype, command.file))

    def _compare_layers(self, command: CompareLayers) -> LayersRead:
        model = self._model_for(command)
        if not isinstance(model, ShowsLayers):
            raise _refusal(model, "compare_layers", _NO_LAYERS)
        look = command.path, command.prompts, command.inside
        return LayersRead(errors=model.compare_layers(*look, command.file))

    def _use_adapters(self, command: UseAdapters) -> AdaptersUsed:
        model = self._model_for(command)
        if not isinstance(model, SwitchesAdapters):
            raise _refusal(model, "use_adapters", "this engine switches no adapters.")
        return AdaptersUsed(names=model.use_adapters(command.names))

    def _answer_tasks(self, command: AnswerTasks) -> TasksAnswered:
        model = self._model_for(command)
        if not isinstance(model, AnswersTasks):
            raise _refusal(model, "answer_tasks", "this engine answers no tasks.")
        return TasksAnswered(answers=model.answer_tasks(command.tasks, command.batch))

    def _read_top_tokens(self, command: ReadTopTokens) -> TopTokensRead:
        model = self._model_for(command)
        if not isinstance(model, PredictsTokens):
            raise _refusal(model, "top_tokens", "this engine shows no next tokens.")
        return TopTokensRead(top=model.top_tokens(command.prompt, command.k))

    def _model_for(self, command: Command[Any]) -> LoadedModel:
        if self._model is None:
            raise WorkerError(
                f"{type(command).__name__} was sent to a worker that holds no model. "
                "Send Open first."
            )
        return self._model

    _HANDLERS: ClassVar[Mapping[type[Command[Any]], Callable[[Host, Any], Result]]] = {
        Open: _open,
        Close: _close,
        Describe: _describe,
        Run: _run,
        RunServing: _serve,
        ReadMemory: _read_memory,
        ReadEnergy: _read_energy,
        ReadCollectives: _read_collectives,
        MeasureCeilings: _measure_ceilings,
        MakeReference: _make_reference,
        CompareReference: _compare_reference,
        WriteLayers: _write_layers,
        CompareLayers: _compare_layers,
        UseAdapters: _use_adapters,
        AnswerTasks: _answer_tasks,
        ReadTopTokens: _read_top_tokens,
    }
    """Every command of a worker, and the method that does it."""


_NO_LAYERS = "this engine does not show its layers' outputs; the transformers engine does."


def _refusal(model: LoadedModel, method: str, default: str) -> UsageError:
    """Return the error for a method that `model` lacks: the model's own sentence, or `default`."""
    reasons = model.refusals if isinstance(model, GivesReasons) else {}
    return UsageError(reasons.get(method, default))
