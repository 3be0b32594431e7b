"""What a worker makes of commands and errors, without a process or a socket."""

from __future__ import annotations

import pytest
from msgspec import structs

from pytest_llmperf.core.loaded import ServingRun
from pytest_llmperf.core.metrics.serving import ServingTrace
from pytest_llmperf.engines.inprocess import CallableEngine
from pytest_llmperf.errors import LoadError, OutOfMemory, UsageError, WorkerError
from pytest_llmperf.testing import ScriptedEngine, scripted_plan
from pytest_llmperf.wire.commands import (
    AnswerTasks,
    Close,
    CompareReference,
    Describe,
    LeaveTest,
    MakeReference,
    MeasureCeilings,
    Open,
    ReadCollectives,
    ReadEnergy,
    ReadMemory,
    ReadTopTokens,
    Run,
    RunServing,
    UseAdapters,
)
from pytest_llmperf.wire.messages import Reply
from pytest_llmperf.wire.results import Closed, Described
from pytest_llmperf.worker import loop
from pytest_llmperf.worker.failures import failure
from pytest_llmperf.worker.host import Host
from pytest_llmperf.workloads import Decode, PromptSet, Serve, Task, TaskSet

WORK = Decode(batch=1, prompt_tokens=4, new_tokens=2)


def test_every_command_has_its_own_result(tmp_path):
    """The pairs that the protocol promises, in one session of an in-process host."""
    host, path = Host(), str(tmp_path / "reference")
    commands = [
        Open(plan=scripted_plan()),
        Describe(),
        Run(workload=WORK, repetition=0),
        ReadMemory(workload=WORK, repetition=0),
        ReadEnergy(workload=WORK, repetition=0, seconds=1),
        MeasureCeilings(dtypes=("float32",)),
        MakeReference(prompts=PromptSet.synthetic(), new_tokens=2, batch=1, path=path),
        CompareReference(path=path, batch=1),
        ReadTopTokens(prompt="a text", k=2),
        Close(),
    ]
    names = [
        "Opened",
        "Described",
        "Ran",
        "MemoryRead",
        "EnergyRead",
        "CeilingsRead",
        "ReferenceMade",
        "ReferenceCompared",
        "TopTokensRead",
        "Closed",
    ]
    assert [type(host.handle(command)).__name__ for command in commands] == names


OPTIONAL = {
    "serve": RunServing(workload=Serve(concurrency=1, requests=1), repetition=0),
    "make_reference": MakeReference(
        prompts=PromptSet.synthetic(), new_tokens=2, batch=1, path="nowhere"
    ),
    "compare_reference": CompareReference(path="nowhere", batch=1),
    "use_adapters": UseAdapters(names=("base",)),
    "answer_tasks": AnswerTasks(
        tasks=TaskSet(name="t", items=(Task(prompt="p", answer="a"),)), batch=1
    ),
    "top_tokens": ReadTopTokens(prompt="a text", k=2),
}


class Plain:
    """A loaded model with what every one must have, and nothing else; it opens itself."""

    def __init__(self):
        self.model = ScriptedEngine().open(scripted_plan())

    def open(self, _plan):
        return self

    def __getattr__(self, name):
        if name in OPTIONAL or name in {"read_collectives", "refusals"}:
            raise AttributeError(name)
        return getattr(self.model, name)


@pytest.mark.parametrize("method", OPTIONAL)
def test_what_a_model_cannot_do_is_refused_in_one_sentence(method):
    """The worker's own sentence, or the model's where it has one."""
    host = Host(find_engine=lambda _plan: Plain())
    host.handle(Open(plan=scripted_plan()))
    with pytest.raises(UsageError, match="this engine"):
        host.handle(OPTIONAL[method])
    callable_host = Host(find_engine=lambda _plan: CallableEngine(lambda: None, 1))
    callable_host.handle(Open(plan=scripted_plan()))
    reason = "this engine is none" if method == "serve" else "need.* a model: llmperf.measure sees"
    with pytest.raises(UsageError, match=reason):
        callable_host.handle(OPTIONAL[method])


