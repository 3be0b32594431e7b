"""Install the built wheel into an empty environment, and try what must work without an engine.

    python benchmarks/install_size.py [--json FILE] [--sdist]

With --sdist the sdist is built, installed and tried too. Prints the size of what
`pip install pytest-llmperf` puts there (without pip itself), how many distributions, and whether a
project can be collected, planned, measured with the scripted engine, and its records read. Exit
code 1 past a bar or where
something does not work. Needs a package index; nothing is written outside of a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MAX_BYTES = 80e6
MAX_DISTRIBUTIONS = 25
ENGINES = {"torch", "transformers", "vllm", "numpy"}

TESTS = """
import sys
import pytest
from pytest_llmperf import Decode

pytestmark = pytest.mark.llmperf(model="scripted:ttft=50ms,tpot=10ms", engine="scripted")

def test_speed(llm):
    assert llm.run(Decode(batch=1, prompt_tokens=8, new_tokens=8)).throughput >= 10

def test_no_engine():
    assert "torch" not in sys.modules
"""

TRIES = {
    "collect": ("pytest", "--collect-only", "-q"),
    "plan": ("pytest", "--llmperf-plan"),
    "measure": ("pytest", "-q", "--llmperf-json=out.jsonl"),
    "doctor": ("llmperf", "doctor"),
    "history": ("llmperf", "history"),
    "compare": ("llmperf", "compare", "out.jsonl", "out.jsonl"),
    "markdown": ("llmperf", "report", "--markdown", "--session", "last"),
    "html": ("llmperf", "report", "--out", "report.html"),
    "schema": ("llmperf", "schema"),
}
"""What a project without an engine does, in this order."""


def main() -> int:
    """Try both, or the wheel alone."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write what was found to this file")
    parser.add_argument(
        "--sdist",
        action="store_true",
        help="install from the sdist too (the wheel is built from it)",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llmperf-install-") as name:
        folder = Path(name)
        built = build(folder, sdist=options.sdist)
        installations = {
            archive.suffix.lstrip("."): tried(archive, folder / f"on-{archive.suffix[1:]}")
            for archive in built
        }
    for archive, installation in installations.items():
        print(describe(archive, installation))
    if options.json:
        options.json.write_text(json.dumps(installations, indent=1) + "\n", encoding="utf-8")
    return 0 if all(installation["ok"] for installation in installations.values()) else 1


def build(folder: Path, *, sdist: bool) -> list[Path]:
    """The wheel that pip builds of this tree; with `sdist` that archive too."""
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "-w",
        str(folder / "dist"),
        str(ROOT),
    )
    if sdist:
        run(sys.executable, "-m", "venv", str(folder / "tools"))
        run(str(folder / "tools/bin/python"), "-m", "pip", "install", "-q", "build")
        run(
            str(folder / "tools/bin/python"),
            "-m",
            "build",
            "-q",
            "--sdist",
            "--outdir",
            str(folder / "dist"),
            str(ROOT),
        )
    return sorted((folder / "dist").iterdir())


def tried(archive: Path, folder: Path) -> dict[str, Any]:
    """Install an archive into an empty environment and use it."""
    run(sys.executable, "-m", "venv", str(folder / "env"))
    before = size_bytes(folder / "env")
    bin_folder = folder / "env" / "bin"
    run(str(bin_folder / "python"), "-m", "pip", "install", "-q", str(archive))
    listed = json.loads(run(str(bin_folder / "python"), "-m", "pip", "list", "--format=json"))
    names = sorted(
        distribution["name"]
        for distribution in listed
        if distribution["name"] not in {"pip", "setuptools", "wheel"}
    )
    installation = {
        "python": sys.version.split()[0],
        "bytes": size_bytes(folder / "env") - before,
        "distributions": names,
    }
    works = use(folder / "project", bin_folder)
    return {**installation, "works": works, "ok": holds({**installation, "works": works})}


def holds(installation: Mapping[str, Any]) -> bool:
    """Whether an installation is small enough, without an engine, and works."""
    names = installation["distributions"]
    within = (
        installation["bytes"] <= MAX_BYTES
        and len(names) <= MAX_DISTRIBUTIONS
        and not ENGINES & set(names)
    )
    return within and all(code == 0 for code in installation["works"].values())


def use(project: Path, bin_folder: Path) -> dict[str, int]:
    """The exit code of each of TRIES in a small project; what goes wrong is printed."""
    project.mkdir()
    (project / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (project / "test_it.py").write_text(TESTS, encoding="utf-8")
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LLMPERF", "GITHUB_", "PYTEST_"))
    }
    codes = {}
    for name, (program, *arguments) in TRIES.items():
        environment = environ | {"LLMPERF_CACHE": str(project / "cache")}
        command = [str(bin_folder / program), *arguments]
        process = subprocess.run(
            command, cwd=project, env=environment, capture_output=True, text=True, check=False
        )
        codes[name] = process.returncode
        if process.returncode:
            print(f"{name}: exit code {process.returncode}\n{process.stdout}{process.stderr}")
    return codes


def size_bytes(folder: Path) -> int:
    """Of its files, links not followed. Compiled files count: an installer writes them."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def run(*command: str) -> str:
    """Standard output. Raises CalledProcessError after showing what the program said."""
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        print(process.stdout + process.stderr, file=sys.stderr)
        process.check_returncode()
    return process.stdout


def describe(archive: str, installation: Mapping[str, Any]) -> str:
    """One paragraph."""
    names = list(installation["distributions"])
    broken = [name for name, code in dict(installation["works"]).items() if code]
    works = f"does not work: {', '.join(broken)}" if broken else f"works: {', '.join(TRIES)}"
    return (
        f"{archive}, Python {installation['python']}: "
        f"{installation['bytes'] / 1e6:.1f} MB (at most {MAX_BYTES / 1e6:.0f}), "
        f"{len(names)} distributions (at most {MAX_DISTRIBUTIONS}): {', '.join(names)}\n  {works}"
    )


if __name__ == "__main__":
    sys.exit(main())
