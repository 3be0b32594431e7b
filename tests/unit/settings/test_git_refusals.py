"""What --llmperf-against says of repositories as CI has them: of another owner, and shallow."""

from __future__ import annotations

import subprocess

import pytest
from support.repository import Repository

from pytest_llmperf.errors import UsageError
from pytest_llmperf.settings.against_target import find_target


@pytest.fixture
def full(tmp_path, monkeypatch):
    """A repository of two commits; git reads no settings of this machine."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "none"))
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", str(tmp_path / "none"))
    repository = Repository(tmp_path / "full")
    for number in (1, 2):
        repository.write(**{"speed.py": f"TPOT = '{number}ms'\n"})
        repository.git("add", "-A")
        repository.git("commit", "-qm", f"{number}")
    return repository.path


def test_a_repository_of_another_owner_is_refused_in_the_words_of_git(full, monkeypatch):
    """They have the remedy. Without the owner's name in the way the revision is found."""
    assert find_target("HEAD~1", full).kind == "revision"
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(UsageError) as caught:
        find_target("HEAD~1", full)
    message = str(caught.value)
    assert message.startswith(f"--llmperf-against='HEAD~1': git refuses to read {full}: fatal: ")
    assert "git config --global --add safe.directory" in message
    assert "\n" not in message


def test_a_shallow_clone_lacks_the_commit_and_says_how_to_get_it(full, tmp_path):
    """A full one, which lacks a revision too, says nothing of it."""
    subprocess.run(
        ["git", "clone", "-q", "--depth=1", full.as_uri(), str(tmp_path / "shallow")], check=True
    )
    assert find_target("HEAD", tmp_path / "shallow").kind == "revision"
    with pytest.raises(UsageError, match=r"is not a revision .*shallow.*git fetch --unshallow"):
        find_target("HEAD~1", tmp_path / "shallow")
    with pytest.raises(UsageError) as caught:
        find_target("HEAD~5", full)
    assert "shallow" not in str(caught.value)


def test_a_folder_is_compared_with_whatever_git_says(full, tmp_path, monkeypatch):
    """No repository is needed for it."""
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    (tmp_path / "before").mkdir()
    assert find_target(str(tmp_path / "before"), full).kind == "folder"
