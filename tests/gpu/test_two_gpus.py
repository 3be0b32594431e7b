"""What only two real GPUs show.

The inventory is what torch sees, workers are where the lease says, and memory comes back.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_llmperf.devices.drivers import read_inventory
from pytest_llmperf.devices.placement import gpu_count

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(gpu_count() < 2, reason="needs two GPUs")]

TESTS = """
import pytest
from pytest_llmperf import Decode
from pytest_llmperf.devices.drivers import usage

WORK = Decode(batch=1, prompt_tokens=8, new_tokens=8)

@pytest.mark.llmperf(model="arch:small-llama", strategy="bf16", device="cuda")
@pytest.mark.llmperf_gpus(1)
@pytest.mark.parametrize(
    "seed", [pytest.param(i, marks=pytest.mark.llmperf(seed=i)) for i in range(4)]
)
def test_one(llm, seed, llmperf_devices):
    before = usage(llmperf_devices[0]).used_bytes
    llm.run(WORK)
    assert before > 100_000_000  # the worker and its model are on the device that the lease names

@pytest.mark.llmperf_gpus(2)
def test_two(llmperf_devices):
    assert all(usage(gpu).used_bytes < 2_000_000_000 for gpu in llmperf_devices)
"""


def test_the_inventory_is_what_torch_sees():
    """Names, memory and capability, in torch's order; and by UUID in the order of the variable."""
    script = (
        "import json, torch\n"
        "n = torch.cuda.device_count()\n"
        "p = [torch.cuda.get_device_properties(i) for i in range(n)]\n"
        "print(json.dumps([[d.name, str(d.uuid), [d.major, d.minor]] for d in p]))"
    )
    backwards = ",".join(gpu.uuid for gpu in reversed(read_inventory({}).gpus))
    for variable in (None, backwards, "1"):
        environment = {} if variable is None else {"CUDA_VISIBLE_DEVICES": variable}
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={"CUDA_DEVICE_ORDER": "PCI_BUS_ID", **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        seen = [
            [gpu.name, gpu.uuid.removeprefix("GPU-"), list(gpu.capability)]
            for gpu in read_inventory(environment).gpus
        ]
        assert json.loads(done.stdout) == seen


def test_two_processes_measure_on_two_devices_and_leave_them_as_they_were(tmp_path):
    """Both GPUs were used, each test's worker saw one, and the test of both found them free."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(TESTS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "2",
        "--llmperf-gpus=2",
        "--llmperf-budget=2",
        "--llmperf-store=none",
    ]
    done = subprocess.run(
        [*command, "--llmperf-json=out.jsonl"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    facts = [
        json.loads(line)["environment"]["facts"]
        for line in Path(tmp_path / "out.jsonl").read_text().splitlines()
    ]
    assert {fact["leased_gpus"] for fact in facts} == {"cuda:0", "cuda:1"}
    assert {fact["device_count"] for fact in facts} == {1}
    assert len({fact["device_uuid_hash"] for fact in facts}) == 2
