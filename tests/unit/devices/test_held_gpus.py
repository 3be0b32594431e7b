"""What a process holds: never more than it asked for, never waiting while it holds.

And its part of the cores.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.devices import drivers, held
from pytest_llmperf.devices.held import Gpus, session_pool
from pytest_llmperf.devices.inventory import simulated
from pytest_llmperf.devices.leases import lease
from pytest_llmperf.devices.selection import Need
from pytest_llmperf.errors import DeviceBusy, UsageError
from pytest_llmperf.workers.this_host import share_of_cores, worker_environment

FOUR = simulated("4x80GB").gpus
WHOLE = dict.fromkeys([gpu.uuid for gpu in FOUR], 1.0)


@pytest.fixture
def hold(tmp_path, monkeypatch):
    """Four GPUs that do not exist, and leases in a folder of their own."""
    monkeypatch.setattr(drivers, "inventory", lambda: simulated("4x80GB"))
    session_pool.cache_clear()
    made = []

    def make(asked="all", wait_s=0.05) -> Gpus:
        made.append(Gpus(asked, wait_s=wait_s, directory=tmp_path))
        return made[-1]

    yield make
    for each in made:
        each.release()
    session_pool.cache_clear()


def names(held) -> list[str]:
    return [gpu.torch_name for gpu in held]


def test_what_is_held_is_kept_where_it_will_do_and_changed_where_it_will_not(hold):
    """Changing gives everything back first, with what is loaded on it.

    Nobody waits while holding something.
    """
    ours, unloaded = hold(), []
    ours.before_release = lambda: unloaded.append(names(ours.held))
    assert names(ours.require(Need(least=2, most=2), measures=True)) == ["cuda:0", "cuda:1"]
    assert names(ours.ensure(1)) == ["cuda:0"]
    ours.require(Need(least=2, most=2), measures=True)
    assert unloaded == []
    assert len(ours.ensure(3)) == 3
    assert unloaded == [["cuda:0", "cuda:1"]]
    ours.release()
    ours.release()
    assert (ours.held, len(unloaded)) == ((), 2)


def test_two_sessions_with_overlapping_pools_never_hold_the_same_gpu(hold):
    """The one that cannot be served says who is in the way, by torch's names."""
    first, second = hold("0,1"), hold("1,2")
    assert names(first.ensure(1)) == ["cuda:0"]
    assert names(second.ensure(2)) == ["cuda:1", "cuda:2"]
    with pytest.raises(
        DeviceBusy,
        match=r"2 of cuda:0, cuda:1 are wanted, and in use: process \d+ .* holds cuda:1, cuda:2",
    ):
        first.ensure(2)
    assert first.held == ()
    second.release()
    assert names(first.ensure(2)) == ["cuda:0", "cuda:1"]


def test_who_waits_is_seen_by_the_holder(hold, tmp_path):
    ours = hold()
    assert ours.wanted_since_s() == 0
    ours.ensure(4)
    assert ours.wanted_since_s() == 0
    seen = []
    with pytest.raises(DeviceBusy):
        lease(
            WHOLE,
            timeout_s=0.01,
            directory=tmp_path,
            on_wait=lambda _: seen.append(ours.wanted_since_s()),
        )
    assert seen[0] > 0


def test_a_share_is_for_tests_that_do_not_measure(hold, tmp_path):
    """40 of 80 GB leave half a device; a measuring test has it alone, whatever it takes."""
    key = FOUR[0].uuid
    ours, need = hold("0,"), Need(memory=40 * 10**9)
    ours.require(need, measures=False)
    lease({key: 0.5}, timeout_s=0, directory=tmp_path).release()
    ours.require(need, measures=True)
    with pytest.raises(DeviceBusy):
        lease({key: 0.1}, timeout_s=0, directory=tmp_path)


