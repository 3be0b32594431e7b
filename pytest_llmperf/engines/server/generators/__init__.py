"""Load generators of other projects behind `Serve`.

This is what they are given, how they are run, and what of their files is read. They run as a
process of their own interpreter. What they keep of a request (when it was due and sent, its first
and its last token, its counts) becomes a trace like that of our own client, and every quantity is
reduced from that by our own definitions.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_llmperf.core.trace import RequestTrace
from pytest_llmperf.engines.server.generators import aiperf, guidellm
from pytest_llmperf.engines.server.generators.job import Job
from pytest_llmperf.engines.server.generators.private import command
from pytest_llmperf.errors import InvalidRun, UsageError

__all__ = [
    "GENERATORS",
    "Generator",
    "Job",
    "environment",
    "find_generator",
    "generate",
    "version_of",
]

_NOT_READ = (
    OSError,
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
    AttributeError,
    RecursionError,
)
_TAIL_BYTES = 2**16
_TAIL = 20
_INSTALL = (
    "It pins much of its own: give it an environment (python -m venv X; X/bin/pip install {})."
)


@dataclass(frozen=True, kw_only=True)
class Generator:
    """One of them. `prepare` writes its input and gives its arguments, `read` reads what it left.

    `ids`: prompts may be token ids. `gaps`: it keeps the time of every message, and not the first
    and the last alone. `unset` are environment variables that it must not see.
    """

    name: str
    prepare: Callable[[Job], list[str]]
    read: Callable[[Path], tuple[RequestTrace, ...]]
    ids: bool
    gaps: bool
    unset: tuple[str, ...] = ()


async def generate(generator: Generator, job: Job) -> tuple[RequestTrace, ...]:
    """Run it to its end. Its log and files stay in the folder.

    Cancelled, it ends with all that it started.

    Raises:
        InvalidRun: it failed (with the tail of its log), or what it left cannot be read or lacks
            requests.
    """
    log = job.folder / "log.txt"
    code = await _run(generator, job, log)
    if code:
        raise InvalidRun(f"{generator.name} ended with exit code {code}. {_tail(log)}")
    traces = _read(generator, job, log)
    if len(traces) < len(job.bodies):
        raise InvalidRun(
            f"{generator.name} kept {len(traces)} of {len(job.bodies)} requests. {_tail(log)}"
        )
    return traces


def _read(generator: Generator, job: Job, log: Path) -> tuple[RequestTrace, ...]:
    try:
        return generator.read(job.folder)
    except _NOT_READ as error:
        raise InvalidRun(_unreadable(generator, error, log)) from error


def _unreadable(generator: Generator, error: Exception, log: Path) -> str:
    reason = f"{type(error).__name__}: {error}"
    return f"what {generator.name} left cannot be read ({reason}). {_tail(log)}"


async def _run(generator: Generator, job: Job, log: Path) -> int:
    """Return the exit code of the program. Whatever it started is ended with it."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command(job, generator.prepare(job)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=job.folder,
            env=environment(generator, os.environ),
            start_new_session=True,
        )
        try:
            return await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            job.secret_file.unlink(missing_ok=True)


def environment(generator: Generator, own: Mapping[str, str]) -> dict[str, str]:
    """Return our own environment for a generator, with telemetry off.

    What the generator cannot stand is left out.
    """
    harmless = {name: value for name, value in own.items() if name not in generator.unset}
    return harmless | {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}


def find_generator(name: str, python: str | None) -> Path:
    """Return its command.

    It stands beside the interpreter that is named, else beside this one or on the PATH. Raises
    UsageError.
    """
    return _installed(name) if python is None else _beside(name, python)


def _installed(name: str) -> Path:
    program = shutil.which(name, path=_search_path())
    if program is None:
        raise UsageError(_not_installed(name))
    return Path(program)


def _search_path() -> str:
    """Return the PATH with the folder of this interpreter in front."""
    own_folder = Path(sys.executable).parent
    return f"{own_folder}{os.pathsep}{os.environ.get('PATH', '')}"


def _not_installed(name: str) -> str:
    return (
        f"Serve(generator={name!r}): {name} is not installed, "
        f"neither beside {sys.executable} nor on the PATH. {_INSTALL.format(name)} "
        f"Then: --llmperf-python {name}=/path/to/its/python."
    )


def _beside(name: str, python: str) -> Path:
    program = Path(python).parent / name
    if os.access(program, os.X_OK):
        return program
    raise UsageError(_none_beside(name, python))


def _none_beside(name: str, python: str) -> str:
    return (
        f"--llmperf-python {name}={python}: there is no {name} beside that interpreter. "
        f"{_INSTALL.format(name)}"
    )


def version_of(name: str, program: Path) -> str:
    """Return the version that its installation says, or an empty text."""
    folders = program.parent.parent.glob(f"lib/python3*/site-packages/{name}-*.dist-info")
    return next(map(_version_in, folders), "")


def _version_in(dist_info: Path) -> str:
    """Return the version in the name of a package's folder of metadata."""
    return dist_info.name.removesuffix(".dist-info").partition("-")[2]


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = file.read(_TAIL_BYTES).decode("utf-8", "replace").splitlines()[-_TAIL:]
    return f"Last lines of {log}:\n" + "\n".join(lines)


OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""With one of them aiperf 0.13 takes a tokenizer's folder for the name of a repository."""

GENERATORS = {
    row.name: row
    for row in (
        Generator(
            name="aiperf",
            prepare=aiperf.prepare,
            read=aiperf.read_traces,
            ids=True,
            gaps=True,
            unset=OFFLINE,
        ),
        Generator(
            name="guidellm",
            prepare=guidellm.prepare,
            read=guidellm.read_traces,
            ids=False,
            gaps=False,
        ),
    )
}
