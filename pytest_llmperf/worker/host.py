"""What a worker does with a command: hand it to the engine's session, and turn what goes wrong into a `Failure`."""

from __future__ import annotations

import traceback
from collections.abc import Callable

from pytest_llmperf import errors
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines import engine
from pytest_llmperf.engines.base import Engine, LoadedModel
from pytest_llmperf.errors import LlmperfError, UsageError, WorkerError
from pytest_llmperf.wire.messages import (
    AdaptersUsed,
    AnswerTasks,
    CeilingsRead,
    Close,
    Closed,
    CollectivesRead,
    Command,
    CompareReference,
    Describe,
    EnergyRead,
    Failure,
    MakeReference,
    MeasureCeilings,
    Open,
    ReadCollectives,
    ReadEnergy,
    ReadMemory,
    ReadTopTokens,
    ReferenceCompared,
    ReferenceMade,
    Reply,
    Result,
    Run,
    RunServing,
    Served,
    TasksAnswered,
    TopTokensRead,
    UseAdapters,
)


def load_engine(plan: LoadPlan) -> Engine:
    """The plan's engine from the table. Heavy: this is where torch is imported.

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
        self._session: LoadedModel | None = None

    def handle(self, command: Command) -> Result:
        """Do one command.

        Raises whatever the engine raises, and WorkerError for a command out of order.
        """
        match command:
            case Open():
                return self._open(command)
            case Close():
                return self._close()
            case _:
                return _ask(self._need_session(command), command)

    def answer(self, command: Command) -> Reply:
        """Do one command; every error becomes the reply's failure."""
        try:
            return Reply(rank=self.rank, result=self.handle(command))
        # The boundary of the process: all errors travel.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            return Reply(rank=self.rank, failure=failure(error))

    def _open(self, command: Open) -> Result:
        if self._session is not None:
            raise WorkerError(
                "Open was sent to a worker that already holds a model. Close it and start another worker."
            )
        self._session = self._find_engine(command.plan).open(command.plan)
        return self._session.opened()

    def _close(self) -> Result:
        session, self._session = self._session, None
        if session is not None:
            session.close()
        return Closed()

    def _need_session(self, command: Command) -> LoadedModel:
        if self._session is None:
            raise WorkerError(
                f"{type(command).__name__} was sent to a worker that holds no model. Send Open first."
            )
        return self._session


def _ask(session: LoadedModel, command: Command) -> Result:
    result: Result
    match command:
        case Describe():
            result = session.describe()
        case Run():
            result = session.run(command.workload, command.repetition)
        case RunServing():
            result = _serve(session, command)
        case ReadMemory():
            result = session.read_memory(command.workload, command.repetition)
        case ReadEnergy():
            result = EnergyRead(
                energy=session.read_energy(command.workload, command.repetition, command.seconds)
            )
        case ReadCollectives():
            result = _collectives(session, command)
        case MeasureCeilings():
            result = CeilingsRead(ceilings=session.ceilings(command.dtypes))
        case _:
            result = _ask_outputs(session, command)
    return result


def _serve(session: LoadedModel, command: RunServing) -> Served:
    """Only a server's session can take a load."""
    serve = getattr(session, "serve", None)
    if serve is None:
        raise UsageError(
            "Serve() is a load on a server, and this engine is none. Use engine='server:vllm', for example."
        )
    program = {"program": command.program} if command.program else {}
    served: Served = serve(command.workload, command.repetition, **program)
    return served


def _collectives(session: LoadedModel, command: ReadCollectives) -> CollectivesRead:
    """Engines that hold a model on one device need not be able to tell."""
    read = getattr(session, "read_collectives", None)
    if read is None:
        return CollectivesRead(
            share=None, reason="this engine does not tell what its ranks' time goes into"
        )
    found: CollectivesRead = read(command.workload, command.repetition)
    return found


def _ask_outputs(session: LoadedModel, command: Command) -> Result:
    """What is not measured: what the model answers."""
    result: Result
    match command:
        case MakeReference():
            made = session.make_reference(
                command.prompts, command.new_tokens, command.batch, command.path
            )
            result = ReferenceMade(n_prompts=made[0], n_positions=made[1])
        case CompareReference():
            result = ReferenceCompared(
                prompts=session.compare_reference(command.path, command.batch)
            )
        case ReadTopTokens():
            result = TopTokensRead(top=session.top_tokens(command.prompt, command.k))
        case UseAdapters():
            result = AdaptersUsed(names=session.use_adapters(command.names))
        case AnswerTasks():
            result = TasksAnswered(answers=session.answer_tasks(command.tasks, command.batch))
        case _:
            raise WorkerError(f"{type(command).__name__} is not a command of this worker.")
    return result


def failure(error: BaseException) -> Failure:
    """The error as it travels. Text that UTF-8 cannot carry (undecodable file names) is escaped."""
    text = "".join(traceback.format_exception(error))
    return Failure(kind=kind(error), message=_sendable(_message(error)), traceback=_sendable(text))


def kind(error: BaseException) -> str:
    """The nearest class of `errors` by name.

    OutOfMemory for MemoryError and torch's OutOfMemoryError (torch not imported).
    """
    names = [cls.__name__ for cls in type(error).__mro__]
    if "MemoryError" in names or "OutOfMemoryError" in names:
        return errors.OutOfMemory.__name__
    known = (
        cls.__name__
        for cls in type(error).__mro__
        if issubclass(cls, LlmperfError) and hasattr(errors, cls.__name__)
    )
    return next(known, names[0])


def _message(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, LlmperfError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _sendable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
