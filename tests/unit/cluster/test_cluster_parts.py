"""A cluster without a cluster.

Addresses, what ranks reserve of hosts, what a rank is told, and files that go there and back.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.cluster import files, node, placement
from pytest_llmperf.cluster.cluster import Cluster, carried
from pytest_llmperf.cluster.link import Link
from pytest_llmperf.cluster.messages import (
    Done,
    HostList,
    Launch,
    ListHosts,
    Node,
    Reserve,
    Reserved,
    Slot,
)
from pytest_llmperf.cluster.ranks import of_several_hosts
from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.core.trace import EnergyReading
from pytest_llmperf.devices.inventory import Gpu
from pytest_llmperf.devices.selection import Need
from pytest_llmperf.errors import UsageError, WorkerDied
from pytest_llmperf.settings import cluster_address, settings
from pytest_llmperf.strategies import parse
from pytest_llmperf.wire.results import EnergyRead

MODEL = ModelRef(name="arch:tiny-llama", kind="arch", location="tiny-llama")


def host(name: str, cpus: float, gpus: float = 0, devices: tuple[Gpu, ...] = ()) -> Node:
    return Node(
        id=f"id-{name}",
        address=f"10.0.0.{len(name)}",
        name=name,
        cpus=cpus,
        gpus=gpus,
        devices=devices,
    )


def plan(strategy: str, device: str = "cpu") -> LoadPlan:
    return parse(strategy).apply(LoadPlan(model=MODEL, device=device))


@pytest.mark.parametrize(
    "text",
    [
        "auto",
        "ray://head:10001",
        "ray://10.0.0.7:1",
        "ray://[fe80::1]:10001",
        "ray://a.b-c.example:65535",
    ],
)
def test_addresses_of_a_cluster(text):
    """What Ray takes, as it stands; spaces around it do not matter."""
    assert cluster_address.parse(f" {text} ") == text


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("atuo", "Did you mean 'auto'"),
        ("ray://head", "Add the port: 'ray://head:10001'"),
        ("head:6379", "a client's is 'ray://head:10001'"),
        ("ray://head:99999", "is not an address"),
        ("ray://:10001", "is not an address"),
        ("http://head:8265", "is not an address"),
    ],
)
def test_what_is_no_address_is_refused_with_what_is(text, advice):
    """The value is named, and both forms."""
    with pytest.raises(UsageError, match=r"'auto' \(this machine.*'ray://HOST:PORT'") as raised:
        cluster_address.parse(text)
    assert advice in str(raised.value)
    assert repr(text) in str(raised.value)


def test_a_client_needs_grpc_and_auto_does_not(monkeypatch):
    """Each lacking package is said with the extra that has it."""
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(
        UsageError, match=r"Ray is not installed here. Run pip install 'pytest-llmperf\[ray\]'"
    ):
        cluster_address.require_ray("auto")
    monkeypatch.setitem(sys.modules, "ray", pytest)
    cluster_address.require_ray("auto")
    with pytest.raises(UsageError, match="grpcio, which is not installed"):
        cluster_address.require_ray("ray://head:10001")


@given(
    st.lists(st.integers(0, 64), min_size=1, max_size=6),
    st.sampled_from(["fp32", "fp32+tp2", "fp32+tp2+dp2", "fp32+tp3"]),
)
def test_ranks_on_cpus_get_the_most_that_all_of_them_can_have(cpus, strategy):
    """All bundles fit on the hosts at once, and with one CPU more in each they would not."""
    nodes, wanted = [host("h" * (i + 1), n) for i, n in enumerate(cpus)], plan(strategy)
    if sum(cpus) < wanted.ranks:
        with pytest.raises(UsageError, match=f"lends {sum(cpus)} CPU"):
            placement.bundles(wanted, nodes, "auto")
        return
    bundles = placement.bundles(wanted, nodes, "auto")
    assert len(bundles) == wanted.ranks
    size = bundles[0].cpus
    assert sum(n // size for n in cpus) >= wanted.ranks > sum(n // (size + 1) for n in cpus)
    used = placement.hosts(bundles, nodes, close=False)
    assert len(used) == min(wanted.ranks, sum(n >= size for n in cpus))


def test_ranks_on_gpus_share_hosts_and_their_cpus():
    """One GPU each with its host's share of CPUs, on as few hosts as there can be."""
    nodes = [host("a", 16, 2), host("bb", 32, 4), host("ccc", 8)]
    bundles = placement.bundles(plan("fp32+tp2+dp2", "cuda"), nodes, "auto")
    assert {(each.cpus, each.gpus) for each in bundles} == {(8, 1)}
    assert [n.name for n in placement.hosts(bundles, nodes, close=True)] == ["bb"]
    assert len(placement.hosts(bundles, nodes, close=False)) == 2
    with pytest.raises(
        UsageError,
        match=r"needs a GPU; --llmperf-cluster='auto' lends 2 GPUs .*a strategy of at most 2 ranks",
    ):
        placement.bundles(plan("fp32+tp3", "cuda"), nodes[:1], "auto")


