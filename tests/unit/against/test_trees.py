"""What goes on the base's module path, which modules strayed, and what --llmperf-against names."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pytest_llmperf.against.trees import Trees, strays
from pytest_llmperf.errors import UsageError
from pytest_llmperf.settings.against_target import find_target


@pytest.fixture
def trees(tmp_path) -> Trees:
    """Two copies with a src/ each."""
    for name in ("head", "base"):
        (tmp_path / name / "src").mkdir(parents=True)
        (tmp_path / name / "lib").mkdir()
    return Trees(head=tmp_path / "head", base=tmp_path / "base")


def module(path: Path) -> ModuleType:
    made = ModuleType(path.stem)
    made.__file__ = str(path)
    return made


def test_the_bases_folders_come_first_and_the_heads_never(trees):
    """What this process has of its own tree is mapped.

    Installed packages and other folders stay where they are.
    """
    site = trees.head / ".venv" / "lib" / "site-packages"
    search = ["", str(trees.head / "lib"), str(site), "/usr/lib/python3"]
    found = trees.module_path(search, f"{trees.head / 'src'}{os.pathsep}/opt/more").split(
        os.pathsep
    )
    assert found == [str(trees.base / "lib"), str(trees.base), str(trees.base / "src"), "/opt/more"]


def test_another_interpreter_gets_no_folder_of_ours(trees):
    """Its own packages are what is compared; what PYTHONPATH says holds for both."""
    same = Trees(head=trees.head, base=trees.head)
    assert same.module_path([str(trees.head / "lib")], "/opt/more") == "/opt/more"


def test_modules_of_another_copy_are_strays_and_a_base_inside_the_head_is_its_own(trees, tmp_path):
    """The innermost tree holds a file; an environment in the tree is nobody's."""
    modules = {
        "ours": module(trees.base / "ours.py"),
        "theirs": module(trees.head / "theirs.py"),
        "installed": module(trees.head / "env" / "site-packages" / "installed.py"),
        "other": module(tmp_path / "checkout" / "other.py"),
        "builtin": sys,
    }
    named = [each.partition(" ")[0] for each in strays(trees, trees.base, modules)]
    assert named == ["theirs"]
    forbidden = Trees(head=trees.head, base=trees.base, others=(tmp_path / "checkout",))
    assert [each.partition(" ")[0] for each in strays(forbidden, trees.base, modules)] == [
        "other",
        "theirs",
    ]
    inside = Trees(head=trees.head, base=trees.head / ".cache" / "tree")
    assert strays(inside, inside.base, {"a": module(inside.base / "a.py")}) == ()
    assert strays(inside, inside.head, {"a": module(inside.base / "a.py")}) != ()


def test_a_folder_an_interpreter_and_nothing(tmp_path):
    """Outside of any repository."""
    (tmp_path / "before").mkdir()
    assert find_target("before", tmp_path).kind == "folder"
    assert find_target(sys.executable, tmp_path).kind == "interpreter"
    assert find_target("off", tmp_path) is None
    with pytest.raises(
        UsageError, match=r"is not a revision .*not a git work tree.*, no folder and no file"
    ):
        find_target("main", tmp_path)
