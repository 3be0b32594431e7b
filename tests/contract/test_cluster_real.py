"""Ray itself, with two of its nodes on this machine.

The gloo ranks on both are one model, and nothing outlives the session. The interpreter is
LLMPERF_RAY_PYTHON, or this one where it has Ray, or a new environment on top of this one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.skipif(
    "LLMPERF_NIGHTLY" not in os.environ, reason="Ray starts for half a minute: make nightly runs it"
)

ROOT = Path(__file__).parents[2]
WAIT_S = 60.0

AGREES = """
import pytest
from pytest_llmperf import Decode, PromptSet

pytestmark = pytest.mark.llmperf(model="arch:tiny-llama", budget=2)
WORK = Decode(batch=2, prompt_tokens=8, new_tokens=8)

def test_two_hosts_are_one_model(llm_factory, baseline):
    llm = llm_factory("fp32+tp2")
    assert llm.agreement(baseline, prompts=PromptSet.synthetic(), new_tokens=8, batch=4).ok
    ours, one = llm.compare(baseline, WORK)
    assert len(ours.memory.ranks) == 2
    assert ours.memory.weights < 1.05 * one.memory.weights

def test_one_rank(baseline):
    assert baseline.run(WORK).throughput > 0
"""

FAILS = """
import pytest
from pytest_llmperf import Decode

pytestmark = pytest.mark.llmperf(model="scripted:ttft=50ms", engine="scripted")

@pytest.mark.parametrize("kind", ["crash", "exit"])
def test_speed(llm_factory, kind):
    llm = llm_factory("fp32+tp2", model=f"scripted:ttft=50ms,fault={kind}@run:rank1")
    llm.run(Decode(new_tokens=4))

def test_too_many(llm_factory):
    llm_factory("fp32+tp3").run(Decode(new_tokens=4))
"""

HANGS = """
import pytest
from pytest_llmperf import Decode

@pytest.mark.llmperf(model="scripted:ttft=50ms,fault=child@open,fault=spin@run", engine="scripted")
def test_speed(llm_factory):
    llm_factory("fp32+tp2").run(Decode(new_tokens=4))
"""


@pytest.fixture(scope="module")
def ray_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that has Ray, and all that this one has."""
    if named := os.environ.get("LLMPERF_RAY_PYTHON"):
        return named
    if importlib.util.find_spec("ray") is not None:
        return sys.executable
    folder = tmp_path_factory.mktemp("ray")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    own = (
        folder
        / "lib"
        / f"python{sys.version_info.major}.{sys.version_info.minor}"
        / "site-packages"
    )
    (own / "ours.pth").write_text(
        f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    )
    pins = ROOT / "constraints" / "cpu.txt"
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "-c", pins, "ray[client]"], check=True, timeout=900
    )
    return str(python)


@pytest.fixture(scope="module")
def hosts(ray_python: str) -> Iterator[tuple[str, str]]:
    """The cluster's own address, and that of its client server."""
    with subprocess.Popen(
        [ray_python, ROOT / "tests" / "support" / "ray_hosts.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
    ) as cluster:
        lines = iter(cluster.stdout.readline, "")
        address, client = next(line.split()[1:] for line in lines if line.startswith("hosts "))
        yield address, client
        cluster.stdin.close()
        cluster.wait(timeout=WAIT_S)


@pytest.fixture
def command(
    ray_python: str, hosts: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list]:
    """A pytest session on a cluster, as a command line."""
    monkeypatch.setenv("RAY_ADDRESS", hosts[0])
    monkeypatch.setenv("LLMPERF_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LLMPERF_NIGHTLY")

    def make(body: str, address: str, *options: str) -> list:
        (tmp_path / "test_it.py").write_text(body)
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        return [
            ray_python,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-v",
            f"--llmperf-cluster={address}",
            *options,
        ]

    return make


def finished(command: list, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("client", [False, True], ids=["auto", "ray"])
def test_ranks_on_two_nodes_agree_with_one_device(command, hosts, tmp_path, client):
    """Outputs agree and records name each rank's host, on a host of the cluster and by client."""
    address = hosts[1] if client else "auto"
    ran = finished(command(AGREES, address, "--llmperf-json=out.jsonl"), tmp_path)
    assert "2 passed" in ran.stdout, ran.stdout[-6000:]
    facts = {}
    for line in (tmp_path / "out.jsonl").read_text().splitlines():
        record = json.loads(line)
        facts[record["strategy"]] = record["environment"]["facts"]
    assert (facts["fp32+tp2"]["n_hosts"], facts["fp32"]["n_hosts"]) == (2, 1)
    assert facts["fp32+tp2"]["rank_hosts"].count("(") == 2
    assert (facts["fp32+tp2"]["rendezvous"], facts["fp32"]["rendezvous"]) == (
        hosts[0].rpartition(":")[0],
        None,
    )


def test_what_fails_on_a_node_is_named_and_the_session_goes_on(command, tmp_path):
    """A rank's traceback, a rank's exit, and more ranks than there are CPUs."""
    ran = finished(command(FAILS, "auto"), tmp_path)
    assert "3 errors" in ran.stdout, ran.stdout[-6000:]
    assert "RuntimeError: scripted: a crash" in ran.stdout
    assert "worker rank 1 of 2 (pid " in ran.stdout
    assert "ended by exit code 3 in Run" in ran.stdout
    assert (
        "'fp32+tp3' has 3 ranks, each of which needs a CPU; --llmperf-cluster='auto' lends 2 CPUs"
        in ran.stdout
    )


def ours(folder: Path) -> list[psutil.Process]:
    """Workers and their children, which keep the session's folder."""
    here = [
        each
        for each in psutil.process_iter(["cwd", "cmdline", "status"])
        if each.info["cwd"] == str(folder)
    ]
    return [each for each in here if each.info["status"] != psutil.STATUS_ZOMBIE]


def until(condition: Callable[[], bool]) -> bool:
    end_s = time.monotonic() + WAIT_S
    while not (holds := condition()) and time.monotonic() < end_s:
        time.sleep(0.2)
    return holds


@pytest.mark.parametrize("client", [False, True], ids=["auto", "ray"])
def test_kill_9_of_pytest_leaves_nothing_and_frees_the_cluster(command, hosts, tmp_path, client):
    """Ranks that loop and their children are gone, and the next session gets both hosts."""
    address = hosts[1] if client else "auto"
    session = subprocess.Popen(
        command(HANGS, address), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    assert until(
        lambda: (
            sum("pytest_llmperf.worker" in (each.info["cmdline"] or ()) for each in ours(tmp_path))
            == 2
        )
    )
    assert until(
        lambda: (
            sum("signal.pause" in " ".join(each.info["cmdline"] or ()) for each in ours(tmp_path))
            == 2
        )
    )
    os.kill(session.pid, signal.SIGKILL)
    session.wait()
    assert until(lambda: not ours(tmp_path)), [each.cmdline() for each in ours(tmp_path)]
    body = HANGS.replace(",fault=child@open,fault=spin@run", "")
    after = finished(command(body, "auto", "--llmperf-wait=60"), tmp_path)
    assert "1 passed" in after.stdout, after.stdout[-4000:]
