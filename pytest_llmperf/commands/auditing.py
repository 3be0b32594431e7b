"""Which tests no lane ever runs.

Each lane is collected as if on its own machine, and what it would run is put together.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import msgspec
from msgspec import Struct

from pytest_llmperf.commands.audit_collector import REPORT
from pytest_llmperf.devices.inventory import SIMULATED, simulated
from pytest_llmperf.errors import UsageError
from pytest_llmperf.plugin.gpu_tests import LANES

NOT_COLLECTED = "not collected"
_LANE = re.compile(r"([\w.-]+)\s*:\s*(?:\[([^\]]*)\]\s*)?(.*)")
_COLLECT = ("-m", "pytest", "--collect-only", "-q", "-p", "pytest_llmperf.commands.audit_collector")
_FINE = (0, 5)  # pytest's exit codes for a collection, and for an empty one
_TIMEOUT_S = 600
_TAIL_LINES = 10
_NO_LANE = (
    "no lane is configured. Name them in the ini file, one a line, for example:\n"
    f"{LANES} =\n"
    "    laptop: -m 'not nightly'\n    nightly: [2x141GB:NVIDIA H200:9.0] --llmperf-gpus=2"
)


class Lane(Struct, frozen=True, kw_only=True):
    """Arguments that tests are run with, and the GPUs of the machine that they run on.

    GPUs are written as "2x141GB:NVIDIA H200:9.0".
    """

    name: str
    arguments: tuple[str, ...]
    gpus: str = "0"


_WITHOUT_ARGUMENTS = Lane(name="without arguments", arguments=())


class Orphan(Struct, frozen=True, kw_only=True):
    """A test that no lane runs, and each lane's reason."""

    test: str
    reasons: dict[str, str]


class Audit(Struct, frozen=True, kw_only=True):
    """How many tests each lane runs, of how many that any lane or the project has.

    `orphans` are those that none runs.
    """

    lanes: dict[str, int]
    tests: int
    orphans: tuple[Orphan, ...]


def lanes_of(value: object) -> tuple[Lane, ...]:
    """The lanes of the ini file: lines `NAME: [GPUS] ARGUMENTS`.

    Raises UsageError for none, or for one that cannot be read.
    """
    lanes = tuple(map(_lane, _lines(value)))
    if not lanes:
        raise UsageError(_NO_LANE)
    _require_own_names(lanes)
    return lanes


def _require_own_names(lanes: Sequence[Lane]) -> None:
    repeated = _repeated_names(lanes)
    if repeated:
        raise UsageError(
            f"{LANES}: lane {repeated[0]!r} is there twice. Give each a name of its own."
        )


def _repeated_names(lanes: Sequence[Lane]) -> list[str]:
    names = [lane.name for lane in lanes]
    return sorted(name for name in names if names.count(name) > 1)


def _lines(value: object) -> list[str]:
    """The lines of a list of the ini file, as text or as a list, without empty ones."""
    lines = (str(entry).strip() for entry in _entries(value))
    return [line for line in lines if line]


def _entries(value: object) -> Sequence[object]:
    if isinstance(value, str):
        return value.splitlines()
    return value if isinstance(value, list | tuple) else ()


def audit(lanes: Sequence[Lane], root: Path) -> Audit:
    """Collect every lane, and the project without arguments.

    Raises UsageError for a lane that cannot be collected.
    """
    collected = {lane.name: collect(lane, root) for lane in lanes}
    everything = collect(_WITHOUT_ARGUMENTS, root)
    return compared(collected, everything)


def compared(collected: Mapping[str, Mapping[str, str]], everything: Mapping[str, str]) -> Audit:
    """What no lane runs. Pure.

    Each lane says of each test why it does not run it, "" where it does.
    """
    tests = dict.fromkeys(chain(everything, *collected.values()))
    counts = {name: list(lane.values()).count("") for name, lane in collected.items()}
    orphans = tuple(_orphans(tests, collected))
    return Audit(lanes=counts, tests=len(tests), orphans=orphans)


def _orphans(tests: Iterable[str], collected: Mapping[str, Mapping[str, str]]) -> Iterator[Orphan]:
    """The tests that each lane has a reason not to run."""
    for test in tests:
        reasons = _reasons(test, collected)
        if all(reasons.values()):
            yield Orphan(test=test, reasons=reasons)


def _reasons(test: str, collected: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    return {name: lane.get(test, NOT_COLLECTED) for name, lane in collected.items()}


def collect(lane: Lane, root: Path) -> dict[str, str]:
    """Each test that the lane collects, and why it would not run ("" where it would).

    Nothing is run and nothing loaded.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.json"
        finished = _run_collection(lane, root, report)
        if finished.returncode not in _FINE:
            raise UsageError(
                f"lane {lane.name!r} cannot be collected (exit code {finished.returncode}):\n"
                f"{_tails(finished)}"
            )
        return msgspec.json.decode(report.read_bytes(), type=dict[str, str])


def _run_collection(lane: Lane, root: Path, report: Path) -> subprocess.CompletedProcess[str]:
    # pytest, with the arguments of the project's own ini file.
    return subprocess.run(  # noqa: S603
        [sys.executable, *_COLLECT, *lane.arguments],
        cwd=root,
        env=_environment(lane, report),
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_S,
        stdin=subprocess.DEVNULL,
    )


def _environment(lane: Lane, report: Path) -> dict[str, str]:
    """The environment of the lane's machine: its GPUs, none of them hidden."""
    environment = {**os.environ, SIMULATED: lane.gpus, REPORT: str(report)}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    return environment


def _tails(finished: subprocess.CompletedProcess[str]) -> str:
    """The last lines of both outputs."""
    return "\n".join(
        [*finished.stdout.splitlines()[-_TAIL_LINES:], *finished.stderr.splitlines()[-_TAIL_LINES:]]
    )


def _lane(line: str) -> Lane:
    name, gpus, arguments = _parts(line)
    simulated(gpus)
    return Lane(name=name, gpus=gpus, arguments=_split(name, arguments))


def _parts(line: str) -> tuple[str, str, str]:
    """The name, the GPUs and the arguments of a lane's line."""
    name, gpus, arguments = _match(line).groups()
    return name, gpus or "0", arguments


def _match(line: str) -> re.Match[str]:
    match = _LANE.fullmatch(line)
    if match is None:
        raise UsageError(_no_lane_line(line))
    return match


def _no_lane_line(line: str) -> str:
    return (
        f"{LANES}: {line!r} is not 'NAME: [GPUS] ARGUMENTS', "
        "for example 'nightly: [2x141GB] --llmperf-gpus=2'."
    )


def _split(name: str, arguments: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(arguments))
    except ValueError as error:
        raise UsageError(
            f"{LANES}: the arguments of lane {name!r}, {arguments!r}, cannot be split: {error}."
        ) from error
