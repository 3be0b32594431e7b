"""Where converted models, baselines, device ceilings and hashes of files are cached."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pytest_llmperf.errors import LoadError, UsageError

LOCK_S = 600.0
"""How long another process may take to write what both need. A conversion takes minutes."""
_OTHER = "LLMPERF_CACHE names another folder."


def cache_dir() -> Path:
    """Return `$LLMPERF_CACHE`, or the user's cache folder for this plugin. Not created here.

    Raises UsageError where a user without a home finds another's folder in its place.
    """
    if configured := os.environ.get("LLMPERF_CACHE"):
        return Path(configured).expanduser()
    return _cache_home() / "pytest-llmperf"


def _cache_home() -> Path:
    """Return the user's folder for the caches of all programs; one of its own without a home."""
    if configured := os.environ.get("XDG_CACHE_HOME"):
        return Path(configured)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        return _without_home()


def _without_home() -> Path:
    """Return a folder in the shared temporary one, where everybody can make folders."""
    folder = Path(tempfile.gettempdir()) / f"llmperf-cache-{os.getuid()}"
    with suppress(OSError):
        folder.mkdir(mode=0o700)
    if folder.is_symlink() or not folder.is_dir() or folder.stat().st_uid != os.getuid():
        raise UsageError(
            f"this user has no home, and {str(folder)!r} is no folder of its own: "
            "set LLMPERF_CACHE to a folder that it can write."
        )
    return folder


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Be the one process that writes a folder of the cache; its parents are made.

    Raises LoadError where another process keeps it for too long, or it cannot be written.
    """
    from filelock import FileLock, Timeout  # noqa: PLC0415 - only where something is made

    lock = FileLock(f"{folder}.lock", timeout=LOCK_S)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise LoadError(
            f"{folder} was being written by another process for {LOCK_S:g} s. "
            f"Let it finish, end it if it is stopped, or give another cache: {_OTHER}"
        ) from error
    except OSError as error:
        raise LoadError(f"the cache cannot be written: {error}. {_OTHER}") from error
    try:
        yield
    finally:
        lock.release()
