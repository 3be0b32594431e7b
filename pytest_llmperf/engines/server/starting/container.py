"""A server that runs from a container image, by docker or podman on this host.

It has the host's network, so that it listens where every server does, and reads the model's files
where they lie. It is ended by its name: the client that started it is no parent of its processes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_llmperf.errors import UsageError

RUNTIME = "LLMPERF_CONTAINER"
"""Names the container program, where it is neither docker nor podman on the PATH."""

_KNOWN = ("docker", "podman")
_INSPECT_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Container:
    """One container: the program that runs it, its image, its name, and more arguments."""

    runtime: str
    image: str
    name: str
    arguments: tuple[str, ...] = ()

    def command(
        self,
        words: Sequence[str],
        *,
        environment: Mapping[str, str],
        files: Sequence[Path],
        gpus: str,
    ) -> list[str]:
        """Return the command that runs `words` in it; `gpus` are indices or UUIDs, "" for none."""
        program, *arguments = words
        return [
            self.runtime,
            "run",
            "--rm",
            "--init",
            f"--name={self.name}",
            "--network=host",
            *(f"--volume={path}:{path}:ro" for path in files),
            *(f"--env={name}={value}" for name, value in environment.items()),
            *((f'--gpus="device={gpus}"',) if gpus else ()),
            *self.arguments,
            f"--entrypoint={program}",
            self.image,
            *arguments,
        ]

    @property
    def removal(self) -> tuple[str, ...]:
        """The command that ends and removes it, whether it runs or not."""
        return (self.runtime, "rm", "--force", self.name)

    def image_id(self) -> str:
        """Return the hash of its image; "" where the runtime does not know it."""
        command = (self.runtime, "image", "inspect", "--format={{.Id}}", self.image)
        try:
            inspected = subprocess.run(  # noqa: S603 - the user's own container program
                command, capture_output=True, text=True, timeout=_INSPECT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return inspected.stdout.strip() if inspected.returncode == 0 else ""


def container(image: str, arguments: Sequence[str]) -> Container:
    """Return a container of an image. Raises UsageError where nothing here runs containers."""
    name = f"llmperf-{os.getpid()}-{os.urandom(4).hex()}"
    return Container(runtime=_runtime(image), image=image, name=name, arguments=tuple(arguments))


def _runtime(image: str) -> str:
    named = os.environ.get(RUNTIME, "")
    for program in (named,) if named else _KNOWN:
        path = shutil.which(program)
        if path is not None:
            return path
    missing = f"${RUNTIME} = {named!r} cannot be run" if named else "no docker or podman is here"
    raise UsageError(
        f"option image = {image!r}: {missing}. Name a container program by ${RUNTIME}."
    )


def files_of(location: str) -> list[Path]:
    """Return what a model's folder or file needs: itself, and the folders that its links lead to.

    A hub's snapshot, and the folder of an architecture, are links to files elsewhere.
    """
    path = Path(location)
    if not path.is_absolute() or not path.exists():
        return []
    links = [file for file in path.iterdir() if file.is_symlink()] if path.is_dir() else []
    return list(dict.fromkeys([path, *(file.resolve().parent for file in links)]))
