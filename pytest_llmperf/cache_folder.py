"""Where converted models, baselines, device ceilings and hashes of files are cached."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from pytest_llmperf.errors import UsageError


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
