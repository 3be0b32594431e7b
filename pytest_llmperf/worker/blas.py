"""The threads of numpy's OpenBLAS, which starts them when it is loaded.

A fork server may have no threads, so it loads the library with one; a worker gets the others back.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

THREADS = "OPENBLAS_NUM_THREADS"
"""The variable by which OpenBLAS is told its number of threads when it is loaded."""

_SETTERS = (
    "scipy_openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "openblas_set_num_threads64_",
    "openblas_set_num_threads",
)


def restore_threads() -> None:
    """Give each loaded OpenBLAS the threads it would have started by itself.

    Does nothing where `OPENBLAS_NUM_THREADS` is set: then it has as many as it was told.
    """
    if THREADS in os.environ:
        return
    for path in _libraries():
        with suppress(OSError):
            _set_threads(ctypes.CDLL(path), len(os.sched_getaffinity(0)))


def _libraries() -> set[str]:
    """Return the files of OpenBLAS that are mapped into this process."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    paths = {line.split(maxsplit=5)[5] for line in lines if "openblas" in line}
    return {path for path in paths if path.startswith("/")}


def _set_threads(library: ctypes.CDLL, n_threads: int) -> None:
    for name in _SETTERS:
        setter = getattr(library, name, None)
        if setter is not None:
            setter(ctypes.c_int(n_threads))
            return
