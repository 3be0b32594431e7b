"""Print the shape of the package: how full its rooms are, how dense its functions, its names.

    python tools/shape.py            # the table, each row with its bar; exit code 1 past a bar
    python tools/shape.py --rooms    # the same, and a row for each folder

Everything is read from the source with `ast`; nothing of the package is imported.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
PACKAGE = "pytest_llmperf"
COLUMNS = 100
VAGUE = frozenset(
    {
        "asked",
        "done",
        "each",
        "found",
        "given",
        "gone",
        "got",
        "held",
        "here",
        "it",
        "kept",
        "left",
        "made",
        "meant",
        "named",
        "now",
        "ours",
        "said",
        "seen",
        "shown",
        "taken",
        "that",
        "theirs",
        "them",
        "there",
        "these",
        "this",
        "those",
        "told",
        "wanted",
        "what",
        "which",
    }
)
"""Local names that say what happened to a thing, or point at it, and not what it is."""


@dataclass(kw_only=True)
class Shape:
    """What was counted in one folder, or in all of them together."""

    files: int = 0
    lines: int = 0
    long_lines: int = 0
    nodes: list[int] = field(default_factory=list)
    names: int = 0
    vague: int = 0

    def add(self, other: Shape) -> None:
        """Add what was counted elsewhere."""
        self.files += other.files
        self.lines += other.lines
        self.long_lines += other.long_lines
        self.nodes += other.nodes
        self.names += other.names
        self.vague += other.vague

    @property
    def nodes_median(self) -> float:
        """AST nodes of the middle function, its docstring apart."""
        return median(self.nodes) if self.nodes else 0

    @property
    def nodes_p90(self) -> int:
        """AST nodes that nine functions in ten stay below."""
        return sorted(self.nodes)[int(len(self.nodes) * 0.9)] if self.nodes else 0

    @property
    def vague_percent(self) -> float:
        """Share of vague names among the local names that are assigned, in percent."""
        return 100 * self.vague / max(1, self.names)


def shape_of(source: str) -> Shape:
    """Count one file."""
    lines = source.splitlines()
    shape = Shape(files=1, lines=len(lines))
    shape.long_lines = sum(len(line) > COLUMNS for line in lines)
    for function in functions(ast.parse(source)):
        shape.nodes.append(node_count(function))
        names = local_names(function)
        shape.names += len(names)
        shape.vague += sum(name in VAGUE for name in names)
    return shape


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method, those inside of others too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def node_count(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """AST nodes of a function's body without its docstring."""
    has_docstring = ast.get_docstring(function) is not None
    body = function.body[1:] if has_docstring else function.body
    return sum(1 for statement in body for _ in ast.walk(statement))


def local_names(function: ast.AST) -> list[str]:
    """Every name that is assigned in a function, as often as it is."""
    nodes = (node for node in ast.walk(function) if isinstance(node, ast.Name))
    return [node.id for node in nodes if isinstance(node.ctx, ast.Store)]


def rooms(root: Path = ROOT) -> dict[str, Shape]:
    """The shape of each folder of the package, by its path."""
    counted: dict[str, Shape] = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        folder = str(path.parent.relative_to(root))
        counted.setdefault(folder, Shape()).add(shape_of(path.read_text(encoding="utf-8")))
    return counted


def total(shapes: Iterable[Shape]) -> Shape:
    """All of them as one."""
    whole = Shape()
    for shape in shapes:
        whole.add(shape)
    return whole


def module_imports(root: Path = ROOT) -> dict[str, set[str]]:
    """The modules of the package that each of its modules imports when it is imported itself.

    What stands under TYPE_CHECKING counts: a reader follows it too. An import inside of a function
    counts as well.
    """
    paths = {module_name(path, root): path for path in (root / PACKAGE).rglob("*.py")}
    return {name: _imports_of(path, set(paths)) - {name} for name, path in paths.items()}


