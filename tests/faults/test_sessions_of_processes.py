"""Which processes work for the same session, seen from a worker."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack

from pytest_llmperf.processes import TOKEN

WAIT = "import sys; sys.stdin.read()"
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, '-c', {WAIT!r}])
print(child.pid, flush=True)
child.wait()
"""
ASK = """
import sys
from pytest_llmperf.processes import of_this_session
print([of_this_session(int(pid)) for pid in sys.argv[1:]])
"""


def test_workers_of_one_session_know_each_other_and_nobody_else():
    """By the start of their tokens, also what they started.

    Not another session's, nor a process without one.
    """
    with ExitStack() as stack:

        def start(token: str, program: str = WAIT) -> subprocess.Popen[str]:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            process = subprocess.Popen(
                [sys.executable, "-c", program], env=environ(token), text=True, **pipes
            )
            stack.callback(process.stdin.close)
            return stack.enter_context(process)

        sibling, other, nobody, parent = (
            start("ours.2"),
            start("theirs.1"),
            start(""),
            start("ours.3", PARENT),
        )
        grandchild = int(parent.stdout.readline())
        asked = [sibling.pid, grandchild, other.pid, nobody.pid, 2**22 + 1]
        assert said("ours.1", asked) == "[True, True, False, False, False]"
        assert said("", asked) == "[False, False, False, False, False]"


def environ(token: str) -> dict[str, str]:
    """Ours, as a worker with that token has it."""
    return {name: value for name, value in os.environ.items() if name != TOKEN} | (
        {TOKEN: token} if token else {}
    )


def said(token: str, pids: list[int]) -> str:
    """What a process with that token says of these."""
    command = [sys.executable, "-c", ASK, *map(str, pids)]
    return subprocess.run(
        command, env=environ(token), check=True, capture_output=True, text=True
    ).stdout.strip()
