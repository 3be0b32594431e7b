"""Which tests no lane ever runs: each lane is collected, as if on its own machine, and what it would run is put together."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from pytest_llmperf.commands.audit_collector import REPORT
from pytest_llmperf.devices.inventory import SIMULATED, simulated
from pytest_llmperf.errors import UsageError
from pytest_llmperf.plugin.gpu_tests import LANES

NOT_COLLECTED = "not collected"
_LANE = re.compile(r"([\w.-]+)\s*:\s*(?:\[([^\]]*)\]\s*)?(.*)")
_FINE = (0, 5)  # pytest's exit codes for a collection, and for an empty one
_TIMEOUT_S = 600


class Lane(Struct, frozen=True, kw_only=True):
    """A set of arguments that tests are run with, and the GPUs of the machine that it runs on ("2x141GB:NVIDIA H200:9.0")."""

    name: str
    arguments: tuple[str, ...]
    gpus: str = "0"


class Orphan(Struct, frozen=True, kw_only=True):
    """A test that no lane runs, and each lane's reason."""

    test: str
    reasons: dict[str, str]


class Audit(Struct, frozen=True, kw_only=True):
    """What the lanes run: the number of tests of each, of all tests that any of them or the project itself has, the rest."""

    lanes: dict[str, int]
    tests: int
    orphans: tuple[Orphan, ...]


def lanes_of(value: object) -> tuple[Lane, ...]:
    """The lanes of the ini file: lines `NAME: [GPUS] ARGUMENTS`.

    Raises UsageError for none, or for one that cannot be read.
    """
    lines = (
        value.splitlines()
        if isinstance(value, str)
        else list(value)
        if isinstance(value, list | tuple)
        else []
    )
    lanes = tuple(_lane(str(line).strip()) for line in lines if str(line).strip())
    if not lanes:
        raise UsageError(
            f"no lane is configured. Name them in the ini file, one a line, for example:\n{LANES} =\n"
            "    laptop: -m 'not nightly'\n    nightly: [2x141GB:NVIDIA H200:9.0] --llmperf-gpus=2",
        )
    names = [lane.name for lane in lanes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"{LANES}: lane {twice[0]!r} is there twice. Give each a name of its own.")
    return lanes


def audit(lanes: Sequence[Lane], root: Path) -> Audit:
    """Collect every lane, and the project without arguments.

    Raises UsageError for a lane that cannot be collected.
    """
    collected = {lane.name: collect(lane, root) for lane in lanes}
    everything = collect(Lane(name="without arguments", arguments=()), root)
    return compared(collected, everything)


def compared(collected: Mapping[str, Mapping[str, str]], everything: Mapping[str, str]) -> Audit:
    """What no lane runs, from what each says of each test: "" for one that it runs, else why it does not. Pure."""
    tests = list(
        dict.fromkeys([*everything, *(test for lane in collected.values() for test in lane)])
    )
    reasons = {
        test: {name: lane.get(test, NOT_COLLECTED) for name, lane in collected.items()}
        for test in tests
    }
    return Audit(
        lanes={
            name: sum(reason == "" for reason in lane.values()) for name, lane in collected.items()
        },
        tests=len(tests),
        orphans=tuple(
            Orphan(test=test, reasons=why) for test, why in reasons.items() if all(why.values())
        ),
    )


def collect(lane: Lane, root: Path) -> dict[str, str]:
    """Each test that the lane collects, and why it would not run ("" where it would).

    Nothing is run and nothing loaded.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.json"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "--collect-only",
            "-q",
            "-p",
            "pytest_llmperf.commands.audit_collector",
        ]
        environment = {**os.environ, SIMULATED: lane.gpus, REPORT: str(report)}
        environment.pop("CUDA_VISIBLE_DEVICES", None)
        # pytest, with the arguments of the project's own ini file.
        done = subprocess.run(  # noqa: S603
            [*command, *lane.arguments],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode not in _FINE:
            said = "\n".join([*done.stdout.splitlines()[-10:], *done.stderr.splitlines()[-10:]])
            raise UsageError(
                f"lane {lane.name!r} cannot be collected (exit code {done.returncode}):\n{said}"
            )
        return msgspec.json.decode(report.read_bytes(), type=dict[str, str])


def _lane(line: str) -> Lane:
    match = _LANE.fullmatch(line)
    if match is None:
        raise UsageError(
            f"{LANES}: {line!r} is not 'NAME: [GPUS] ARGUMENTS', for example 'nightly: [2x141GB] --llmperf-gpus=2'."
        )
    name, gpus, arguments = match.groups()
    simulated(gpus or "0")
    try:
        return Lane(name=name, gpus=gpus or "0", arguments=tuple(shlex.split(arguments)))
    except ValueError as error:
        raise UsageError(
            f"{LANES}: the arguments of lane {name!r}, {arguments!r}, cannot be split: {error}."
        ) from error
