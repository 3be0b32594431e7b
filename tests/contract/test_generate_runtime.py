"""The device runtime: memory, energy, ceilings, telemetry."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import NamedTuple

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.core.environment import differences, environment_key
from pytest_llmperf.core.record import Environment
from pytest_llmperf.errors import OutOfMemory
from pytest_llmperf.instruments import nvml, telemetry, torch_runtime
from pytest_llmperf.instruments.ceilings import measure_ceilings
from pytest_llmperf.instruments.cpu_memory import (
    HighWaterRegion,
    SampledRegion,
    can_reset_high_water_mark,
)
from pytest_llmperf.instruments.energy import cpu_meter
from pytest_llmperf.instruments.nvml import THROTTLE_REASONS, Nvml, Unreadable
from pytest_llmperf.instruments.telemetry import (
    CpuReading,
    CpuWatch,
    GpuWatch,
    foreign_marks,
    judge_cpu,
    own_cores,
    read_cpu,
    throttle_marks,
)
from pytest_llmperf.instruments.torch_runtime import (
    DeviceRuntime,
    measure_energy,
    out_of_memory_named,
)

CPU = DeviceRuntime(torch.device("cpu"))
MIB = 2**20


@pytest.mark.parametrize("region", [HighWaterRegion, SampledRegion])
def test_a_region_sees_memory_that_is_taken_and_given_back_inside_it(region):
    if region is HighWaterRegion and not can_reset_high_water_mark():
        pytest.skip("this kernel does not let a process reset its high-water mark")
    for _ in range(2):  # the second time the pages come from what the first gave back
        with region() as watched:
            taken = torch.ones(64 * MIB, dtype=torch.uint8)
            while region is SampledRegion and watched.peak_bytes - watched._before < 60 * MIB:
                taken.add_(1)  # hold the memory until the sampling thread had its turn
            del taken
        assert 60 * MIB <= watched.growth_bytes <= 80 * MIB
    with region() as idle:
        pass
    assert idle.growth_bytes < 4 * MIB


def test_gauges_of_a_cpu_say_why_one_is_missing():
    with CPU.peak_memory() as region:
        torch.ones(8 * MIB, dtype=torch.uint8)
    gauges = CPU.memory(123, region, kv_cache=7)
    assert (gauges.weights, gauges.kv_cache) == (123, 7)
    assert (gauges.peak, gauges.growth) == (region.peak, region.growth)
    assert gauges.peak >= gauges.growth >= 7 * MIB
    assert gauges.peak > 100 * MIB  # torch alone takes more: the peak is that of the whole process
    assert gauges.reserved is None
    assert gauges.reasons["reserved"]
    assert gauges.process > 10 * MIB
    assert gauges.device > gauges.process


def test_ceilings_are_plausible_and_one_a_dtype():
    ceilings = measure_ceilings(CPU, ("float32", "bfloat16"))
    assert 1e9 < ceilings.copy_bytes_per_s < 2e12
    assert 1e9 < ceilings.read_bytes_per_s < 2e12
    assert set(ceilings.matmul_flop_per_s) == {"float32", "bfloat16"}
    assert all(1e8 < rate < 1e14 for rate in ceilings.matmul_flop_per_s.values())
    assert ceilings.device == CPU.name()


def test_facts_name_the_cpu_and_its_threads():
    facts = CPU.facts()
    assert facts["device"] == "cpu"
    assert facts["cpu_model"]
    assert facts["torch_threads"] == torch.get_num_threads()


def test_facts_say_what_waiting_threads_do_where_the_user_said_it(monkeypatch):
    """Threads that sleep are another environment; records of those that spin keep their key."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    spinning = Environment(facts=dict(CPU.facts()))
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    sleeping = Environment(facts=dict(CPU.facts()))
    assert "omp_wait_policy" not in spinning.facts
    assert differences(sleeping, spinning) == [("omp_wait_policy", "passive", None)]
    assert environment_key(sleeping) != environment_key(spinning)


class Meter:
    """A counter that gains 5 J a reading."""

    source = "test"

    def __init__(self):
        self.joules = 0.0

    def read(self):
        return self.joules

    def joules_since(self, before):
        return self.joules + 5.0 - before


