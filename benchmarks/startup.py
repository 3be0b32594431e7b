"""What an installed plugin adds to a pytest session that has no llmperf test.

Other plugins of this environment are left out on both sides: they take over a second, whose scatter
would hide the answer. The other side names a plugin too, an empty one: `-p` makes pytest read the
metadata of every installed distribution, 9 ms with 137 of them, which an installed plugin's session
does once for all plugins together.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from pairs import Finding, finding, interleave

BAR_MS = 15.0
EMPTY = "plugin_without_hooks"
# Compiled modules are kept, as they are where a package was installed: the warm-up writes them.
ALONE = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": ""}


def collect(folder: Path, cpu_ms: list[float], *arguments: str) -> float:
    """Wall time of `pytest --collect-only` in a process of its own, in ms.

    Its CPU time, in ms, is added to `cpu_ms`.
    """
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        *arguments,
    ]
    start_ns = time.perf_counter_ns()
    child = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ALONE
    )
    _, status, usage = os.wait4(child.pid, 0)
    wall_ms = (time.perf_counter_ns() - start_ns) / 1e6
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit code {child.returncode}")
    cpu_ms.append(1000 * (usage.ru_utime + usage.ru_stime))
    return wall_ms


def startup(n: int) -> list[Finding]:
    """Collect in pairs with and without the plugin, by wall time and by CPU time.

    Other work on the machine blurs CPU time less.
    """
    with_ms: list[float] = []
    without_ms: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        (folder / "test_nothing.py").write_text("def test_nothing():\n    pass\n", encoding="utf-8")
        (folder / f"{EMPTY}.py").write_text("", encoding="utf-8")
        sides: tuple[Callable[[], float], Callable[[], float]] = (
            partial(collect, folder, with_ms, "-p", "pytest_llmperf.plugin.hooks"),
            partial(collect, folder, without_ms, "-p", EMPTY),
        )
        pairs = interleave(*sides, n, warm_up=2)
    empty_ms = median(without for _, without in pairs)
    detail = f"pytest --collect-only with an empty plugin: {empty_ms:.0f} ms"
    wall = [with_plugin - without for with_plugin, without in pairs]
    cpu = [
        with_plugin - without
        for with_plugin, without in zip(with_ms[2:], without_ms[2:], strict=True)
    ]
    return [
        _added("wall time added to pytest --collect-only", wall, detail),
        _added("CPU time added to pytest --collect-only", cpu, detail),
    ]


def _added(name: str, added_ms: list[float], detail: str) -> Finding:
    return finding(
        name,
        added_ms,
        unit="ms",
        bar=f"<= {BAR_MS:g} ms",
        within=(-math.inf, BAR_MS),
        detail=detail,
    )