def test_a_rank_meets_the_others_at_a_hosts_address_and_sees_its_own_devices_alone(monkeypatch):
    """Not the loopback interface, unless that is where the cluster is.

    A single rank has none of it.
    """
    order = Launch(
        model="m", ranks=2, python="", program=(), cwd="", env={"HF_HOME": "/models"}, deadline_s=1
    )
    monkeypatch.setenv("RAY_JOB_ID", "7")
    monkeypatch.setattr(node, "interface_of", lambda address: {"10.0.0.2": "eth7"}[address])
    env = node.environment(order, 1, "10.0.0.1:4242", "10.0.0.2")
    assert (env["MASTER_ADDR"], env["MASTER_PORT"], env["RANK"], env["LOCAL_RANK"]) == (
        "10.0.0.1",
        "4242",
        "1",
        "0",
    )
    assert (env["GLOO_SOCKET_IFNAME"], env["NCCL_SOCKET_IFNAME"], env["HF_HOME"]) == (
        "eth7",
        "eth7",
        "/models",
    )
    assert "RAY_JOB_ID" not in env
    one = Launch(model="m", ranks=1, python="", program=(), cwd="", env={}, deadline_s=1)
    assert "MASTER_ADDR" not in node.environment(one, 0, "", "10.0.0.2")


def test_the_interface_of_an_address():
    """The loopback interface has its own; an address of nobody has none."""
    assert node.interface_of("127.0.0.1").startswith("lo")
    assert node.interface_of("203.0.113.1") == ""


def test_a_session_hands_its_settings_on_and_keeps_what_is_of_this_host():
    """Caches and libraries' settings travel; paths, devices and tokens of this host do not."""
    there = carried(
        {
            "LLMPERF_CACHE": "/c",
            "HF_TOKEN": "t",
            "PATH": "/bin",
            "LLMPERF_CORES": "0",
            "CUDA_VISIBLE_DEVICES": "1",
        }
    )
    assert there == {"LLMPERF_CACHE": "/c", "HF_TOKEN": "t"}