def test_more_than_the_pool_has_is_an_error_before_anything_is_leased(hold):
    with pytest.raises(UsageError, match=r"needs 3 GPUs, the pool has 2"):
        hold("2").ensure(3)


def test_a_model_of_the_test_itself_takes_the_device_that_it_is_on(hold):
    ours = hold("0,2")
    ours.claim("cuda:2")
    assert names(ours.held) == ["cuda:2"]
    ours.claim("cuda")
    assert names(ours.held) == ["cuda:0"]
    with pytest.raises(UsageError, match=r"'cuda:3', which the pool does not have"):
        ours.claim("cuda:3")


def test_a_foreign_process_is_waited_for_once(hold, monkeypatch):
    """Where it stays the next test is told at once; where it leaves the test goes on."""
    here = [{7: "process 7 ('x', 1.0 GB)"}, {7: "process 7 ('x', 1.0 GB)"}, {}]
    monkeypatch.setattr(held, "foreign_processes", lambda _: here.pop(0))
    monkeypatch.setattr(held, "_FOREIGN_POLL_S", 0.0)
    assert len(hold(wait_s=5).ensure(1)) == 1
    assert here == []
    monkeypatch.setattr(held, "foreign_processes", lambda _: {7: "process 7 ('x', 1.0 GB)"})
    ours = hold("1,", wait_s=0.05)
    for _ in range(2):
        with pytest.raises(held.InvalidRun, match=r"cuda:1 is used by process 7"):
            ours.ensure(1)
        assert ours.held == ()


def test_a_worker_sees_the_leased_devices_alone(hold):
    ours = hold("2,3")
    plan = LoadPlan(model=ModelRef(name="m", kind="arch", location="m"), device="cuda", ranks=2)
    assert worker_environment(ours, plan) == {}
    ours.ensure(2)
    found = worker_environment(ours, plan)
    assert found["CUDA_VISIBLE_DEVICES"] == "GPU-simulated-2,GPU-simulated-3"
    assert found["LLMPERF_CORES"]
    assert "CUDA_VISIBLE_DEVICES" not in worker_environment(
        ours, LoadPlan(model=plan.model, device="cpu")
    )


def xdist(number: int, processes: int) -> dict[str, str]:
    return {"PYTEST_XDIST_WORKER": f"gw{number}", "PYTEST_XDIST_WORKER_COUNT": str(processes)}


@pytest.mark.parametrize(
    ("held", "pool", "environ", "cores"),
    [
        (FOUR[:1], FOUR, {}, range(16)),
        (FOUR[:1], FOUR[:2], xdist(0, 2), range(8)),
        (FOUR[:1], FOUR[:2], xdist(1, 2), range(8, 16)),
        (FOUR[1:2], FOUR[:2], xdist(5, 8), range(8, 16)),
        (FOUR[:2], FOUR[:2], xdist(5, 8), range(16)),
        (FOUR[:1], FOUR[:1], xdist(3, 4), range(16)),
        ((), FOUR, xdist(0, 2), range(16)),
    ],
)
def test_cores_are_split_between_those_who_can_be_at_work_at_once(held, pool, environ, cores):
    """Between the processes, or between the devices where there are fewer."""
    assert share_of_cores(range(16), held, pool, environ) == tuple(cores)


@given(st.integers(1, 64), st.integers(1, 4), st.integers(1, 8))
def test_everybody_has_a_core_and_none_is_idle(n_cores, n_gpus, processes):
    """Together they use all cores, and no core twice where there are enough."""
    pool = FOUR[:n_gpus]
    if processes <= n_gpus:
        parts = [
            share_of_cores(range(n_cores), pool[:1], pool, xdist(i, processes))
            for i in range(processes)
        ]
    else:
        parts = [share_of_cores(range(n_cores), (gpu,), pool, xdist(0, processes)) for gpu in pool]
    assert all(parts)
    if n_cores >= len(parts):
        assert sorted(core for part in parts for core in part) == list(range(n_cores))