def test_a_model_that_does_not_tell_about_collectives_gives_the_reason():
    """Nothing is refused: what ranks spend on communication is not measurable then."""
    host = Host(find_engine=lambda _plan: Plain())
    host.handle(Open(plan=scripted_plan()))
    read = host.handle(ReadCollectives(workload=WORK, repetition=0))
    assert (read.share, read.reason) == (
        None,
        "this engine does not tell what its ranks' time goes into",
    )


def test_a_command_of_another_side_is_none_of_a_workers():
    """Those of a base side, or of a test's body."""
    with pytest.raises(WorkerError, match="LeaveTest is not a command of this worker"):
        Host().handle(LeaveTest())


def test_a_command_before_open_says_what_is_missing():
    with pytest.raises(WorkerError, match="Describe was sent to a worker that holds no model"):
        Host().handle(Describe())


def test_close_without_a_model_is_closed_and_frees_the_place():
    """A worker that never loaded closes too; after Close another plan may be opened."""
    host = Host()
    assert isinstance(host.handle(Close()), Closed)
    host.handle(Open(plan=scripted_plan()))
    host.handle(Close())
    host.handle(Open(plan=scripted_plan("seed=2")))
    assert isinstance(host.handle(Describe()), Described)


def test_an_engine_is_found_on_open_and_not_before():
    """The table is asked for the plan's engine when there is a plan."""
    asked = []
    host = Host(find_engine=lambda plan: asked.append(plan) or ScriptedEngine())
    assert asked == []
    host.handle(Open(plan=scripted_plan()))
    assert asked == [scripted_plan()]


class TorchLikeError(RuntimeError):
    pass


TorchLikeError.__name__ = "OutOfMemoryError"


class NarrowerError(LoadError):
    pass


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (MemoryError(), "OutOfMemory", "MemoryError"),
        (
            TorchLikeError("CUDA out of memory"),
            "OutOfMemory",
            "OutOfMemoryError: CUDA out of memory",
        ),
        (OutOfMemory("predicted"), "OutOfMemory", "predicted"),
        (NarrowerError("no file"), "LoadError", "no file"),
        (ValueError("bad"), "ValueError", "ValueError: bad"),
        (SystemExit(2), "SystemExit", "SystemExit: 2"),
    ],
)
def test_an_error_travels_under_the_name_the_session_knows(error, kind, message):
    """Ours by their nearest class in `errors`, out of memory by any name, others by their own."""
    found = failure(error)
    assert (found.kind, found.message) == (kind, message)


def test_text_that_utf8_cannot_carry_is_escaped():
    """An undecodable file name in a message must not keep the message from arriving."""
    assert failure(LoadError("no such file: \udcff.gguf")).message == "no such file: \\udcff.gguf"


def test_every_error_of_a_command_becomes_a_failure_with_its_traceback():
    """SystemExit of some library included."""

    def leave(_plan):
        raise SystemExit("bye")

    host = Host(find_engine=leave)
    found = host.answer(Open(plan=scripted_plan()))
    assert found.failure is not None
    assert found.failure.kind == "SystemExit"
    assert "test_host.py" in found.failure.traceback


class Recorder:
    def __init__(self):
        self.frames = []

    def send_frame(self, data, **_timeout):
        self.frames.append(data)


def test_a_result_that_cannot_be_encoded_is_answered_with_a_failure():
    """An engine that returns a foreign value gets an error in its test; its worker lives on."""
    wire = Recorder()
    loop._send(wire, Reply(rank=0, result=object()))
    assert b"cannot be sent" in wire.frames[0]
    assert WorkerError.__name__.encode() in wire.frames[0]


def test_a_server_gets_the_program_of_its_generator():
    """Where the workload has one."""
    programs = []

    class Serving(Plain):
        def serve(self, _workload, _repetition, program=""):
            programs.append(program)
            return ServingRun(trace=ServingTrace(requests=()))

    host = Host(find_engine=lambda _plan: Serving())
    host.handle(Open(plan=scripted_plan()))
    host.handle(structs.replace(OPTIONAL["serve"], program="bin/aiperf"))
    assert programs == ["bin/aiperf"]


def test_the_scripted_engine_serves_through_the_host():
    """In virtual time: every request is answered."""
    host = Host()
    host.handle(Open(plan=scripted_plan()))
    assert len(host.handle(OPTIONAL["serve"]).run.trace.requests) == 1
