"""A model's folder in the cache is whole, whichever rank of a group writes it."""

from __future__ import annotations

import pytest
import torch.distributed as dist
from transformers.distributed import mixin

from pytest_llmperf.engines.loading import arch
from pytest_llmperf.engines.loading.written_once import save_weights, write_once
from pytest_llmperf.errors import LoadError


@pytest.fixture
def model():
    import torch

    cpu = torch.device("cpu")
    return arch.build("tiny-llama", dtype=torch.float32, device=cpu, seed=0, attention=None)


@pytest.fixture
def _second_rank(monkeypatch):
    """This process is rank 1 of a group, as transformers sees it."""
    monkeypatch.setattr(mixin, "_is_torch_distributed_initialized", lambda: True)
    monkeypatch.setattr(mixin, "_get_torch_distributed_rank", lambda: 1)


@pytest.mark.usefixtures("_second_rank")
def test_a_rank_that_is_not_the_first_writes_the_weights(model, tmp_path):
    """transformers' own way would write nothing there."""
    model.save_pretrained(tmp_path / "its-own")
    assert not list((tmp_path / "its-own").iterdir())
    write_once(tmp_path / "whole", lambda folder: save_weights(model, folder))
    assert {"config.json", "model.safetensors"} <= {
        file.name for file in (tmp_path / "whole").iterdir()
    }
    assert not dist.is_initialized()


def test_an_empty_folder_of_an_earlier_version_is_written_anew(model, tmp_path):
    """It had been taken for a model for ever."""
    folder = tmp_path / "model"
    folder.mkdir()
    write_once(folder, lambda scratch: save_weights(model, scratch))
    assert (folder / "config.json").is_file()


def test_what_leaves_no_configuration_is_an_error_and_no_folder(tmp_path):
    """The next process tries again."""
    with pytest.raises(LoadError, match=r"no config\.json came of it"):
        write_once(tmp_path / "model", lambda _scratch: None)
    assert not (tmp_path / "model").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["model.lock"]
