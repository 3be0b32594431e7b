"""Where logs are written when a project cannot be written, and what is said when nothing can."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

import pytest

from pytest_llmperf.errors import UsageError, WorkerError
from pytest_llmperf.workers import logs
from pytest_llmperf.workers.group import WorkerGroup
from pytest_llmperf.workers.process import WorkerProcess


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """The temporary folder of the host."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(logs.tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def unwritable(tmp_path) -> Path:
    """A place in which no folder can be made, whoever asks: a file is in the way."""
    (tmp_path / "project").write_text("")
    return tmp_path / "project" / ".llmperf" / "logs"


def test_logs_lie_in_the_project(tmp_path, temporary):
    wanted = tmp_path / ".llmperf" / "logs"
    assert logs.usable(wanted) == wanted
    assert not list(temporary.iterdir())


def test_logs_of_a_project_that_cannot_be_written_lie_in_the_users_own_folder(
    unwritable, temporary
):
    folder = logs.usable(unwritable)
    assert folder.parent.parent == temporary
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("planted", ["file", "link"])
def test_what_another_user_planted_in_the_temporary_folder_is_not_used(
    unwritable, temporary, tmp_path, planted
):
    name = temporary / f"llmperf-{logs.os.getuid()}"
    name.write_text("") if planted == "file" else name.symlink_to(tmp_path)
    with pytest.raises(WorkerError, match=r"logs can be written nowhere.*TMPDIR"):
        logs.usable(unwritable)


def test_a_log_is_its_users_alone(tmp_path):
    logs.create(tmp_path / "a.log").close()
    assert stat.S_IMODE((tmp_path / "a.log").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (OSError(errno.EMFILE, "Too many open files"), WorkerError, "ulimit -n"),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), WorkerError, "ulimit -u"),
        (FileNotFoundError(errno.ENOENT, "No such file", "py"), UsageError, "interpreter"),
    ],
)
def test_the_interpreter_is_blamed_for_what_is_its_fault_alone(
    tmp_path, monkeypatch, error, kind, said
):
    def start(**_arguments):
        raise error

    monkeypatch.setattr(WorkerProcess, "start", start)
    with pytest.raises(kind, match=said) as caught:
        WorkerGroup.start(log_dir=tmp_path, name="m")
    assert ("interpreter" in str(caught.value)) is (kind is UsageError)
