"""While an engine is imported, torch knows the GPUs without opening them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch._dynamo import device_interface

from pytest_llmperf.instruments import unopened


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    """Return a function that sets the capabilities of the GPUs that the driver lists."""
    driver = tmp_path / "driver"
    driver.touch()
    monkeypatch.setattr(unopened, "_DRIVER", driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def listed(*capabilities):
        monkeypatch.setattr(unopened, "_asked_capabilities", lambda: capabilities)

    return listed


def test_torch_answers_for_gpus_that_are_alike_and_is_itself_again_afterwards(gpus):
    """Their number and capability are known; torch's own functions come back."""
    gpus((9, 0), (9, 0))
    before = (torch.cuda.is_available, torch.cuda.get_device_properties)
    with unopened.unopened_gpus():
        assert torch.cuda.is_available()
        assert torch.cuda.device_count() == 2
        assert torch.cuda.get_device_capability() == (9, 0)
        assert torch.cuda.get_device_properties(1).major == 9
        with pytest.raises(AttributeError):
            _ = torch.cuda.get_device_properties(0).total_memory
    assert (torch.cuda.is_available, torch.cuda.get_device_properties) == before


def test_what_a_package_keeps_is_torchs_own_after_the_block(gpus, monkeypatch):
    """torch's compiler keeps the functions, and the answers for as long as the process lives."""
    gpus((9, 0))
    opened = SimpleNamespace(major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: opened)
    with unopened.unopened_gpus():
        kept_function = torch.cuda.get_device_properties
        kept_answer = kept_function("cuda:0")
        assert kept_answer.major == 9
        with pytest.raises(AttributeError, match="'multi_processor_count' of a GPU is not known"):
            _ = kept_answer.multi_processor_count
    assert kept_answer.multi_processor_count == 132
    assert kept_function("cuda:0") is opened
    with unopened.unopened_gpus():
        assert kept_function("cuda:0") is not opened, "nothing opens the GPU in a later block"


def test_the_current_device_is_asked_for_again_in_each_rank(gpus, monkeypatch):
    """While packages are imported it is 0, which is right for the first rank alone."""
    gpus((9, 0), (9, 0))
    monkeypatch.setattr(device_interface, "caching_worker_current_devices", {})
    with unopened.unopened_gpus():
        assert device_interface.CudaInterface.Worker.current_device() == 0
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert device_interface.CudaInterface.Worker.current_device() == 1


@pytest.mark.parametrize("capabilities", [(), ((9, 0), (8, 0))], ids=["none", "different"])
def test_torch_is_asked_where_the_answer_would_be_a_guess(gpus, capabilities):
    """GPUs of two kinds: which one a library means is not known."""
    gpus(*capabilities)
    before = torch.cuda.get_device_capability
    with unopened.unopened_gpus():
        assert torch.cuda.get_device_capability is before


def test_no_gpu_is_available_where_none_may_be_seen(gpus, monkeypatch):
    """CUDA_VISIBLE_DEVICES is empty: libraries are imported as on a machine without GPUs."""
    gpus((9, 0))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with unopened.unopened_gpus():
        assert not torch.cuda.is_available()


def test_another_process_is_asked_and_its_failure_is_no_answer(monkeypatch):
    """It prints what the driver lists; where it cannot be run at all, nothing is known."""
    unopened._asked_capabilities.cache_clear()
    script = "import sys; sys.stdout.write('[[9,0],[9,0]]')"
    monkeypatch.setattr(unopened, "_CODE", script)
    assert unopened._asked_capabilities() == ((9, 0), (9, 0))
    unopened._asked_capabilities.cache_clear()
    monkeypatch.setattr(unopened.sys, "executable", "/bin/false")
    assert unopened._asked_capabilities() == ()
    unopened._asked_capabilities.cache_clear()