class Clock:
    """perf_counter that moves 1 s a call."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        self.now += 1.0
        return self.now


def test_energy_is_read_around_repetitions_that_fill_the_time(monkeypatch):
    monkeypatch.setattr(DeviceRuntime, "meter", lambda _self: Meter())
    monkeypatch.setattr(torch_runtime, "time", Clock())
    reading = measure_energy(CPU, 4.0, lambda: 10)
    assert (reading.joules, reading.n_output_tokens, reading.seconds, reading.source) == (
        5.0,
        30,
        5.0,
        "test",
    )


def test_energy_of_a_short_region_is_not_measurable(monkeypatch):
    monkeypatch.setattr(DeviceRuntime, "meter", lambda _self: Meter())
    monkeypatch.setattr(torch_runtime, "time", Clock())
    reading = measure_energy(CPU, 1.0, lambda: 10)
    assert reading.joules is None
    assert "at least 3 s" in reading.reason


def test_without_a_counter_nothing_is_run_and_the_reason_is_given(monkeypatch):
    monkeypatch.setattr(DeviceRuntime, "meter", lambda _self: Unreadable("no counter"))
    reading = measure_energy(CPU, 4.0, lambda: pytest.fail("a repetition was run for nothing"))
    assert (reading.joules, reading.reason) == (None, "no counter")


def _package(root, name, energy, limit=1000):
    folder = root / name
    folder.mkdir()
    (folder / "energy_uj").write_text(str(energy))
    (folder / "max_energy_range_uj").write_text(str(limit))


def test_rapl_sums_packages_leaves_out_their_parts_and_follows_a_wrap(tmp_path):
    _package(tmp_path, "intel-rapl:0", 900)
    _package(tmp_path, "intel-rapl:1", 100)
    _package(tmp_path, "intel-rapl:0:0", 5)
    meter = cpu_meter(tmp_path)
    before = meter.read()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("50")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("300")
    assert meter.joules_since(before) == pytest.approx((150 + 200) / 1e6)


def test_a_machine_without_rapl_says_so(tmp_path):
    assert "no RAPL" in cpu_meter(tmp_path).reason


def _reading(t, busy, own, throttled=None):
    return CpuReading(t_s=t, busy_s=busy, own_s=own, throttled_s=throttled)


@given(own=st.floats(0, 20), foreign=st.floats(0, 20))
def test_only_the_load_of_others_is_marked(own, foreign):
    seen = judge_cpu(_reading(0, 5, 1), _reading(10, 5 + own + foreign, 1 + own), cores=2)
    assert seen.gauges["foreign_cpu_share"] == pytest.approx(foreign / 20, abs=1e-9)
    if abs(foreign / 20 - 0.25) > 1e-6:
        assert [m.kind for m in seen.marks] == (["foreign-load"] if foreign / 20 > 0.25 else [])


class Core(NamedTuple):
    """Times of a core, as psutil gives them."""

    user: float
    system: float
    idle: float


def test_load_on_cores_that_a_worker_may_not_use_is_not_counted(monkeypatch):
    """Workers that are pinned to cores of their own (pytest-xdist) do not disturb each other."""
    mine, n = min(os.sched_getaffinity(0)), os.sysconf("SC_NPROCESSORS_CONF")
    monkeypatch.setattr(
        psutil,
        "cpu_times",
        lambda **_: [Core(3, 0, 97) if i == mine else Core(90, 5, 5) for i in range(n)],
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {mine})
    assert read_cpu().busy_s == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(n)))
    assert read_cpu().busy_s == 3 + 95 * (n - 1)
    monkeypatch.setattr(os, "sysconf", lambda _: n + 1)
    assert own_cores(n) == tuple(range(n))


class Times(NamedTuple):
    """Times of a process and its children, as psutil gives them."""

    user: float
    system: float
    children_user: float
    children_system: float


def test_the_other_ranks_of_a_model_are_no_foreign_load_and_others_are(monkeypatch):
    """Two ranks that share two cores take half of them each.

    A stranger that takes as much is marked.
    """
    spent = {os.getpid(): 0.0, 7: 0.0, 8: 0.0}
    monkeypatch.setattr(
        psutil,
        "Process",
        lambda pid: SimpleNamespace(cpu_times=lambda: Times(spent.get(pid, 0.0), 0, 0, 0)),
    )
    monkeypatch.setattr(psutil, "cpu_times", lambda **_: [Core(sum(spent.values()), 0, 0)])
    monkeypatch.setattr(telemetry, "own_cores", lambda *_: (0,))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1} if pid == 8 else {0})
    monkeypatch.setattr(
        telemetry, "time", SimpleNamespace(perf_counter=lambda: spent[os.getpid()] + spent[7])
    )
    for peers, marks in (((7,), []), ((), ["foreign-load"]), ((8,), ["foreign-load"])):
        watch = CpuWatch(peers)
        watch.start()
        spent[os.getpid()] += 5
        spent[7] += 5
        assert [mark.kind for mark in watch.finish().marks] == marks


def test_a_region_shorter_than_the_ticks_of_the_counter_is_not_judged():
    assert judge_cpu(_reading(0, 0, 0), _reading(0.05, 0.1, 0), cores=2).marks == ()


def test_a_container_stopped_by_its_quota_is_throttled():
    assert [
        m.kind for m in judge_cpu(_reading(0, 0, 0, 0.0), _reading(1, 1, 1, 0.2), cores=2).marks
    ] == ["throttled"]
    assert judge_cpu(_reading(0, 0, 0, 0.0), _reading(1, 1, 1, 0.01), cores=2).marks == ()


def test_every_reason_to_slow_down_is_marked_and_the_power_cap_is_not():
    for name, bit in THROTTLE_REASONS.items():
        (mark,) = throttle_marks(bit, {})
        assert name in mark.detail
    assert throttle_marks(0x4 | 0x1, {"power": 0.9}) == ()
    assert [m.kind for m in throttle_marks(0, {"thermal": 0.05})] == ["throttled"]


def test_a_busy_neighbour_is_marked_and_an_idle_one_is_not():
    assert [m.kind for m in foreign_marks({17: 60, 18: 0})] == ["foreign-load"]
    assert foreign_marks({18: 5}) == ()


def test_what_waits_for_the_same_session_is_no_neighbour(monkeypatch):
    """The session's other model is none, though the driver averages over the time it worked in.

    A stranger is one.
    """
    monkeypatch.setattr(telemetry, "of_this_session", {17: True, 18: False}.__getitem__)
    watch = GpuWatch(BusyNvml())
    watch.start()
    seen = watch.finish()
    assert [mark.detail for mark in seen.marks] == [
        "process 18 used 70 % of the GPU's multiprocessors"
    ]
    assert seen.gauges["foreign_processes"] == 1


class BusyNvml:
    """A device with two other processes."""

    def violation_ns(self):
        return {}

    def clock_event_reasons(self):
        return 0

    def gauges(self):
        return {}

    def other_processes(self):
        return 17, 18

    def busy_since(self, _t_us):
        return {17: 90, 18: 70}


class Shown:
    """A process as NVML lists it."""

    def __init__(self, pid, used=None):
        self.pid, self.usedGpuMemory = pid, used


@pytest.mark.parametrize(
    ("pids", "others"),
    [([], ()), (["own"], ()), (["own", 7], (7,)), ([7], ()), ([7, 8], None)],
    ids=[
        "none",
        "ours",
        "ours and another",
        "one unknown is ours",
        "two unknown cannot be told apart",
    ],
)
def test_other_processes_of_a_device_are_those_that_are_surely_not_ours(monkeypatch, pids, others):
    shown = [Shown(os.getpid() if pid == "own" else pid) for pid in pids]
    monkeypatch.setattr(nvml.pynvml, "nvmlDeviceGetComputeRunningProcesses", lambda _handle: shown)
    found = Nvml(handle=None).other_processes()
    assert isinstance(found, Unreadable) if others is None else found == others


def test_memory_of_a_process_the_driver_does_not_show_is_unreadable_and_never_zero(monkeypatch):
    shown = [Shown(7, used=5)]
    monkeypatch.setattr(nvml.pynvml, "nvmlDeviceGetComputeRunningProcesses", lambda _handle: shown)
    assert "not among the 1 processes" in Nvml(handle=None).process_memory_bytes().reason
    shown.append(Shown(os.getpid(), used=9))
    assert Nvml(handle=None).process_memory_bytes() == 9
    shown[1].usedGpuMemory = None
    assert "hides" in Nvml(handle=None).process_memory_bytes().reason


def test_an_nvml_that_is_not_there_is_unreadable_with_its_reason():
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    assert "NVML" in Nvml.of("GPU-00000000-0000-0000-0000-000000000000").reason


def test_running_out_of_host_memory_is_our_error_and_others_pass_through():
    with (
        pytest.raises(OutOfMemory, match="out of host memory while sorting"),
        out_of_memory_named("sorting"),
    ):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="something else"), out_of_memory_named("sorting"):
        raise RuntimeError("something else")