def module_name(path: Path, root: Path = ROOT) -> str:
    """`pytest_llmperf.core.plan` for its file; a package's name for its `__init__.py`."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports_of(path: Path, modules: set[str]) -> set[str]:
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            full_names = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = full_names & modules
            imported |= submodules
            if len(submodules) < len(full_names) and node.module in modules:
                imported.add(node.module)
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names} & modules
    return imported


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, each sorted.

    They are the strongly connected components of the imports, by Tarjan's algorithm.
    """
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = lowest[module] = len(index)
        stack.append(module)
        for target in sorted(imports[module]):
            if target not in index:
                visit(target)
                lowest[module] = min(lowest[module], lowest[target])
            elif target in stack:
                lowest[module] = min(lowest[module], index[target])
        if lowest[module] == index[module]:
            start = stack.index(module)
            group = stack[start:]
            del stack[start:]
            if len(group) > 1:
                groups.append(sorted(group))

    for module in sorted(imports):
        if module not in index:
            visit(module)
    return sorted(groups)


ENGINES = ("scripted", "server", "transformers", "vllm")


def names_across_engines(root: Path = ROOT) -> list[str]:
    """`importer: module.name` for each name that one engine takes from inside another one."""
    crossings = []
    for engine in ENGINES:
        for path in sorted((root / PACKAGE / "engines" / engine).rglob("*.py")):
            crossings += _names_of_others(path, engine, root)
    return crossings


def _names_of_others(path: Path, engine: str, root: Path) -> list[str]:
    others = tuple(f"{PACKAGE}.engines.{other}" for other in ENGINES if other != engine)
    return [
        f"{module_name(path, root)}: {node.module}.{alias.name}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(others)
        for alias in node.names
    ]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table. `bar` is the largest value that is allowed; None where nothing is."""

    measure: str
    value: float
    bar: float | None
    before: str

    @property
    def holds(self) -> bool:
        """Whether the value is within its bar."""
        return self.bar is None or self.value <= self.bar


def table(root: Path = ROOT) -> list[Row]:
    """The rows of the table. `before` is what commit 15a4910 had."""
    counted = rooms(root)
    whole = total(counted.values())
    fullest = max(shape.files for shape in counted.values())
    return [
        Row(measure="files in the fullest folder", value=fullest, bar=20, before="65"),
        Row(
            measure="circles of files", value=len(circles(module_imports(root))), bar=1, before="5"
        ),
        Row(
            measure="names that engines take from inside another engine",
            value=len(names_across_engines(root)),
            bar=0,
            before="34",
        ),
        Row(measure="AST nodes a function, median", value=whole.nodes_median, bar=40, before="53"),
        Row(measure="AST nodes a function, 9 in 10", value=whole.nodes_p90, bar=120, before="156"),
        Row(measure="AST nodes, largest function", value=max(whole.nodes), bar=250, before="368"),
        Row(measure="vague local names, %", value=whole.vague_percent, bar=3, before="10.5"),
        Row(measure="lines over 100 columns", value=whole.long_lines, bar=0, before="4410"),
        Row(measure="functions", value=len(whole.nodes), bar=None, before="3279"),
        Row(
            measure="AST nodes of all functions", value=sum(whole.nodes), bar=None, before="230867"
        ),
        Row(measure="lines of the package", value=whole.lines, bar=None, before="43016"),
    ]


def main() -> int:
    """Print the table. Returns 1 where a row is past its bar."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rooms", action="store_true", help="a row for each folder too")
    parser.add_argument("--root", type=Path, default=ROOT, help="another checkout")
    options = parser.parse_args()
    rows = table(options.root)
    print(f"{'':52}{'now':>10}{'bar':>8}{'15a4910':>10}")
    for row in rows:
        bar = "" if row.bar is None else f"{row.bar:g}"
        past = "" if row.holds else "  <- past its bar"
        print(f"{row.measure:52}{row.value:>10.4g}{bar:>8}{row.before:>10}{past}")
    if options.rooms:
        for folder, shape in rooms(options.root).items():
            print(
                f"{folder:50} files {shape.files:3}  lines {shape.lines:5}  "
                f"nodes {shape.nodes_median:5.0f} {shape.nodes_p90:4}  vague {shape.vague:3}"
            )
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
