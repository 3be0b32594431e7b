"""Other programs are looked at, named without arguments, and waited for while they come and go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pytest_llmperf.errors import InvalidRun, SteadyLoad
from pytest_llmperf.instruments import beside_others, foreign_load
from pytest_llmperf.instruments.beside_others import BesideOthers
from pytest_llmperf.instruments.foreign_load import (
    GLANCE_S,
    Busy,
    Look,
    look_for,
    require_quiet,
)

THREE = (Busy(7, "chrome", 0.81), Busy(8, "cc1plus", 0.3), Busy(9, "rustc", 0.2))
SPIN = "import sys; print(__import__('os').getpid(), flush=True)\nwhile True: pass"


class Machine:
    """Gives the shares of the cores that others use, one window after another; the last stays."""

    def __init__(self, *shares: float, busiest: tuple[Busy, ...] = THREE) -> None:
        self.shares, self.busiest, self.waited_s = list(shares), busiest, 0.0

    def look_for(self, seconds: float, **_: object) -> Look:
        self.waited_s += seconds
        share = self.shares.pop(0) if len(self.shares) > 1 else self.shares[0]
        return Look(share, 2, self.busiest)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    def use(*shares: float) -> Machine:
        made = Machine(*shares)
        monkeypatch.setattr(foreign_load, "look_for", made.look_for)
        monkeypatch.setattr(beside_others, "look_for", made.look_for)
        return made

    return use


def test_a_quiet_machine_costs_one_glance(machine):
    quiet = machine(0.2)
    require_quiet(pytest.fail)
    assert quiet.waited_s == GLANCE_S


def test_steady_load_ends_within_ten_seconds_with_the_three_busiest(machine):
    busy, shown = machine(0.67), []
    with pytest.raises(InvalidRun) as error:
        require_quiet(shown.append)
    assert busy.waited_s < 10
    text = str(error.value)
    assert "67% of 2 cores" in text
    for name in ("chrome (pid 7, 81% of a core)", "cc1plus (pid 8", "rustc (pid 9"):
        assert name in text
    assert "--llmperf-allow-load" in text
    assert "budget" not in text
    assert all("chrome" in line for line in shown)


def test_load_that_comes_and_goes_is_waited_for(machine):
    busy = machine(0.9, 0.8, 0.7, 0.1)
    require_quiet(lambda _: None)
    assert busy.waited_s == GLANCE_S + 3


def test_what_no_visible_process_explains_is_said():
    """Another container's work, or a compiler of a thousand short processes."""
    assert "short-lived" in str(Look(0.8, 2, (Busy(7, "sshd", 0.02),)))
    assert "short-lived" in str(Look(0.8, 2, ()))
    assert "short-lived" not in str(Look(0.6, 2, THREE))


@pytest.fixture
def stranger() -> Iterator[int]:
    """A busy process that is not ours: its parent has ended."""
    command = [sys.executable, "-c", SPIN, "--api-key=secret"]
    pid = _orphan(command)
    yield pid
    os.kill(pid, signal.SIGKILL)


def _orphan(command: list[str]) -> int:
    with subprocess.Popen(
        ["sh", "-c", '"$@" &', "sh", *command], stdout=subprocess.PIPE, text=True
    ) as shell:
        assert shell.stdout is not None
        pid = int(shell.stdout.readline())
        shell.stdout.close()
    return pid


def test_a_busy_stranger_is_named_by_its_program_and_no_argument(stranger, monkeypatch):
    monkeypatch.setattr(foreign_load, "MOST_NAMED", 1000)
    look = look_for(0.5)
    (named,) = [busy for busy in look.busiest if busy.pid == stranger]
    assert named.name.startswith("python")
    assert named.cores > 0.02
    assert look.share > 0.02
    assert "secret" not in str(look)


def test_what_this_process_started_is_no_stranger(monkeypatch):
    monkeypatch.setattr(foreign_load, "MOST_NAMED", 1000)
    with subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            assert child.pid not in {busy.pid for busy in look_for(0.3).busiest}
        finally:
            child.kill()


def test_load_that_is_allowed_is_looked_at_and_named_only(machine):
    machine(0.9)
    with BesideOthers(here=True, allow=True, show=pytest.fail) as beside:
        pass
    assert "chrome" in beside.seen


def test_models_that_are_elsewhere_are_not_looked_for(machine):
    """On a GPU, on a cluster, at a URL, or on a clock of their own."""
    busy = machine(0.9)
    with BesideOthers(here=False, allow=False, show=pytest.fail):
        pass
    assert busy.waited_s == 0


def test_load_that_comes_in_the_middle_is_named_too(machine):
    machine(0.1, 0.1, 0.9)
    shown: list[str] = []
    with (
        pytest.raises(SteadyLoad, match=r"beside every repetition.*chrome.*--llmperf-allow-load"),
        BesideOthers(here=True, allow=False, show=shown.append),
    ):
        raise SteadyLoad("fp32: other programs worked beside every repetition for 8.2 s.")


def test_another_error_stays_as_it_is(machine):
    machine(0.1)
    with (
        pytest.raises(InvalidRun, match=r"^throttled$"),
        BesideOthers(here=True, allow=False, show=pytest.fail),
    ):
        raise InvalidRun("throttled")
