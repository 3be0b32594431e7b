"""From this tree to the base's.

It says where a path lies there, what goes on the base's module path, and which modules strayed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from types import ModuleType

from msgspec import Struct

OTHERS = "LLMPERF_OTHER_TREES"
"""Names the copies of the project that no side of a comparison may load modules from."""

_MAX_STRAYS = 5
_STEERING = ("PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST")


class Trees(Struct, frozen=True, kw_only=True):
    """Two copies of one project: `head` is measured against `base`.

    Equal where only the interpreter differs.

    `others` are copies that neither side may load anything from: the user's own checkout while
    commits are walked.
    """

    head: Path
    base: Path
    others: tuple[Path, ...] = ()

    @property
    def differ(self) -> bool:
        """Whether the base has files of its own."""
        return self.head != self.base

    def in_base(self, path: Path) -> Path:
        """Return the same place in the base; a path outside of the project is the same for both."""
        return self.base / path.relative_to(self.head) if self.holds(path) else path

    def holds(self, path: Path) -> bool:
        """Whether a path is one of this tree's own files.

        Neither the base's files are, nor those of an environment inside the tree.
        """
        if not path.is_relative_to(self.head) or _installed(path):
            return False
        return not (self._base_is_inside() and path.is_relative_to(self.base))

    def _base_is_inside(self) -> bool:
        """Whether the base may lie inside this tree, and not this tree inside the base."""
        return self.differ and not self.head.is_relative_to(self.base)

    def module_path(self, search: Sequence[str], inherited: str) -> str:
        """Return PYTHONPATH of the base.

        It has the base's folders that `search` (this process's sys.path) has here, then the tree
        and its src/, then `inherited`. With the tree first, its packages win over the same ones
        installed in editable mode from this tree.
        """
        folders = [*self._own_folders(search), self.base, self.base / "src"] if self.differ else []
        existing = [str(folder) for folder in folders if folder.is_dir()]
        moved = [str(self.in_base(Path(entry))) for entry in inherited.split(os.pathsep) if entry]
        return os.pathsep.join(dict.fromkeys([*existing, *moved]))

    def _own_folders(self, search: Sequence[str]) -> list[Path]:
        entries = [Path(entry) for entry in search if entry]
        return [self.in_base(entry) for entry in entries if self.holds(entry.absolute())]


def strays(trees: Trees, own: Path, modules: Mapping[str, ModuleType]) -> tuple[str, ...]:
    """Return the modules that a process of the tree `own` loaded from another copy of the project.

    They are the first few by name.
    """
    copies = {trees.head, trees.base, *trees.others} - {own}
    prefixes = tuple(map(str, copies))
    stray_modules = [
        f"{name} ({file})"
        for name, file in _files_of(modules)
        # Texts are compared first: there are thousands of modules.
        if file.startswith(prefixes) and _strayed(Path(file), own, copies)
    ]
    return tuple(stray_modules[:_MAX_STRAYS])


def _files_of(modules: Mapping[str, ModuleType]) -> Iterator[tuple[str, str]]:
    """Give the modules that come from files, by name, each with its file."""
    for name, module in sorted(modules.items()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str):
            yield name, file


def other_trees(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Return the copies that whoever started this session forbids."""
    return tuple(Path(entry) for entry in environ.get(OTHERS, "").split(os.pathsep) if entry)


def _strayed(path: Path, own: Path, copies: Iterable[Path]) -> bool:
    """Whether a file is one of `copies`' own: the innermost of trees inside each other has it."""
    trees_around = [tree for tree in (own, *copies) if path.is_relative_to(tree)]
    if not trees_around or _installed(path):
        return False
    return max(trees_around, key=lambda tree: len(tree.parts)) != own


def base_environment(trees: Trees, environ: Mapping[str, str], cwd: Path) -> dict[str, str]:
    """Return what is set on top of this process's environment for the base's process.

    That is its module path. Byte code is not written: two commits' files may have equal sizes and
    times, and the cached code of one would be the other's.
    """
    path = trees.module_path(sys.path, environ.get("PYTHONPATH", ""))
    if not trees.differ and _started_with_m():
        path = os.pathsep.join(filter(None, [str(cwd), path]))
    return {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": path}


def drop_steering(environ: MutableMapping[str, str]) -> None:
    """Remove the variables that were meant for the head's pytest session alone."""
    for name in _STEERING:
        environ.pop(name, None)


def _started_with_m() -> bool:
    """Whether this is `python -m pytest`, which has the working directory on its path."""
    return "-m" in sys.orig_argv and not sys.flags.safe_path


def _installed(path: Path, prefixes: Iterable[str] = (sys.prefix, sys.base_prefix)) -> bool:
    return "site-packages" in path.parts or any(path.is_relative_to(prefix) for prefix in prefixes)
