"""Ceilings are kept where nothing disturbed them, and measured again where something did."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from msgspec import structs

from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.core.trace import Ceilings
from pytest_llmperf.session import ceilings
from pytest_llmperf.wire.results import CeilingsRead

QUIET = Ceilings(device="cpu", copy_bytes_per_s=2e10, matmul_flop_per_s={"float32": 6e10})
BESIDE = structs.replace(QUIET, copy_bytes_per_s=3.5e9, disturbed="others used 86% of 2 cores")


class Model:
    """A model whose worker answers with these ceilings in turn, the last one for ever."""

    def __init__(self, *answers):
        self.plan = LoadPlan(model=ModelRef(name="m", kind="arch", location="m"))
        self.opened = SimpleNamespace(device_facts={"cpu_model": "x"}, versions={"torch": "2"})
        self.answers = list(answers)
        self.asked = 0

    def call(self, _command):
        self.asked += 1
        return CeilingsRead(ceilings=self.answers[min(self.asked, len(self.answers)) - 1])


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMPERF_CACHE", str(tmp_path))
    monkeypatch.setattr(ceilings, "_disturbed", {})
    return tmp_path / "ceilings"


def test_what_was_measured_on_a_quiet_machine_is_kept(empty_cache):
    first, second = Model(QUIET), Model(BESIDE)
    assert ceilings.ceilings_of(first).copy_bytes_per_s == 2e10
    assert ceilings.ceilings_of(second).copy_bytes_per_s == 2e10
    assert (first.asked, second.asked, len(list(empty_cache.iterdir()))) == (1, 0, 1)


def test_what_was_disturbed_is_measured_again_and_the_quiet_one_kept(empty_cache):
    model = Model(BESIDE, QUIET)
    assert ceilings.ceilings_of(model).copy_bytes_per_s == 2e10
    assert (model.asked, len(list(empty_cache.iterdir()))) == (2, 1)


def test_what_stays_disturbed_holds_for_this_session_and_is_not_kept(empty_cache):
    """Every MBU of the next thirty days would be six times too high."""
    model = Model(BESIDE)
    assert ceilings.ceilings_of(model).disturbed == "others used 86% of 2 cores"
    assert ceilings.ceilings_of(model).disturbed
    assert model.asked == ceilings.ATTEMPTS
    assert not empty_cache.exists()


def test_ceilings_that_a_run_went_beyond_are_measured_again():
    ceilings.ceilings_of(Model(structs.replace(QUIET, copy_bytes_per_s=1e9)))
    ceilings.forget(Model())
    assert ceilings.ceilings_of(Model(QUIET)).copy_bytes_per_s == 2e10


def test_those_that_wall_clocks_measured_are_not_read_any_more(empty_cache, monkeypatch):
    monkeypatch.setattr(ceilings, "METHOD", 1)
    ceilings.ceilings_of(Model(structs.replace(QUIET, copy_bytes_per_s=3.5e9)))
    monkeypatch.undo()
    monkeypatch.setenv("LLMPERF_CACHE", str(empty_cache.parent))
    assert ceilings.ceilings_of(Model(QUIET)).copy_bytes_per_s == 2e10
