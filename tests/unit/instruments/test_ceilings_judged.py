"""What disturbed a measurement of a device's ceilings, and which rates no device has."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("torch")

from pytest_llmperf.core.trace import Mark
from pytest_llmperf.instruments import ceilings
from pytest_llmperf.instruments.ceilings import disturbance, implausible

FOREIGN = Mark(kind="foreign-load", detail="other processes used 86% of 2 cores")


@pytest.mark.parametrize(
    ("marks", "on_core", "said"),
    [
        ((), 1.0, ""),
        ((), 0.85, ""),
        ((FOREIGN,), 1.0, "other processes used 86% of 2 cores"),
        ((), 0.5, "a copy's thread was off its core 50% of the time"),
    ],
)
def test_a_disturbance_is_others_work_or_waiting_for_a_core(marks, on_core, said):
    assert disturbance(marks, on_core) == said


@pytest.mark.parametrize(
    ("kind", "copied", "rate", "said"),
    [
        ("cpu", 2e10, 6e10, ""),
        ("cuda", 4.29e12, 7e14, ""),
        ("cpu", 1e8, 6e10, "a copy or a sum reached 1e+08 B/s"),
        ("cpu", 2e10, 1e18, "a product reached 1e+18 FLOP/s"),
        ("cuda", 1e10, 7e14, "a copy or a sum reached 1e+10 B/s"),
    ],
)
def test_a_rate_that_no_device_has_is_named(kind, copied, rate, said):
    assert implausible(kind, copied, [rate]).startswith(said)
    assert bool(implausible(kind, copied, [rate])) == bool(said)


def test_waiting_for_a_core_is_not_in_the_time():
    """A call that sleeps stands for one whose core another program has: 2 ms of 50 are its own."""

    def work():
        start = time.thread_time()
        while time.thread_time() - start < 0.002:
            pass
        time.sleep(0.05)

    timed = ceilings._on_cpu(work, 3)
    assert timed.seconds < 0.02
    assert timed.on_core < 0.5
