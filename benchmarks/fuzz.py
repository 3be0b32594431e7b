"""Inputs of every kind, mutated: each is taken, or refused by an error of ours, and nothing else.

    python benchmarks/fuzz.py -n 100000 [--seed 0] [--only TARGET …]

Each target reads one kind of input: markers, options, ini files, URLs, files of a project, prompts,
a server's stream, wire frames, lease tickets, spools, imports, records, results of generators.
Inputs are sound examples that are cut, doubled, spliced with each other and with what breaks
readers: NUL, halves of characters, huge and odd numbers, deep nesting, long words, control
sequences. Prints a line a target, and each exception that is none of ours once, with its input;
exits 1 where there was one.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_llmperf.core import record_json
from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.devices import lease_files
from pytest_llmperf.engines.scripted.options import parse as parse_script
from pytest_llmperf.engines.server.generators import _NOT_READ as NOT_READ
from pytest_llmperf.engines.server.generators import aiperf, guidellm
from pytest_llmperf.engines.server.options import options_refusal
from pytest_llmperf.engines.server.presets import ANY
from pytest_llmperf.engines.server.stream import BadStream, answer, parse_openai, parse_tgi
from pytest_llmperf.errors import LlmperfError
from pytest_llmperf.gate.calibration import FILE as CALIBRATIONS
from pytest_llmperf.gate.calibration import read_calibrations
from pytest_llmperf.gate.waivers import read_waivers
from pytest_llmperf.history import accept
from pytest_llmperf.history.address import parse as parse_address
from pytest_llmperf.history.spool import Spool
from pytest_llmperf.history.store import open_store
from pytest_llmperf.history.transfer import import_file
from pytest_llmperf.plain_text import shown
from pytest_llmperf.session.declare import declaration
from pytest_llmperf.settings.given import check_given
from pytest_llmperf.settings.limits import parse_gate
from pytest_llmperf.settings.options import OPTIONS
from pytest_llmperf.settings.project import find_project, native_text
from pytest_llmperf.strategies import parse as parse_strategy
from pytest_llmperf.wire.frames import frame, parent_end, worker_end
from pytest_llmperf.wire.messages import Failure, Heartbeat, Hello, Reply
from pytest_llmperf.workloads import PromptSet, TaskSet, Traffic

TESTS = Path(__file__).resolve().parent.parent / "tests"
NASTY = (
    b"\0",
    b"\xff\xfe",
    b"\xed\xa0\xbd",
    b"\\ud83d",
    b"1e400",
    b"-1e-400",
    b"9" * 5000,
    b"NaN",
    b"-Infinity",
    b"null",
    b"[" * 3000,
    b'{"a":' * 3000,
    b"\x1b[31m\r::error::x",
    b"a" * 20_000,
    b"../../../../etc/passwd",
    b"%00%s%n${x}{{x}}",
    b"\xe2\x80\xa8",
    b"0001-01-01T00:00:00+14:00",
    b"-7",
    b"=",
    b"+",
    b":",
    b"//",
    b"@",
    b"\n",
    b"''\"\"",
)


@dataclass
class Target:
    """One kind of input: what reads it, sound examples, and errors that its reader documents."""

    name: str
    read: Callable[[bytes, Path], object]
    examples: Sequence[bytes]
    allowed: tuple[type[Exception], ...] = ()
    n: int = 0
    refused: int = 0
    faults: dict[str, str] = field(default_factory=dict)


def mutated(draw: random.Random, examples: Sequence[bytes]) -> bytes:
    """Return an example after some mutations; now and then as it is."""
    value = draw.choice(examples)
    for _ in range(draw.choice((0, 1, 1, 2, 3, 6))):
        value = _mutated_once(draw, value, examples)
    return value[:200_000]


def _mutated_once(draw: random.Random, value: bytes, examples: Sequence[bytes]) -> bytes:
    start, end = sorted(draw.randrange(len(value) + 1) for _ in range(2))
    other = draw.choice(examples)
    mutations = (
        lambda: value[:start] + draw.choice(NASTY) + value[end:],
        lambda: value[:start] + draw.choice(NASTY) + value[start:],
        lambda: value[:start] + bytes([draw.randrange(256)]) + value[start + 1 :],
        lambda: value[:start] + other[draw.randrange(len(other) + 1) :],
        lambda: value[:start] + value[end:],
        lambda: value[:end] + value[start:],
        lambda: value[:start],
    )
    return draw.choice(mutations)()


def text(data: bytes) -> str:
    """Return bytes as the command line gives them: what is no UTF-8 is a lone surrogate."""
    return data.decode("utf-8", "surrogateescape")


def file_of(data: bytes, folder: Path, name: str) -> Path:
    """Write a file of these bytes."""
    path = folder / name
    path.write_bytes(data)
    return path


def _marker(data: bytes, _folder: Path) -> object:
    try:
        value = json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        value = {text(data): text(data)}
    kwargs = value if isinstance(value, dict) else {"model": value}
    return declaration([((), {str(name): entry for name, entry in kwargs.items()})])


def _option(data: bytes, folder: Path) -> object:
    name, _, value = text(data).partition("=")
    names = [option.name for option in OPTIONS]
    known = name if name in names else names[len(data) % len(names)]
    given: Any = [value] if known == "python" else value
    return check_given({known: given}, folder)


def _strategy(data: bytes, _folder: Path) -> object:
    parsed = parse_strategy(text(data))
    model = ModelRef(name="m", kind="scripted", location="")
    return parsed.apply(LoadPlan(model=model, engine="scripted", device="cpu"))


def _server_options(data: bytes, _folder: Path) -> object:
    try:
        value = json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        value = {"url": text(data)}
    options = value if isinstance(value, dict) else {"url": value}
    model = ModelRef(name="m", kind="hub", location="m")
    plan = LoadPlan(
        model=model, engine="server", device="cpu", options=tuple(sorted(options.items()))
    )
    return options_refusal(plan, ANY)


def _ini(data: bytes, folder: Path) -> object:
    for name in ("pytest.ini", "pyproject.toml"):
        file = file_of(data, folder, name)
        with suppress(LlmperfError):
            native_text(file, "llmperf_budget")
            find_project(folder)
        file.unlink()
    return None


def _waivers(data: bytes, folder: Path) -> object:
    return read_waivers(file_of(data, folder, "llmperf-waivers.toml"))


def _calibrations(data: bytes, folder: Path) -> object:
    file_of(data, folder, CALIBRATIONS)
    return read_calibrations(folder)


def _accepted(data: bytes, folder: Path) -> object:
    file_of(data, folder, accept.FILE)
    try:
        return accept.reviewed(folder)
    finally:
        (folder / accept.FILE).unlink()


def _stream(data: bytes, _folder: Path) -> object:
    cut = len(data) // 2
    for parse in (parse_openai, parse_tgi):
        with suppress(BadStream):
            answer([(1, data[:cut]), (2, data[cut:])], parse)
    return None


def _frames(data: bytes, _folder: Path) -> object:
    for make in (parent_end, worker_end):
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.setblocking(False)
            with suppress(BlockingIOError):
                theirs.send(data)
            wire = make(ours)
            try:
                while wire.receive(timeout_s=0) is not None:
                    pass
            except LlmperfError:
                pass
            finally:
                wire.close()
    return None


def _ticket(data: bytes, _folder: Path) -> object:
    return lease_files._decoded(data, Path("000000000001.ticket"))  # noqa: SLF001


def _spool(data: bytes, folder: Path) -> object:
    path = file_of(data, folder, "spool.jsonl")
    spool = Spool(path)
    spool.send(lambda _entries: None)
    for left in folder.glob("spool.jsonl*"):
        left.unlink()
    return None


def _import(data: bytes, folder: Path) -> object:
    path = file_of(data, folder, "export.jsonl")
    with open_store("sqlite:///fuzz.db", folder=folder) as store:
        try:
            return import_file(store, folder, path)
        finally:
            (folder / accept.FILE).unlink(missing_ok=True)


def _generator(data: bytes, folder: Path) -> object:
    out = folder / "out"
    out.mkdir(exist_ok=True)
    file_of(data, out, "profile_export.jsonl")
    file_of(data, folder, "out.json")
    for read in (aiperf.read_traces, guidellm.read_traces):
        with suppress(*NOT_READ):
            read(folder)
    return None


def _lines_of(reader: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
    return lambda data, folder: reader(file_of(data, folder, "lines.jsonl"))


def targets() -> list[Target]:
    """Return every kind of input, with sound examples."""
    return [*_given(), *_files(), *_messages(), *_records()]


def _given() -> list[Target]:
    """Return what a user gives in tests and on the command line."""
    options = [f"{option.name}={option.default}".encode() for option in OPTIONS]
    options += [b"gate=throughput:5%", b"budget=20", b"store=sqlite:///a.db", b"gpus=0,1"]
    parts = [b"bf16+static-cache", b"lora:a+tp2", b"pruned:0.5", b"nf4"]
    server = [b'{"url":"http://u:p@[::1]:80/v1","timeout":5}']
    urls = [b"sqlite:///a/b.db", b"postgresql+psycopg://u:p@h:5432/db?sslmode=require"]
    return [
        Target("markers", _marker, [b'{"model":"m","budget":5,"strategies":["bf16","nf4"]}']),
        Target("options", _option, options),
        Target("strategies", _strategy, parts),
        Target("gates", lambda d, _: parse_gate(text(d)), [b"throughput=5%,ttft=0.1", b"warn"]),
        Target("scripts", lambda d, _: parse_script(text(d), ""), [b"ttft=5ms,fault=die@run3"]),
        Target("server options", _server_options, server),
        Target("store URLs", lambda d, folder: parse_address(text(d), folder), urls),
    ]


def _files() -> list[Target]:
    """Return files of a project."""
    waiver = (
        b'[[waiver]]\ntest = "a.py::t"\nmetric = "throughput"\nreason = "r"\nowner = "o"\n'
        b"expires = 2027-01-01\n"
    )
    rename = b'{"old":"a","new":"b","who":"w","why":"y","when":"2026-01-01T00:00:00+00:00"}\n'
    return [
        Target("ini files", _ini, [b"[pytest]\nllmperf_budget = 5\n", b"[tool.pytest]\na = 1.5\n"]),
        Target("waivers", _waivers, [waiver]),
        Target("calibrations", _calibrations, [b'[[calibrated]]\ntest = "t"\nfloor = 0.05\n']),
        Target("accepted changes", _accepted, [rename]),
        Target("prompts", _lines_of(PromptSet.from_jsonl), [b'{"prompt":"a"}\n{"text":"b"}\n']),
        Target("tasks", _lines_of(TaskSet.from_jsonl), [b'{"prompt":"a","answer":"b"}\n']),
        Target("traces", _lines_of(Traffic.from_jsonl), [b'{"timestamp":1.5,"input_length":3}\n']),
    ]


def _messages() -> list[Target]:
    """Return what servers, workers, generators and other sessions say."""
    stream = (
        b'data: {"choices":[{"text":"w1 ","finish_reason":null}]}\n\n'
        b'data: {"choices":[{"text":"w","finish_reason":"length"}],'
        b'"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\ndata: [DONE]\n\n'
    )
    tgi = b'data:{"token":{"text":"a","special":false},"details":{"generated_tokens":1}}\n\n'
    frames = [
        frame(Hello(rank=0, pid=1, python="3")),
        frame(Heartbeat(rank=0, doing="x")),
        frame(Reply(rank=0, failure=Failure(kind="LoadError", message="no"))),
    ]
    ticket = b'{"number":1,"wants":{"cpu":1.0},"n":1,"pid":1,"command":"c","holds":["cpu"]}'
    results = [b'{"benchmarks":[{"requests":{}}]}', b"{}\n"]
    message = b"http://a:b@c --api-key x\n::error::y"
    return [
        Target("streams", _stream, [stream, tgi]),
        Target("wire frames", _frames, frames),
        Target("lease tickets", _ticket, [ticket]),
        Target("generators' results", _generator, results),
        Target("messages", lambda d, _: shown(text(d)), [message]),
    ]


def _records() -> list[Target]:
    """Return what a history is made of."""
    sys.path.insert(0, str(TESTS))
    from support.history_records import record  # noqa: PLC0415 - records of the tests

    line = record_json.encode(record("a"))
    spooled = b'{"add":%s}\n{"outcome":{"id":"a","outcome":"PASS","claims":[]}}\n' % line
    lines = [line + b"\n", b'{"accepted":{"a":1}}\n' + line + b"\n"]
    return [
        Target("spools", _spool, [spooled]),
        Target("imports", _import, lines),
        Target("records", lambda d, _: record_json.decode(d), [line], (ValueError,)),
    ]


def fuzz(n: int, seed: int, only: Sequence[str] = ()) -> list[Target]:
    """Give each target its part of `n` inputs; return them with what they raised."""
    chosen = [target for target in targets() if not only or target.name in only]
    with tempfile.TemporaryDirectory() as place:
        for number, target in enumerate(chosen):
            folder = Path(place) / str(number)
            folder.mkdir()
            draw = random.Random(seed + number)  # noqa: S311 - the same inputs in every run
            _fuzz_one(target, n // len(chosen) + 1, draw, folder)
    return chosen


def _fuzz_one(target: Target, n: int, draw: random.Random, folder: Path) -> None:
    for _ in range(n):
        data = mutated(draw, target.examples)
        target.n += 1
        try:
            target.read(data, folder)
        except (LlmperfError, *target.allowed):
            target.refused += 1
        except Exception as error:  # noqa: BLE001 - what is looked for
            target.faults.setdefault(_place(error), f"{error!r:.200} for {data[:200]!r}")


def _place(error: Exception) -> str:
    """Return the class of an exception, and the last line of ours that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [entry for entry in frames if "pytest_llmperf" in entry.filename] or frames
    return f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"


def lines(chosen: Sequence[Target]) -> Iterator[str]:
    """Give a line a target, and one a fault."""
    for target in chosen:
        yield f"{target.name:20} {target.n:7} inputs {target.refused:7} refused"
        for place, detail in target.faults.items():
            yield f"    {place}: {detail}"
    n, n_faults = sum(t.n for t in chosen), sum(len(t.faults) for t in chosen)
    yield f"{n} inputs, {n_faults} kinds of exception that are not ours"


def main() -> int:
    """Print what was raised; the exit status is 1 where any was not ours."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=100_000, help="inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=())
    options = parser.parse_args()
    began_s = time.monotonic()
    chosen = fuzz(options.n, options.seed, options.only)
    print(*lines(chosen), sep="\n")
    print(f"took {time.monotonic() - began_s:.0f} s")
    return int(any(target.faults for target in chosen))


if __name__ == "__main__":
    sys.exit(main())
