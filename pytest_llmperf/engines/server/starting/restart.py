"""A server at a URL, started anew by the command of whoever runs it."""

from __future__ import annotations

import subprocess

from pytest_llmperf.errors import LoadError

_TAIL_LINES = 10


def restart(command: str, timeout_s: float) -> None:
    """Run the shell command that starts the server anew; nothing without one.

    It returns once the old process is gone. Raises LoadError where it fails, with the end of what
    it wrote.
    """
    if not command:
        return
    try:
        process = subprocess.run(  # noqa: S602 - the user's own command
            command,
            shell=True,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as error:
        raise LoadError(
            f"option restart = {command!r}: it did not end within {timeout_s:g} s."
        ) from error
    if process.returncode != 0:
        tail = "\n".join(process.stdout.splitlines()[-_TAIL_LINES:])
        raise LoadError(
            f"option restart = {command!r} ended with exit code {process.returncode}:\n{tail}"
        )
