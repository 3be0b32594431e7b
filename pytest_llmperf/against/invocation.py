"""How the base's pytest is started.

It is the head's own invocation, moved to the base, without what judges, stores or reports.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct

from pytest_llmperf.against.trees import Trees
from pytest_llmperf.secrets import masked
from pytest_llmperf.settings.options import ALREADY_IMPORTED, OPTIONS

SHARED = frozenset({"device", "gpus", "wait", "strategy", "reference", "timeout", "server"})
"""Options that say what is measured: given on the command line, they hold for the base too.

Its ini file is its own.
"""

OFF = (
    "--llmperf-against=off",
    "--llmperf-gate=off",
    "--llmperf-store=none",
    "--llmperf-json=",
    *(f"{option.flag_name}=" for option in OPTIONS if option.report),
)
"""The base judges, stores and reports nothing, whatever its ini file says."""

_PLAIN = (str, int, float, bool, type(None))


class Invocation(Struct, frozen=True, kw_only=True):
    """What the base side needs to know.

    Paths are the head's; `options` are values that the project's conftest files declare.
    """

    trees: Trees
    rootdir: Path
    cwd: Path
    files: tuple[Path, ...]
    inifile: Path | None
    override_ini: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    import_mode: str = "prepend"
    llmperf: tuple[str, ...] = ()
    options: dict[str, Any] = {}

    def arguments(self, *, xdist: bool) -> list[str]:
        """Return the command line of pytest at the base, without the files that it lacks.

        `xdist`: pytest-xdist is installed there.
        """
        rootdir = self.trees.in_base(self.rootdir)
        words = ["-q", "--color=no", f"--rootdir={rootdir}", f"--import-mode={self.import_mode}"]
        words += self._ini_file()
        words += _each_after("-p", self.plugins)
        words += _each_after("-o", self.override_ini)
        words += ["-W", ALREADY_IMPORTED]
        words += ["-n0"] if xdist else []
        return [*words, *self.llmperf, *OFF, *self._existing_files()]

    def _ini_file(self) -> list[str]:
        if self.inifile is None:
            return []
        base_file = self.trees.in_base(self.inifile)
        return ["-c", str(base_file)] if base_file.is_file() else []

    def _existing_files(self) -> list[str]:
        base_files = [self.trees.in_base(file) for file in self.files]
        return [str(file) for file in base_files if file.exists()]


SPEC_FILE = "LLMPERF_BASE_SPEC"
"""The variable that names the file with the whole Invocation."""


def public(spec: Invocation) -> str:
    """Return one line of JSON for a command line, which every user of the host can read.

    It has no option of the project, and no ini value that a secret can be told in. A base of an
    earlier version gets this alone.
    """
    inis = tuple(value for value in spec.override_ini if masked(value) == value)
    return _encoded(msgspec.structs.replace(spec, options={}, override_ini=inis)).decode("utf-8")


def hand_over(spec: Invocation) -> Path:
    """Write all of it into a file that nobody else can read, for `taken_over`. Raises OSError."""
    fd, name = tempfile.mkstemp(prefix="llmperf-base-", suffix=".json")
    with os.fdopen(fd, "wb") as file:
        file.write(_encoded(spec))
    return Path(name)


def taken_over(environment: MutableMapping[str, str], text: str) -> Invocation:
    """Read and remove what `hand_over` wrote; without it, what `public` did.

    The variable is removed too, so that what this process starts does not inherit it.
    """
    name = environment.pop(SPEC_FILE, "")
    if not name:
        return _decoded(text)
    content = Path(name).read_bytes()
    Path(name).unlink()
    return _decoded(content)


def _encoded(spec: Invocation) -> bytes:
    return msgspec.json.encode(spec, enc_hook=str)


def _decoded(text: str | bytes) -> Invocation:
    return msgspec.json.decode(text, type=Invocation, dec_hook=lambda kind, value: kind(value))


def invocation(
    config: pytest.Config,
    trees: Trees,
    node_ids: Iterable[str],
    pythons: Mapping[str, str],
    server: str = "",
) -> Invocation:
    """Describe the running session.

    `pythons` are the interpreters of engines' workers that hold at the base too; `server` is what
    the base measures in the place of this session's servers, where it does.
    """
    option = config.option
    names = dict.fromkeys(node_id.partition("::")[0] for node_id in node_ids)
    interpreters = [f"--llmperf-python={engine}={path}" for engine, path in pythons.items()]
    return Invocation(
        trees=trees,
        rootdir=config.rootpath,
        cwd=config.invocation_params.dir,
        files=tuple(config.rootpath / name for name in names),
        inifile=config.inipath,
        override_ini=tuple(option.override_ini or ()),
        plugins=tuple(name for name in option.plugins if not _stays_at_head(name)),
        import_mode=option.importmode,
        llmperf=(*_shared(config), *interpreters, *([f"--llmperf-server={server}"] * bool(server))),
        options={name: value for name, value in vars(option).items() if _plain(value)},
    )


def _each_after(flag: str, values: Iterable[str]) -> list[str]:
    """Return the flag before each value."""
    return [word for value in values for word in (flag, value)]


def _stays_at_head(plugin: str) -> bool:
    """Whether a plugin of the command line is about the head's terminal or its distribution."""
    return plugin.removeprefix("no:").startswith(("terminal", "xdist"))


def _shared(config: pytest.Config) -> list[str]:
    words = []
    for option in OPTIONS:
        value = config.getoption(option.dest)
        if option.name in SHARED and value is not None:
            words.append(f"{option.flag_name}={value}")
    return words


def _plain(value: object) -> bool:
    """Whether a value is one of JSON's plain ones, or a list of them."""
    if isinstance(value, _PLAIN):
        return True
    return isinstance(value, Sequence) and all(isinstance(entry, _PLAIN) for entry in value)
