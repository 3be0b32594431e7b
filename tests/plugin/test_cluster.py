"""--llmperf-cluster through pytest: the ranks of a model on a cluster's hosts.

A fake Ray lends them; the workers are real.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pytest_llmperf.cluster.cluster import Cluster
from pytest_llmperf.errors import DeviceBusy, UsageError
from pytest_llmperf.strategies import parse
from pytest_llmperf.testing import scripted_plan

pytestmark = pytest.mark.own_process


FAKE = Path(__file__).parents[1] / "support" / "fake_ray"


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch):
    """`hosts([1, 0], [1, 0])`: a cluster of hosts that lend so many CPUs and GPUs."""

    def put(*nodes: list[int], busy: bool = False) -> None:
        monkeypatch.setenv(
            "PYTHONPATH", os.pathsep.join(filter(None, (str(FAKE), os.environ.get("PYTHONPATH"))))
        )
        if nodes:
            monkeypatch.setenv("FAKE_RAY", json.dumps({"nodes": nodes, "busy": busy}))

    return put


TESTS = """
import pytest
from pytest_llmperf import Decode
pytestmark = pytest.mark.llmperf(engine="scripted", model="scripted:ttft=50ms")
WORK = Decode(new_tokens=4)
FAULTS = [f"scripted:fault={kind}@run:rank1" for kind in ("crash", "exit", "hang")]

def test_scaling(llm_tp2, baseline):
    ours, one = llm_tp2.compare(baseline, WORK)
    assert ours.memory.weights == one.memory.weights
    assert ours.speed_up >= 0.95
    assert len(ours.memory.ranks) == 2
    assert llm_tp2.agreement(baseline, new_tokens=4).top1 >= 0.5

@pytest.mark.parametrize("model", FAULTS)
def test_fault(llm_factory, model):
    llm_factory("fp32+tp2", model=model).run(WORK)

def test_too_many_ranks(llm_factory):
    llm_factory("fp32+tp3").run(WORK)

def test_after_all_that(llm):
    llm.run(WORK)
"""


def test_ranks_on_two_hosts_are_measured_and_what_fails_there_is_named(hosts, pytester, run, lines):
    """Records name each rank's host.

    A traceback, an exit, a hang and too many ranks are errors of their tests alone.
    """
    hosts([1, 0], [1, 0])
    pytester.makeini("[pytest]\nllmperf_cluster = auto\n")
    pytester.makepyfile(test_it=TESTS)
    result = run("--llmperf-timeout=2", "--llmperf-json=out.jsonl")
    result.assert_outcomes(passed=2, errors=4)
    host = r"pid \d+ on \S+ \(127\.0\.0\.1\)"
    result.stdout.re_match_lines(
        [
            rf".*worker rank 1 of 2 \({host}\) failed in Run: RuntimeError: scripted: a crash.*",
            r".*Traceback \(most recent call last\).*",
            rf".*worker rank 1 of 2 \({host}\) ended by exit code 3 in Run.*",
            rf".*worker rank 1 of 2 \({host}\) hung in Run.*within its deadline of 2 s.*",
            r".*--- stacks of rank 1 ---.*",
            (
                r".*has 3 ranks, each of which needs a CPU; --llmperf-cluster='auto' lends 2 CPUs "
                r"\(host0 \(127.0.0.1\): 1 CPU.*"
            ),
        ],
    )
    facts = {
        record["strategy"]: record["environment"]["facts"]
        for record in lines()
        if "scaling" in record["test"]
    }
    assert (facts["tp2"]["cluster"], facts["tp2"]["n_hosts"], facts["fp32"]["n_hosts"]) == (
        "ray",
        2,
        1,
    )
    assert (facts["tp2"]["rendezvous"], facts["fp32"]["rendezvous"]) == ("127.0.0.1", None)
    assert [part.partition(":")[0] for part in facts["tp2"]["rank_hosts"].split("; ")] == [
        "rank 0",
        "rank 1",
    ]
    logs = sorted(
        path.name for path in (pytester.path / ".llmperf" / "logs").glob("*ttft-50ms-tp2*")
    )
    assert [name[-9:] for name in logs] == ["rank0.log", "rank1.log"]


def test_the_plan_says_on_how_many_hosts(hosts, project, run, monkeypatch):
    """Nothing is reserved for it."""
    monkeypatch.setenv("COLUMNS", "140")
    hosts([1, 0], [1, 0], busy=True)
    project(
        "@pytest.mark.parametrize('llm', ['fp32+tp2'], indirect=True)\n"
        "def test_speed(llm):\n    llm.run(WORK)\n"
    )
    run("--llmperf-cluster=auto", "--llmperf-plan").stdout.fnmatch_lines(
        ["*cpu on 2 hosts of auto*"]
    )


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A session's cluster, without the session."""
    made = Cluster("auto", gpus="all", wait_s=1, log_dir=tmp_path, on_wait=lambda _: None)
    yield made
    made.close()


