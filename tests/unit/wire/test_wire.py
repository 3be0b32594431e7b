"""Every message survives the wire; cut, corrupt and oversized frames are errors that say so."""

from __future__ import annotations

import socket
import threading
import types
import typing
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmperf.errors import WorkerError
from pytest_llmperf.wire import commands, frames, messages, results
from pytest_llmperf.wire.commands import AnyCommand, MakeReference, checked, result_type
from pytest_llmperf.wire.frames import Wire, WireClosed, WireError, frame, parent_end, worker_end
from pytest_llmperf.wire.messages import Failure, FromWorker, Heartbeat, Hello, Reply
from pytest_llmperf.wire.results import Result
from pytest_llmperf.workloads import (
    Batch,
    Decode,
    Prefill,
    PromptSet,
    Serve,
    Slo,
    Task,
    TaskSet,
    Traffic,
)

SCALARS = {
    int: st.integers(-(2**63), 2**64 - 1),
    float: st.floats(allow_nan=False),
    str: st.text(max_size=20),
    bool: st.booleans(),
    type(None): st.none(),
    Any: st.none() | st.booleans() | st.text(max_size=5) | st.integers(0, 9),
}
PROMPTS = st.builds(
    PromptSet,
    name=SCALARS[str],
    seed=SCALARS[int],
    texts=st.lists(st.text(max_size=9), max_size=3).map(tuple),
)
TASKS = st.lists(
    st.builds(
        Task,
        prompt=SCALARS[str],
        answer=SCALARS[str],
        choices=st.lists(st.text(max_size=9), max_size=3).map(tuple),
    ),
    min_size=1,
    max_size=3,
).map(tuple)
COUNTS = st.integers(1, 10**6)
SPECIAL = {
    PromptSet: PROMPTS,
    TaskSet: st.builds(
        TaskSet, name=SCALARS[str], items=TASKS, chat=st.booleans(), max_new_tokens=COUNTS
    ),
    Prefill: st.builds(Prefill, batch=COUNTS, prompt_tokens=COUNTS, prompts=PROMPTS),
    Batch: st.builds(
        Batch,
        prompts=PROMPTS,
        max_new_tokens=COUNTS.map(lambda n: n + 1),
        requests=COUNTS,
        batch=COUNTS,
    ),
    Slo: st.builds(Slo, ttft=st.floats(0.001, 10)),
    Serve: st.builds(
        Serve,
        prompts=PROMPTS,
        max_new_tokens=COUNTS,
        rate=st.floats(0.1, 100),
        requests=COUNTS,
        traffic=st.none()
        | st.builds(Traffic, name=SCALARS[str], timestamps_s=st.tuples(st.floats(0, 9))),
        slo=st.none() | st.builds(Slo, ttft=st.floats(0.001, 10)),
    ),
    Decode: st.builds(
        Decode,
        batch=COUNTS,
        prompt_tokens=COUNTS,
        new_tokens=COUNTS.map(lambda n: n + 1),
        prompts=PROMPTS,
    ),
}


def values(kind: Any) -> st.SearchStrategy:
    """Values of a type as it is annotated in a message."""
    if kind in SCALARS or kind in SPECIAL:
        return (SCALARS | SPECIAL)[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([values(each) for each in arguments])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=2)
    if origin is tuple:
        many = arguments[-1] is Ellipsis
        return (
            st.lists(values(arguments[0]), max_size=2).map(tuple)
            if many
            else st.tuples(*map(values, arguments))
        )
    hints = typing.get_type_hints(kind)
    return st.deferred(
        lambda: st.builds(kind, **{name: values(hints[name]) for name in kind.__struct_fields__})
    )


@pytest.fixture
def pair():
    """The session's end and the worker's end of one connection."""
    ours, theirs = socket.socketpair()
    ends = parent_end(ours), worker_end(theirs)
    yield ends
    for end in ends:
        end.close()


def through(message: msgspec.Struct, sender: Wire, receiver: Wire) -> Any:
    """Send in a thread, since a message may be larger than the socket's buffer."""
    thread = threading.Thread(target=sender.send, args=(message,), kwargs={"timeout_s": 10})
    thread.start()
    received = receiver.receive(timeout_s=10)
    thread.join()
    return received


@pytest.mark.parametrize("kind", typing.get_args(AnyCommand), ids=lambda kind: kind.__name__)
def test_every_command_survives_the_way_to_the_worker(kind):
    """What the worker receives equals what was sent, of the same class."""

    @settings(max_examples=25, deadline=None)
    @given(message=values(kind))
    def check(message):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            received = through(message, parent_end(ours), worker_end(theirs))
        assert type(received) is kind
        assert received == message

    check()


@pytest.mark.parametrize(
    "kind", [Hello, Heartbeat, Failure, *typing.get_args(Result)], ids=lambda kind: kind.__name__
)
def test_every_answer_survives_the_way_to_the_session(kind):
    """Results and failures inside a reply, the other messages by themselves."""

    @settings(max_examples=25, deadline=None)
    @given(message=values(kind), rank=st.integers(0, 7))
    def check(message, rank):
        if kind in typing.get_args(Result):
            message = Reply(rank=rank, result=message)
        elif kind is Failure:
            message = Reply(rank=rank, failure=message)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert through(message, worker_end(theirs), parent_end(ours)) == message

    check()