class Disk:
    """The files of another host, below a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.written = 0

    def at(self, path: str) -> Path:
        return self._root / path.lstrip("/")

    def file_size(self, path: str) -> int:
        return self.at(path).stat().st_size if self.at(path).exists() else -1

    def read_file(self, path: str, start: int) -> bytes:
        return self.at(path).read_bytes()[start : start + files.CHUNK_BYTES]

    def write_file(self, path: str, start: int, data: bytes) -> None:
        self.written += len(data)
        host = node.RankHost("id", "127.0.0.1", on_gpus=False)
        host.write_file(str(self.at(path)), start, data)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 30])
def test_a_file_goes_there_and_back_in_parts_and_once(tmp_path, monkeypatch, size):
    """Whole whatever its size, copied only where it is not there, replaced where it is cut off."""
    monkeypatch.setattr(files, "CHUNK_BYTES", 8)
    there, path = Disk(tmp_path / "host"), tmp_path / "cache" / "reference"
    path.parent.mkdir()
    path.write_bytes(bytes(range(size)))
    there.write_file(str(path), 0, b"cut")
    for _ in range(2):
        files.give(str(path), there)
    assert there.written == 3 + size
    path.unlink()
    path.parent.rmdir()
    files.fetch(str(path), there)
    assert path.read_bytes() == bytes(range(size))
    files.fetch(str(path), Disk(tmp_path / "nothing is asked of it"))


class Asked:
    """A link that says what hosts there are and lends what is requested; it notes its requests."""

    alive = True

    def __init__(self, *nodes: Node) -> None:
        self.nodes = nodes
        self.version = importlib.metadata.version("pytest-llmperf")
        self.asked: list[str] = []

    def ask(self, request, *_, **__):
        self.asked.append(type(request).__name__)
        if isinstance(request, Reserve):
            facts = {
                "node": "n",
                "address": "10.0.0.1",
                "name": "a",
                "pid": 1,
                "version": self.version,
            }
            return Reserved(slots=tuple(Slot(**facts) for _ in request.bundles))
        return HostList(nodes=self.nodes, ray="0") if isinstance(request, ListHosts) else Done()


def cluster_of(monkeypatch, *nodes: Node, gpus: str = "all", link: Asked | None = None) -> Cluster:
    monkeypatch.setattr(Link, "open", lambda *_: link or Asked(*nodes))
    monkeypatch.setattr("pytest_llmperf.cluster.cluster.require_ray", lambda _: None)
    return Cluster("auto", gpus=gpus, wait_s=1, log_dir=Path(), on_wait=lambda _: None)


def test_the_pool_is_the_gpus_that_ray_lends(monkeypatch):
    """Numbered through all hosts; --llmperf-gpus takes a number of them, and cannot choose."""
    gpus = tuple(Gpu(index=i, uuid=f"GPU-{i}", name="H200", total_bytes=10**11) for i in range(4))
    nodes = (host("a", 8, 2, gpus), host("b", 8), host("c", 8, 1, gpus[2:]))
    found = cluster_of(monkeypatch, *nodes).gpus
    assert [(gpu.index, gpu.uuid) for gpu in found.gpus] == [
        (0, "GPU-0"),
        (1, "GPU-1"),
        (2, "GPU-2"),
    ]
    assert len(cluster_of(monkeypatch, *nodes, gpus="2").gpus.gpus) == 2
    with pytest.raises(UsageError, match="Ray chooses among its GPUs; a count or 'all' is needed"):
        _ = cluster_of(monkeypatch, *nodes, gpus="0,2").gpus
    assert "lends none: a (10.0.0.1): 8 CPUs, 0 GPUs" in str(
        cluster_of(monkeypatch, host("a", 8)).gpus
    )


def test_a_condition_that_only_some_gpus_meet_is_refused(monkeypatch):
    """Ray would take any of them; what all meet, or none is asked for, goes."""
    small, large = (
        Gpu(index=0, uuid=f"GPU-{n}", name="H200", total_bytes=n) for n in (10**10, 10**11)
    )
    cluster = cluster_of(monkeypatch, host("a", 8, 1, (small,)), host("b", 8, 1, (large,)))
    cluster.require_any_gpu_meets(Need(least=2, most=2, name="h200"))
    with pytest.raises(
        UsageError,
        match=r"needs 1 GPU with memory >= 50 GB, which 1 of the 2 GPUs of .*'auto' meet",
    ):
        cluster.require_any_gpu_meets(Need(memory=5 * 10**10))


def test_another_version_cannot_be_compared_with_there():
    """The two options are named."""
    with pytest.raises(
        UsageError, match=r"--llmperf-cluster='auto' and --llmperf-against='HEAD~1'"
    ):
        settings.read_cluster("auto", "HEAD~1")
    assert (settings.read_cluster(" ", "HEAD~1"), settings.read_cluster("auto", "")) == ("", "auto")


def test_a_cluster_that_does_not_answer_is_asked_once(monkeypatch):
    """Every test gets the same error; none waits for it again."""
    asked = []

    def gone(*_):
        asked.append(1)
        raise WorkerDied("the connection ended")

    cluster = cluster_of(monkeypatch)
    monkeypatch.setattr(Link, "open", gone)
    for _ in range(3):
        with pytest.raises(WorkerDied, match="ended"):
            cluster.require(plan("fp32"))
    assert len(asked) == 1


def test_bundles_are_kept_while_they_will_do_and_taken_anew_when_not(monkeypatch):
    """Fewer ranks on the same kind of device run in what is held.

    More need more, after all models have left.
    """
    link, left = Asked(host("a", 8)), []
    cluster = cluster_of(monkeypatch, link=link)
    cluster.call_before_release(lambda: left.append(len(link.asked)))
    for strategy in ("fp32+tp2", "fp32", "bf16+tp2"):
        cluster.hold(plan(strategy))
    assert link.asked == ["ListHosts", "Reserve"]
    cluster.hold(plan("fp32+tp3"))
    assert (link.asked[2:], left) == (["ReturnBundles", "Reserve"], [2])
    cluster.release()
    cluster.release()
    assert link.asked[4:] == ["ReturnBundles"]


def test_a_host_with_another_version_is_refused_and_given_back(monkeypatch):
    """Both versions are named, and the host."""
    link = Asked(host("a", 8))
    link.version = "0.0.0"
    with pytest.raises(
        UsageError, match=r"pytest-llmperf is .* here and 0\.0\.0 on a \(10\.0\.0\.1\)"
    ):
        cluster_of(monkeypatch, link=link).hold(plan("fp32"))
    assert link.asked == ["ListHosts", "Reserve", "ReturnBundles"]


def test_the_energy_of_cpus_on_several_hosts_is_not_that_of_one():
    """A GPU's own counter counts for its rank wherever it is.

    A CPU's is shared, and ranks do not know by whom.
    """
    joules = {"joules": 7.0, "seconds": 4.0, "n_output_tokens": 8}
    gpu = EnergyRead(energy=EnergyReading(**joules, source="nvml-counter"))
    unread = EnergyRead(energy=EnergyReading(**joules | {"joules": None}, reason="no counter"))
    assert (of_several_hosts(gpu), of_several_hosts(unread)) == (gpu, unread)
    cpu = of_several_hosts(EnergyRead(energy=EnergyReading(**joules, source="rapl"))).energy
    assert cpu.joules is None
    assert "several hosts" in cpu.reason
