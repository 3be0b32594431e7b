"""Which GPUs a process sees, by CUDA's own rules, and inventories that are made up."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pytest_llmperf.devices.drivers import read_inventory
from pytest_llmperf.devices.inventory import Gpu, Physical, environment_of, simulated, visible
from pytest_llmperf.errors import UsageError


def gpu(uuid: str, *, mig: bool = False) -> Gpu:
    return Gpu(
        index=0,
        uuid=uuid,
        name="NVIDIA H200",
        total_bytes=141 * 10**9,
        capability=(9, 0),
        mig=mig,
        selector=uuid,
    )


WHOLE = [Physical(uuid=f"GPU-{i}{i}{i}", parts=(gpu(f"GPU-{i}{i}{i}"),)) for i in range(3)]
CUT = [
    *WHOLE[:1],
    Physical(uuid="GPU-cut", parts=(gpu("MIG-aa", mig=True), gpu("MIG-ab", mig=True))),
]


def uuids(listed, variable) -> list[str]:
    found = visible(listed, variable).gpus
    assert [each.index for each in found] == list(range(len(found)))
    return [each.uuid for each in found]


@pytest.mark.parametrize(
    ("variable", "seen"),
    [
        (None, ["GPU-000", "GPU-111", "GPU-222"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1", ["GPU-111"]),
        ("2,0", ["GPU-222", "GPU-000"]),
        ("GPU-22,1", ["GPU-222", "GPU-111"]),
        ("0,7,1", ["GPU-000"]),
        ("0,-1,1", ["GPU-000"]),
        ("GPU-", []),
        ("1,1", []),
        ("nonsense", []),
    ],
)
def test_the_variable_is_read_as_cuda_reads_it(variable, seen):
    """By index and by the beginning of a UUID, in its order, up to the first unknown entry."""
    assert uuids(WHOLE, variable) == seen


@pytest.mark.parametrize(
    ("variable", "seen"),
    [
        (None, ["GPU-000", "MIG-aa", "MIG-ab"]),
        ("1", ["MIG-aa"]),
        ("MIG-ab", ["MIG-ab"]),
        ("GPU-cut", ["MIG-aa"]),
        ("MIG-a", []),
    ],
)
def test_slices_are_devices_of_their_own(variable, seen):
    """A GPU that is cut up is never seen as a whole."""
    assert uuids(CUT, variable) == seen


def test_what_is_hidden_is_said():
    assert visible(WHOLE, "").why_none == "CUDA_VISIBLE_DEVICES='' hides all 3 GPUs"
    assert visible(WHOLE, "0,x").notes == (
        "CUDA_VISIBLE_DEVICES='0,x': 'x' names no GPU here, it and what follows are hidden",
    )
    assert "twice" in visible(WHOLE, "0,GPU-000").why_none


def test_a_worker_is_shown_devices_by_uuid_and_an_amd_gpu_by_its_number():
    assert environment_of([part for each in WHOLE[:2] for part in each.parts]) == {
        "CUDA_VISIBLE_DEVICES": "GPU-000,GPU-111"
    }
    amd = Gpu(index=0, uuid="GPU-x", name="MI300X", total_bytes=1, vendor="amd", selector="3")
    assert environment_of([amd]) == {"HIP_VISIBLE_DEVICES": "3"}


def test_a_simulated_inventory_is_what_its_text_says():
    found = simulated("2x141GB:NVIDIA H200:9.0, 1x24GB")
    assert found.simulated
    assert [(g.index, g.name, g.total_bytes, g.capability) for g in found.gpus] == [
        (0, "NVIDIA H200", 141 * 10**9, (9, 0)),
        (1, "NVIDIA H200", 141 * 10**9, (9, 0)),
        (2, "simulated GPU", 24 * 10**9, (0, 0)),
    ]
    assert {g.uuid.rpartition("-")[0] for g in found.gpus} == {"GPU-simulated"}
    assert simulated("0").gpus == ()


@pytest.mark.parametrize("text", ["2", "2x", "x141GB", "2x141", "2x141GB:NVIDIA H200:nine"])
def test_a_simulated_inventory_that_cannot_be_read_is_named(text):
    with pytest.raises(UsageError, match=r"COUNTxMEMORY"):
        simulated(text)


def test_the_drivers_are_not_asked_about_a_simulated_inventory():
    assert (
        len(read_inventory({"LLMPERF_SIMULATED_GPUS": "3x80GB", "CUDA_VISIBLE_DEVICES": ""}).gpus)
        == 3
    )


def test_looking_for_gpus_imports_no_torch():
    """NVML and AMD's library are asked, and what is not there is said."""
    script = (
        "import sys; from pytest_llmperf.devices.drivers import inventory; found = inventory()\n"
        "assert found.gpus or found.notes; assert 'torch' not in sys.modules; print(found.why_none)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip()
