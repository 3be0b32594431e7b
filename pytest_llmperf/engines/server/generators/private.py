"""A command whose arguments nobody else can read.

Every user of a host can read the command line of a process. A program that takes a key there alone
is started by its own interpreter, which takes the arguments from a file that it removes.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from pytest_llmperf.engines.server.generators.job import Job, write_private

_LAUNCHER = """
import json, os, runpy, sys
program, file = sys.argv[1:]
with open(file, encoding="utf-8") as stream:
    sys.argv = [program, *json.load(stream)]
os.unlink(file)
sys.path[0] = os.path.dirname(program)
runpy.run_path(program, run_name="__main__")
"""


def command(job: Job, arguments: Sequence[str]) -> list[str]:
    """Return the command that runs a job's program with these arguments.

    The key of the job is in no word of it. Raises OSError.
    """
    if not job.api_key or job.api_key not in arguments:
        return [str(job.program), *arguments]
    write_private(job.secret_file, json.dumps(list(arguments)).encode())
    file = str(job.secret_file.absolute())
    return [_interpreter(job.program), "-c", _LAUNCHER, str(job.program.absolute()), file]


def _interpreter(program: Path) -> str:
    """Return the interpreter that a script names in its first line, else the one beside it."""
    with program.open("rb") as stream:
        words = shlex.split(stream.readline(4096).decode("utf-8", "replace")[2:].strip() or "-")
    is_python = Path(words[0]).name.startswith("python")
    return words[0] if is_python else str(program.with_name("python"))
