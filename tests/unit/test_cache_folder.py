"""Where caches lie, with a home and without, and who writes them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from filelock import FileLock

from pytest_llmperf import cache_folder
from pytest_llmperf.cache_folder import cache_dir, writing
from pytest_llmperf.errors import LoadError, UsageError


@pytest.fixture
def homeless(monkeypatch, tmp_path) -> Path:
    """A user without a home; the temporary folder is this one."""
    for name in ("LLMPERF_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def no_home():
        raise RuntimeError("no home")

    monkeypatch.setattr(cache_folder.Path, "home", no_home)
    monkeypatch.setattr(cache_folder.tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"llmperf-cache-{os.getuid()}"


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("LLMPERF_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"


def test_a_user_without_a_home_has_a_folder_of_its_own(homeless):
    assert cache_dir().parent == homeless
    assert stat.S_IMODE(homeless.stat().st_mode) == 0o700


def test_what_another_user_planted_there_is_refused(homeless, tmp_path):
    (tmp_path / "theirs").mkdir()
    homeless.symlink_to(tmp_path / "theirs")
    with pytest.raises(UsageError, match="set LLMPERF_CACHE"):
        cache_dir()


def test_another_process_that_keeps_a_folder_is_waited_for_only_so_long(tmp_path, monkeypatch):
    """It may be stopped."""
    monkeypatch.setattr(cache_folder, "LOCK_S", 0.05)
    folder = tmp_path / "deep" / "model"
    with writing(folder):
        pass
    with (
        FileLock(f"{folder}.lock"),
        pytest.raises(LoadError, match=r"for 0\.05 s.*LLMPERF_CACHE"),
        writing(folder),
    ):
        pass


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(LoadError, match="the cache cannot be written"),
        writing(tmp_path / "file" / "m"),
    ):
        pass
