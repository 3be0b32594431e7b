"""The shape of the code: imports point down, start-up is light, nothing grows past its limit."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import shape

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pytest_llmperf"
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

HEAVY = {
    *("torch", "transformers", "numpy", "scipy", "vllm", "safetensors", "tokenizers", "aiohttp"),
    *(
        "sqlalchemy",
        "alembic",
        "psycopg",
        "msgspec",
        "filelock",
        "psutil",
        "pynvml",
        "click",
        "jinja2",
        "prometheus_client",
    ),
}


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of `root`'s pyproject.toml against the package that lies in `root`."""
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command as main; main()",
        "--no-cache",
    ]
    return subprocess.run(
        command, cwd=root, capture_output=True, text=True, check=False, timeout=120
    )


def test_import_contracts_hold():
    """Layers, no engine outside its adapter, a pure core, one place for the database."""
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("core/trace.py", "import pytest_llmperf.workloads", "Imports point down BROKEN"),
        (
            "devices/placement.py",
            "import torch",
            "imports torch, an engine or an HTTP client BROKEN",
        ),
        (
            "engines/scripted/ranks.py",
            "import pytest_llmperf.wire.messages",
            "the worker alone makes messages of them BROKEN",
        ),
        ("core/plan.py", "import subprocess", "no devices, no database BROKEN"),
        ("report/__init__.py", "import sqlalchemy", "Only the history talks to a database BROKEN"),
    ],
)
def test_a_forbidden_import_breaks_its_contract(tmp_path, module, line, contract):
    """Each contract is seen to fail when its rule is broken in a copy of the package."""
    shutil.copytree(
        PACKAGE, tmp_path / "pytest_llmperf", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    changed = tmp_path / "pytest_llmperf" / module
    text = changed.read_text(encoding="utf-8")
    future = "from __future__ import annotations\n"
    changed.write_text(
        text.replace(future, future + line + "\n", 1) if future in text else f"{text}\n{line}\n",
        encoding="utf-8",
    )
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    assert contract in " ".join(done.stdout.split())


def loaded_by_pytest(folder: Path, *arguments: str) -> set[str]:
    """Top-level modules in `sys.modules` after a pytest session in a process of its own."""
    script = (
        "import json, sys, pytest\n"
        "code = pytest.main(sys.argv[1:])\n"
        "print(json.dumps([int(code), sorted({name.partition('.')[0] for name in sys.modules})]))\n"
    )
    command = [sys.executable, "-c", script, "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=True, timeout=120
    )
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stdout + done.stderr
    return set(modules)


@pytest.fixture
def project_without_llmperf_tests(tmp_path: Path) -> Path:
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (tmp_path / "test_nothing.py").write_text("def test_nothing():\n    pass\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("arguments", [["--collect-only"], []], ids=["collect", "run"])
def test_an_installed_plugin_loads_nothing_heavy_in_a_project_without_llmperf_tests(
    project_without_llmperf_tests, arguments
):
    """What a session loads with the plugin and not without it holds none of the heavy packages."""
    with_plugin = loaded_by_pytest(project_without_llmperf_tests, *arguments)
    without = loaded_by_pytest(project_without_llmperf_tests, "-p", "no:llmperf", *arguments)
    assert "pytest_llmperf" in with_plugin - without
    assert (with_plugin - without) & HEAVY == set()


def test_the_start_up_guard_sees_a_heavy_import(project_without_llmperf_tests):
    """A plugin that imports msgspec at its top is caught by the same comparison."""
    (project_without_llmperf_tests / "greedy_plugin.py").write_text(
        "import msgspec\n", encoding="utf-8"
    )
    assert (
        "msgspec"
        in loaded_by_pytest(
            project_without_llmperf_tests, "-p", "no:llmperf", "-p", "greedy_plugin"
        )
        & HEAVY
    )


def python_files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def function_lengths(source: str) -> list[tuple[str, int]]:
    """Name and length in lines of every function, decorators apart."""
    return [
        (node.name, (node.end_lineno or node.lineno) - node.lineno + 1)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def too_long(paths: list[Path]) -> list[str]:
    """Every file and function past its limit, in words."""
    found = []
    for path in paths:
        source = path.read_text(encoding="utf-8")
        if source.count("\n") > MAX_FILE_LINES:
            found.append(f"{path}: {source.count(chr(10))} lines")
        found += [
            f"{path}: {name} has {n} lines"
            for name, n in function_lengths(source)
            if n > MAX_FUNCTION_LINES
        ]
    return found


def test_no_file_and_no_function_is_too_long():
    """At most 400 lines a file and 60 a function: package, tests, suites and benchmarks."""
    assert too_long(python_files("pytest_llmperf", "tests", "example_suites", "benchmarks")) == []


def test_the_size_guard_sees_what_is_too_long(tmp_path):
    """A function of 61 lines and a file of 401 are both named."""
    (tmp_path / "long.py").write_text(
        "def f():\n" + "    pass\n" * 60 + "\n" * 340, encoding="utf-8"
    )
    assert [line.split(": ")[1] for line in too_long([tmp_path / "long.py"])] == [
        "401 lines",
        "f has 61 lines",
    ]


def test_most_functions_of_the_package_are_short():
    """Nine functions in ten have fewer than 30 lines."""
    lengths = sorted(
        n
        for path in python_files("pytest_llmperf")
        for _, n in function_lengths(path.read_text(encoding="utf-8"))
    )
    assert lengths[int(len(lengths) * 0.9)] < 30


@pytest.mark.parametrize("row", shape.table(), ids=lambda row: row.measure)
def test_the_shape_of_the_package_is_within_its_bars(row):
    """`python tools/shape.py` prints the same table."""
    assert row.holds, (
        f"{row.measure}: {row.value:g}, at most {row.bar}; python tools/shape.py --rooms"
    )


def test_the_one_circle_of_files_is_the_inherent_one():
    """Comparing an Estimate makes a claim, and a claim is about Estimates."""
    verdicts = "pytest_llmperf.core.verdicts"
    modules = [f"{verdicts}.{name}" for name in ("case", "estimate", "judge")]
    assert shape.circles(shape.module_imports()) == [modules]


CROWDED = {f"engines/many/m{i}.py": "" for i in range(21)}
CIRCLES = {
    "a.py": "import pytest_llmperf.b\n",
    "b.py": "def f():\n    from pytest_llmperf import c\n",
    "c.py": "from pytest_llmperf.a import x\n",
    "d.py": "from pytest_llmperf import e\n",
    "e.py": "from pytest_llmperf.d import y\n",
}
BORROWING = {
    "engines/vllm/loaded.py": "from pytest_llmperf.engines.transformers.load import load\n",
    "engines/transformers/load.py": "",
}
SUM = " +\n    ".join(["one"] * 130)
DENSE = {"dense.py": f"def f(one):\n    return (\n    {SUM}\n    )\n"}
VAGUE = {"vague.py": "def f(rows):\n    each = [found for found in rows]\n    return each\n"}
LONG = {"long.py": f"NAME = '{'x' * 100}'\n"}


@pytest.mark.parametrize(
    ("files", "broken"),
    [
        (CROWDED, {"files in the fullest folder"}),
        (CIRCLES, {"circles of files"}),
        (BORROWING, {"names that engines take from inside another engine"}),
        (
            DENSE,
            {
                "AST nodes a function, median",
                "AST nodes a function, 9 in 10",
                "AST nodes, largest function",
            },
        ),
        (VAGUE, {"vague local names, %"}),
        (LONG, {"lines over 100 columns"}),
    ],
    ids=["crowded", "circles", "borrowing", "dense", "vague", "long"],
)
def test_each_guard_of_the_shape_sees_what_breaks_it(tmp_path, files, broken):
    """A package that breaks one rule is past that row's bar alone."""
    tiny = {"tiny.py": "def f():\n    return 1\n"}
    for name, text in (tiny | files).items():
        path = tmp_path / "pytest_llmperf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    if files is DENSE:
        (tmp_path / "pytest_llmperf" / "tiny.py").unlink()
    assert {row.measure for row in shape.table(tmp_path) if not row.holds} == broken


def test_the_typed_marker_ships():
    """Type checkers of users read our annotations."""
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.parametrize("folder", ["tests", "example_suites"])
def test_no_two_test_files_share_a_name(folder):
    """pytest imports them by their base name, so the second of two would not be collected."""
    names = [path.name for path in (ROOT / folder).rglob("test_*.py")]
    assert len(names) > 3
    assert sorted(names) == sorted(set(names))