def test_the_round_trips_cover_every_message():
    """A message that is added to the protocol is in one of the unions, and so in these tests."""
    structs = {
        cls
        for module in (commands, results, messages)
        for cls in vars(module).values()
        if isinstance(cls, type)
        and issubclass(cls, msgspec.Struct)
        and cls.__module__ == module.__name__
    }
    assert structs - {Failure, commands.Command} == {
        *typing.get_args(AnyCommand),
        *typing.get_args(FromWorker),
        *typing.get_args(Result),
    }


@pytest.mark.parametrize(
    "command", typing.get_args(AnyCommand), ids=lambda command: command.__name__
)
def test_every_command_names_results_that_can_travel(command):
    """One result, or two of which one comes."""
    expected = result_type(command)
    assert {*(typing.get_args(expected) or (expected,))} <= {*typing.get_args(Result)}


def test_a_result_of_another_command_is_an_error_that_names_both():
    """It comes from a worker of another version."""
    close, run_test = commands.Close(), commands.RunTest(nodeid="t", next_nodeid=None)
    assert checked(results.Closed(), close) == results.Closed()
    assert checked(results.Ended(outcome="passed"), run_test) == results.Ended(outcome="passed")
    with pytest.raises(WorkerError, match="Close was answered with Ended, not with Closed"):
        checked(results.Ended(outcome="passed"), close)
    with pytest.raises(WorkerError, match="with Closed, not with Reached or Ended"):
        checked(results.Closed(), run_test)


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.text(max_size=50), min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, 40), min_size=1),
)
def test_frames_may_arrive_in_any_pieces(texts, sizes):
    """Cutting the stream at any bytes gives the same messages in the same order, and none early."""
    sent = [Heartbeat(rank=0, doing=text) for text in texts]
    stream = b"".join(map(frame, sent))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        end, received, start = parent_end(ours), [], 0
        while start < len(stream):
            size = sizes[start % len(sizes)]
            theirs.sendall(stream[start : start + size])
            start += size
            while (message := end.receive(timeout_s=0)) is not None:
                received.append(message)
            assert len(b"".join(map(frame, received))) <= start
        assert received == sent


def test_a_large_message_is_sent_whole(pair):
    """Far more than the socket's buffer holds."""
    parent, worker = pair
    message = MakeReference(
        prompts=PromptSet(name="long", texts=("x" * 5_000_000,)), new_tokens=1, batch=1, path="/p"
    )
    assert through(message, parent, worker) == message


def test_threads_that_share_a_socket_never_mix_their_frames(pair):
    """Heartbeats and replies are sent by two threads.

    Here by four, with frames larger than one write.
    """
    parent, worker = pair
    texts = ["a" * 100_000, "b" * 90_001, "c" * 7, "d" * 300_000]
    threads = [
        threading.Thread(
            target=lambda text=text: [
                worker.send(Heartbeat(rank=0, doing=text), timeout_s=30) for _ in range(10)
            ]
        )
        for text in texts
    ]
    for thread in threads:
        thread.start()
    received = [parent.receive(timeout_s=30).doing for _ in range(40)]
    for thread in threads:
        thread.join()
    assert sorted(received) == sorted(texts * 10)


def test_nothing_to_receive_is_none_and_loses_nothing(pair):
    """A timeout in the middle of a frame keeps what came."""
    parent, worker = pair
    data = frame(Heartbeat(rank=1, doing="Run 3"))
    assert parent.receive(timeout_s=0) is None
    worker._socket.send(data[:5])
    assert parent.receive(timeout_s=0.01) is None
    worker._socket.send(data[5:])
    assert parent.receive(timeout_s=5) == Heartbeat(rank=1, doing="Run 3")


def test_a_receiver_that_takes_nothing_is_a_timeout(pair):
    """Sending is bounded: the buffer fills, and the rest is not waited for."""
    parent, _ = pair
    large = MakeReference(
        prompts=PromptSet(name="long", texts=("x" * 5_000_000,)), new_tokens=1, batch=1, path="/p"
    )
    with pytest.raises(TimeoutError, match=r"bytes were not taken in 0\.05 s"):
        parent.send(large, timeout_s=0.05)


@pytest.mark.parametrize(
    ("stream", "error", "reason"),
    [
        (b"", WireClosed, "closed the connection"),
        (b"\0\0\0\x09abc", WireClosed, "in the middle of a message"),
        (b"\x7f\xff\xff\xff", WireError, "stream is corrupt: a frame of 2147483647 bytes"),
        (b"\0\0\0\x04text", WireError, r"does not decode.*74 65 78 74"),
        (b"\0\0\0\x00", WireError, "does not decode"),
        (frame(Hello(rank=0, pid=1, python="3")), WireError, "does not decode"),
    ],
)
def test_a_broken_stream_is_named(pair, stream, error, reason):
    """Ends, cuts, impossible lengths, junk, and a message that only the other side understands."""
    parent, worker = pair
    parent._socket.sendall(stream)
    parent.close()
    with pytest.raises(error, match=reason):
        worker.receive(timeout_s=5)


def test_a_message_past_the_limit_is_refused_before_it_is_sent(monkeypatch):
    """The sender's error names the message."""
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 100)
    with pytest.raises(
        WireError, match=r"a Heartbeat cannot be sent: a frame of \d+ bytes; the limit is 100"
    ):
        frame(Heartbeat(rank=0, doing="x" * 101))


@pytest.mark.parametrize("value", [object(), "\ud800", 2**70])
def test_what_msgpack_cannot_carry_is_an_error_of_the_sender(value):
    """Foreign objects, lone surrogates and huge integers."""
    with pytest.raises(WireError, match="a Failure cannot be sent"):
        frame(Failure(kind="X", message=value))
