"""What `--llmperf-against VALUE` names: a git revision, a folder, an interpreter, or a server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from msgspec import Struct

from pytest_llmperf.errors import UsageError
from pytest_llmperf.secrets import masked
from pytest_llmperf.settings.git import commit_of, is_shallow, refusal, top_level
from pytest_llmperf.settings.server_target import find_server, is_server

OFF = frozenset({"", "off", "no", "none", "false", "0"})
_HOW = (
    "A git revision (origin/main), a folder (../before), "
    "an interpreter (.venv-old/bin/python) or a server (a URL, image:NAME, command:…) is needed."
)


class Target(Struct, frozen=True, kw_only=True):
    """The other version.

    `path` is a folder, an interpreter, or for a revision the work tree's root; `text` what was
    written. Of a server it is the project's root: both sides have one tree.
    """

    kind: Literal["revision", "folder", "interpreter", "server"]
    text: str
    path: Path
    commit: str | None = None

    @property
    def name(self) -> str:
        """The name that messages use: "origin/main (1a2b3c4d)"."""
        if self.kind == "server":
            return masked(self.text)
        if self.commit is None or self.commit.startswith(self.text):
            return self.text
        return f"{self.text} ({self.commit[:8]})"


def find_target(text: str, root: Path) -> Target | None:
    """What `text` names, seen from the project's `root`; None where nothing is compared.

    What looks like a path is one (`./main`); anything else is first taken for a revision.

    Raises:
        UsageError: it is none of the four.

    """
    text = text.strip()
    if text.lower() in OFF:
        return None
    if is_server(text):
        find_server(text, "--llmperf-against")
        return Target(kind="server", text=text, path=root)
    path = _path(text, root)
    if _is_path_like(text) or (commit := _commit(text, root)) is None:
        return _path_target(text, path, root)
    top = top_level(root)
    assert top is not None  # noqa: S101 - it holds the commit
    return Target(kind="revision", text=text, path=top, commit=commit)


def _path(text: str, root: Path) -> Path:
    # Pathlib's raises for a user that does not exist.
    path = Path(os.path.expanduser(text))  # noqa: PTH111
    from_working_directory = path.absolute()
    # Pathlib's raises for a name that is too long.
    if os.path.exists(from_working_directory):  # noqa: PTH110
        return from_working_directory
    return root / path


def _is_path_like(text: str) -> bool:
    return text.startswith(("/", "./", "../", "~")) or text in (".", "..")


def _commit(text: str, root: Path) -> str | None:
    return None if text.startswith("-") else commit_of(root, text)


def _path_target(text: str, path: Path, root: Path) -> Target:
    if os.path.isdir(path):  # noqa: PTH112  as above
        return Target(kind="folder", text=text, path=path.resolve())
    if os.path.isfile(path) and os.access(path, os.X_OK):  # noqa: PTH113  as above
        # Not resolved: a virtual environment is known by its link.
        return Target(kind="interpreter", text=text, path=path)
    refused = refusal(root)
    if refused:
        raise UsageError(f"--llmperf-against={text!r}: git refuses to read {root}: {refused}")
    place = "of this repository" if top_level(root) else "(this is not a git work tree)"
    exists = os.path.exists(path)  # noqa: PTH110  as above
    file = " and a file that cannot be run" if exists else ", no folder and no file"
    raise UsageError(
        f"--llmperf-against={text!r} is not a revision {place}{file}.{_shallow(root)} {_HOW}"
    )


def _shallow(root: Path) -> str:
    """Say that the commits are missing, where they are, and how they come."""
    if not is_shallow(root):
        return ""
    return (
        " This clone is shallow and has the newest commits alone: run `git fetch --unshallow`, or "
        "have CI check out all of it (fetch-depth: 0, GIT_DEPTH: 0)."
    )
