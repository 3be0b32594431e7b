"""Folders of models in the cache, each written whole by the process that comes first."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from transformers import PreTrainedModel

from pytest_llmperf.cache_folder import writing
from pytest_llmperf.errors import LoadError

_CONFIGURATION = "config.json"


def write_once(folder: Path, save: Callable[[Path], None]) -> None:
    """Write a model's folder in one step, unless it is there whole. Safe among processes.

    What is cut off leaves nothing under its name. A folder without a configuration, which an
    earlier version may have left, is written anew.

    Raises LoadError where `save` leaves no configuration.
    """
    if _is_whole(folder):
        return
    with writing(folder):
        if not _is_whole(folder):
            _write(folder, save)


def save_weights(model: PreTrainedModel, folder: Path) -> None:
    """Save a model from this process, whichever rank it is.

    transformers lets rank 0 alone write, and says nothing where another one is asked to.
    """
    with patch.object(model, "should_save_on_this_rank", lambda _is_main_process: True):
        model.save_pretrained(folder)


def _is_whole(folder: Path) -> bool:
    return (folder / _CONFIGURATION).is_file()


def _write(folder: Path, save: Callable[[Path], None]) -> None:
    scratch = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        save(scratch)
        if not _is_whole(scratch):
            raise LoadError(
                f"{folder} could not be written: no {_CONFIGURATION} came of it. "
                "Is the disk full? LLMPERF_CACHE names another folder."
            )
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
