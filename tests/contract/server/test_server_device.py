"""What a record of a server says about the device that it ran on."""

from __future__ import annotations

import pytest
from support.stubs import stub_plan

from pytest_llmperf.engines.server import device
from pytest_llmperf.engines.server.engine import ServerEngine
from pytest_llmperf.instruments import nvml
from pytest_llmperf.instruments.nvml import Unreadable


class Gpu:
    """Says what a driver says."""

    def __init__(self, which: str) -> None:
        self.which = which

    def facts(self) -> dict[str, str]:
        return {"name": f"GPU {self.which}", "driver": "580", "power_limit_w": "700"}


def test_a_gpu_is_the_one_that_was_leased(monkeypatch):
    """By its UUID; two kinds of GPU never share a baseline."""
    monkeypatch.setattr(device, "_first_gpu", Gpu)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1,GPU-2")
    facts = device.device_facts("cuda:0", started=True)
    assert facts == {
        "device": "cuda",
        "device_name": "GPU GPU-1,GPU-2",
        "driver": "580",
        "device_power_limit_w": "700",
    }
    assert device.device_name("cuda:0", facts) == "GPU GPU-1,GPU-2"


@pytest.mark.parametrize(
    "visible", ["", "0", "GPU-00000000-0000-0000-0000-000000000000", "MIG-x,1"]
)
def test_a_gpu_that_cannot_be_asked_leaves_its_kind(monkeypatch, visible):
    """The driver is not there, or does not know it."""
    monkeypatch.setattr(
        nvml.pynvml, "nvmlInit", lambda: (_ for _ in ()).throw(nvml.pynvml.NVMLError(9))
    )
    assert isinstance(device._first_gpu(visible), Unreadable)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device.device_facts("cuda:0", started=True) == {"device": "cuda"}
    assert device.device_name("cuda:0", {"device": "cuda"}) == "cuda:0"


def test_a_server_that_ran_already_is_elsewhere(start, model):
    """Not on this host's CPU, as far as we know; one that was started is."""
    ours = start()
    opened = ServerEngine().open(stub_plan(model, command="", url=ours._server.base))
    assert (opened.opened().device_facts, opened.opened().device_name) == (
        {"device": "elsewhere"},
        "a server elsewhere",
    )
    opened.close()
    assert ours.opened().device_facts == {"device": "cpu"}
