"""Run the suites of other projects without our plugin and with it, and compare each test.

`python tools/foreign_suites.py WHEEL [PROJECT …]` makes a virtual environment for each project,
installs its sources with its tests from the package index, runs its suite, installs WHEEL, and runs
the suite again. A test that ends otherwise once the plugin is installed is an error of ours: exit
code 1. Tests that fail in both runs are the project's or this machine's, and are counted.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
import venv
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

LIMIT_S = 900
"""Seconds that one suite may take."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A project whose tests can be had: with its sources, or with what is installed (`module`)."""

    project: str
    needs: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    module: str = ""


SUITES = (
    Suite(
        project="pytest-benchmark", needs=("freezegun", "pygal", "hunter", "nbmake", "aspectlib")
    ),
    Suite(project="pytest-xdist", needs=("filelock", "psutil", "setproctitle")),
    Suite(project="pytest-rerunfailures", needs=("pytest-xdist",)),
    Suite(project="pytest-timeout", needs=("pexpect",)),
    Suite(project="pytest-cov", needs=("pytest-xdist", "process-tests", "virtualenv", "fields")),
    Suite(project="pytest-mock", needs=("pytest-asyncio",)),
    Suite(project="pytest-repeat", needs=("pytest-xdist",)),
    Suite(project="pytest-subtests", needs=("pytest-xdist",)),
    Suite(project="pytest-env"),
    Suite(project="pytest-datadir"),
    Suite(project="pytest-freezer"),
    Suite(project="pytest-recording", needs=("pytest-httpbin", "requests", "yarl")),
    Suite(project="pytest-httpserver", needs=("requests", "toml")),
    Suite(project="syrupy", needs=("pytest-xdist", "attrs", "pydantic"), arguments=("tests",)),
    Suite(project="numpy", needs=("hypothesis",), module="numpy.linalg"),
    Suite(project="networkx", module="networkx.algorithms.tests"),
)

Outcomes = dict[str, str]
"""Id of a test -> "passed", "failed", "error" or "skipped"."""


def main() -> int:
    """Run the suites that are asked for. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("projects", nargs="*", help="default: all")
    options = parser.parse_args()
    suites = [suite for suite in SUITES if suite.project in (options.projects or [suite.project])]
    n_wrong = sum(_compare(suite, options.wheel.absolute()) for suite in suites)
    return 1 if n_wrong or not suites else 0


def _compare(suite: Suite, wheel: Path) -> int:
    """Run a suite twice, print what differs, and return how many tests that are."""
    with tempfile.TemporaryDirectory(prefix="foreign-suite-") as folder:
        python = _environment(Path(folder) / "venv")
        tests = _install(suite, python, Path(folder))
        without = _run(suite, python, tests)
        _pip(python, "install", str(wheel))
        with_plugin = _run(suite, python, tests)
    return _print(suite, without, with_plugin)


def _print(suite: Suite, without: Outcomes, with_plugin: Outcomes) -> int:
    names = without.keys() | with_plugin.keys()
    differing = [name for name in sorted(names) if without.get(name) != with_plugin.get(name)]
    n_passed = sum(outcome == "passed" for outcome in without.values())
    print(
        f"{suite.project}: {len(without)} tests, {n_passed} pass without the plugin, "
        f"{len(differing)} end otherwise with it",
        flush=True,
    )
    for name in differing:
        print(f"  {name}: {without.get(name, 'gone')} -> {with_plugin.get(name, 'gone')}")
    return len(differing) if n_passed else 1


def _environment(folder: Path) -> Path:
    venv.create(folder, with_pip=True)
    return folder / "bin/python"


def _install(suite: Suite, python: Path, folder: Path) -> Path:
    """Install a project with what its tests need, and return the folder that they run in."""
    _pip(python, "install", "pytest", suite.project, *suite.needs)
    if suite.module:
        return folder
    _pip(
        python,
        "download",
        "--no-deps",
        f"--no-binary={suite.project}",
        f"--dest={folder}",
        suite.project,
    )
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return next(path for path in folder.iterdir() if (path / "PKG-INFO").is_file())


def _run(suite: Suite, python: Path, tests: Path) -> Outcomes:
    report, log = tests / "outcomes.xml", tests / "output.txt"
    report.unlink(missing_ok=True)
    what = ("--pyargs", suite.module) if suite.module else suite.arguments
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    # A file, since a process that a test leaves behind would hold a pipe open.
    with log.open("w") as output, suppress(subprocess.TimeoutExpired):
        subprocess.run(
            [*command, *what],
            cwd=tests,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=LIMIT_S,
            check=False,
        )
    if not report.is_file():
        raise SystemExit(f"{suite.project}: pytest wrote no outcomes\n{log.read_text()[-2000:]}")
    return dict(map(_outcome, ET.parse(report).iter("testcase")))  # noqa: S314 - pytest's


def _outcome(case: ET.Element) -> tuple[str, str]:
    name = f"{case.get('classname')}::{case.get('name')}"
    ends = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
    words = {"failure": "failed", "error": "error", "skipped": "skipped"}
    return name, words[ends[0]] if ends else "passed"


def _pip(python: Path, *arguments: str) -> None:
    command = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(f"pip {' '.join(arguments)}: {finished.stderr}")


if __name__ == "__main__":
    sys.exit(main())
