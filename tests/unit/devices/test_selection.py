"""What a test needs of GPUs, what the session may use, and the words for what does not fit."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.devices.inventory import Gpu, Inventory, simulated
from pytest_llmperf.devices.selection import Need, candidates, need_of, pool, shortfall
from pytest_llmperf.errors import UsageError
from pytest_llmperf.units import GB

TWO = simulated("2x141GB:NVIDIA H200:9.0")
MIXED = simulated("1x24GB:NVIDIA L4:8.9,2x80GB:NVIDIA A100:8.0,1x141GB:NVIDIA H200:9.0")
SLICES = Inventory(
    gpus=tuple(
        Gpu(
            index=i,
            uuid=f"MIG-{i}",
            name="NVIDIA H200 MIG 1g.18gb",
            total_bytes=18 * GB,
            capability=(9, 0),
            mig=True,
        )
        for i in range(3)
    ),
)


def need(*args, **kwargs) -> Need:
    found = need_of([(args, kwargs)])
    assert found is not None
    return found


def test_no_marker_needs_nothing_and_the_closest_marker_wins():
    assert need_of([]) is None
    assert need_of([((2,), {}), ((4,), {"name": "H200"})]) == Need(least=2, most=2)


def test_a_marker_without_arguments_needs_one():
    assert need() == Need(least=1, most=1)


def test_every_argument_is_kept():
    asked = need(min=2, max=4, memory=40 * GB, total_memory=80 * GB, capability="9.0", name="H200")
    assert asked == Need(
        least=2, most=4, memory=40 * GB, total_memory=80 * GB, capability=(9, 0), name="H200"
    )
    assert (
        str(asked)
        == "2 GPUs with memory >= 40 GB, total_memory >= 80 GB, capability >= 9.0, name 'H200'"
    )


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ((0,), {}, r"n=0\): a whole number"),
        ((True,), {}, r"n=True"),
        (("2",), {}, r"n='2'"),
        ((1, 2), {}, r"one count is needed"),
        ((2,), {"min": 1}, r"not both"),
        ((), {"min": 3, "max": 2}, r"max is below min"),
        ((), {"memory": 0}, r"memory=0\): bytes above 0"),
        ((), {"total_memory": "40 GB"}, r"total_memory='40 GB'"),
        ((), {"capability": "new"}, r"capability='new'"),
        ((), {"capability": (9,)}, r"capability=\(9,\)"),
        ((), {"name": 200}, r"name=200"),
        ((), {"memry": 1}, r"'memry' is not known. Did you mean 'memory'"),
    ],
)
def test_an_argument_that_cannot_be_used_is_named(args, kwargs, says):
    with pytest.raises(UsageError, match=says):
        need(*args, **kwargs)


@pytest.mark.parametrize(
    ("asked", "indices"),
    [
        ("all", [0, 1, 2, 3]),
        ("0", []),
        ("2", [0, 1]),
        ("0,2", [0, 2]),
        ("3,", [3]),
        ("GPU-simulated-1", [1]),
        ("3, 0", [3, 0]),
    ],
)
def test_a_pool_is_a_count_or_a_list(asked, indices):
    assert [gpu.index for gpu in pool(asked, MIXED).gpus] == indices


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            "3",
            r"--llmperf-gpus=3: 3 GPUs asked for, 2 seen here: cuda:0 NVIDIA H200, 141 GB; cuda:1",
        ),
        ("0,5", r"'5' names 0 GPUs. Seen here: cuda:0"),
        ("0,0", r"names a GPU twice"),
        ("two", r"a count, a list of indices or UUIDs, or 'all'"),
        ("", r"a count, a list"),
        ("-1", r"a count, a list"),
        ("GPU-simulated", r"names 2 GPUs"),
    ],
)
def test_a_pool_that_cannot_be_had_says_what_is_there(asked, says):
    with pytest.raises(UsageError, match=says):
        pool(asked, TWO)


def test_more_than_there_is_on_a_machine_without_gpus():
    with pytest.raises(UsageError, match=r"1 GPU asked for, 0 seen here: no GPU \(simulated"):
        pool("1", simulated("0"))


def test_a_shortfall_reads_the_same_everywhere():
    short = shortfall(need(2), pool("1", TWO))
    assert (
        short.reason == "llmperf-gpus: needs 2 GPUs, the pool has 1 "
        "(1 x NVIDIA H200, 141 GB; --llmperf-gpus=1, 2 seen)"
    )
    assert json.loads(short.as_json()) == {"needs": 2, "pool": 1, "eligible": 1}


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (need(memory=200 * GB), "4 too small"),
        (need(2, total_memory=100 * GB), "3 too small"),
        (need(3, capability=(9, 0)), "3 of lower capability"),
        (need(3, name="a100"), "2 of another name"),
    ],
)
def test_what_would_not_do_is_counted(wanted, why):
    assert why in shortfall(wanted, pool("all", MIXED)).reason


def test_slices_serve_tests_of_one_gpu_and_no_others():
    assert shortfall(need(1), pool("all", SLICES)) is None
    assert (
        "3 that are MIG slices, which cannot work together"
        in shortfall(need(2), pool("all", SLICES)).reason
    )
    assert candidates(need(min=1), pool("all", SLICES)) == (1, SLICES.gpus)


def test_a_range_takes_what_there_is():
    assert candidates(need(min=1, max=3), pool("all", TWO))[0] == 2
    assert candidates(need(min=2), pool("all", MIXED))[0] == 4
    assert candidates(need(max=1), pool("all", TWO))[0] == 1
    assert candidates(need(min=1, name="A100"), pool("all", MIXED)) == (2, MIXED.gpus[1:3])


NEEDS = st.builds(
    Need,
    least=st.integers(1, 5),
    most=st.none() | st.integers(5, 8),
    memory=st.none() | st.integers(1, 200 * GB),
    capability=st.none() | st.tuples(st.integers(7, 10), st.integers(0, 9)),
    name=st.sampled_from(["", "H200", "nvidia", "L4"]),
)


@given(NEEDS, st.sampled_from([TWO, MIXED, SLICES, simulated("0")]))
def test_what_can_be_met_is_met_with_devices_that_fit(wanted, inventory):
    """Either a reason, or at least as many devices as are needed, each of which fits."""
    of = pool("all", inventory)
    short = shortfall(wanted, of)
    if short is not None:
        assert short.eligible < wanted.least
        assert short.reason.startswith("llmperf-gpus: needs ")
        return
    n, able = candidates(wanted, of)
    assert wanted.least <= n <= len(able)
    assert wanted.most is None or n <= wanted.most
    assert all(
        gpu.total_bytes >= (wanted.memory or 0) and wanted.name.lower() in gpu.name.lower()
        for gpu in able
    )