def test_without_ray_the_option_says_what_to_install(cluster, monkeypatch):
    """And loads nothing on this machine instead."""
    monkeypatch.setitem(sys.modules, "ray", None)
    for _ in range(2):
        with pytest.raises(
            UsageError,
            match=r"'auto': Ray is not installed here. Run pip install 'pytest-llmperf\[ray\]'",
        ):
            cluster.require(scripted_plan())


def test_no_cluster_is_said_with_how_to_start_one(hosts, cluster, monkeypatch):
    """What Ray says, and what to do."""
    hosts()
    monkeypatch.syspath_prepend(FAKE)
    with pytest.raises(
        UsageError, match=r"'auto': Could not find any running Ray instance.*'ray start --head'"
    ):
        _ = cluster.nodes


def test_what_others_hold_is_waited_for_and_then_said(hosts, cluster, monkeypatch):
    """The wait has a limit, and what is free is named."""
    hosts([1, 0], [1, 0], busy=True)
    monkeypatch.syspath_prepend(FAKE)
    with pytest.raises(
        DeviceBusy, match=r"2 x 1 CPUs were not free together within 1 s; the cluster has 0 CPUs"
    ):
        cluster.hold(parse("tp2").apply(scripted_plan()))


def test_an_interpreter_that_a_host_lacks_is_named(hosts, cluster, monkeypatch):
    """As on this machine, and the ranks that were started are gone."""
    hosts([1, 0])
    monkeypatch.syspath_prepend(FAKE)
    cluster.hold(scripted_plan())
    with pytest.raises(
        UsageError, match=r"with the interpreter /nowhere/python on a host: .*No such file"
    ):
        cluster.start(scripted_plan(), "/nowhere/python")


def running_in(folder: Path) -> list[psutil.Process]:
    """Other processes of that working directory."""
    found = psutil.process_iter(["cwd", "status", "cmdline"])
    return [
        p
        for p in found
        if p.info["cwd"] == str(folder) and p.info["status"] != "zombie" and p.pid != os.getpid()
    ]


def eventually(condition: Callable[[], bool]) -> bool:
    end_s = time.monotonic() + 30
    while not (holds := condition()) and time.monotonic() < end_s:
        time.sleep(0.05)
    return holds


def test_kill_9_of_pytest_leaves_no_rank(hosts, pytester):
    """Neither those that hang nor what they started: they end with the cluster's connection."""
    hosts([2, 0])
    pytester.makepyfile(
        test_it=TESTS.replace("fault={kind}@run:rank1", "fault=child@open,fault={kind}@run")
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-k",
        "hang",
        "--llmperf-cluster=auto",
    ]
    with subprocess.Popen(
        command, cwd=pytester.path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as session:
        assert eventually(
            lambda: (
                str([p.info["cmdline"] for p in running_in(pytester.path)]).count("signal.pause")
                == 2
            )
        )
        session.kill()
    assert eventually(lambda: not running_in(pytester.path)), running_in(pytester.path)
