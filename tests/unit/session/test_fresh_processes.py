"""How repetitions are spread over processes: by costs, by what is asked for, by what is known."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from types import SimpleNamespace

import pytest
from many_processes import Program, Running
from support.history_records import record

from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.core.record import ProcessFacts
from pytest_llmperf.core.trace import Mark
from pytest_llmperf.session import run as measuring
from pytest_llmperf.session import sampling
from pytest_llmperf.session.processes.allocation import (
    Costs,
    best_size,
    least_size,
    most_repetitions,
    next_look,
)
from pytest_llmperf.session.processes.blocks import Fresh, sample_processes, valid_sizes
from pytest_llmperf.session.processes.known import of_machine, of_series
from pytest_llmperf.session.processes.renewal import are_alike, why_not_renewed
from pytest_llmperf.session.sampling import Goal, Side, sample
from pytest_llmperf.testing import scripted_plan

GOAL = Goal(precision=0.01, budget_s=20.0)


def quiet(*_):
    """Show nothing."""


def spread(program, goal=GOAL, *, sides=1, in_turn=False, seed=1):
    """Sample a program of so many sides; returns its sizes and its sides."""
    draw = random.Random(seed)
    running = [Running(program, draw) for _ in range(sides)]
    taken = [Side(name=str(at), repeat=process) for at, process in enumerate(running)]

    def renew():
        for process in running:
            process.renew()

    renew()
    fresh = Fresh(
        renew=renew,
        unsampled_s=lambda: sum(process.loads_s for process in running),
        repetition_s=sides * program.repetition_s,
        in_turn=in_turn,
    )
    return sample_processes(taken, goal, quiet, fresh), taken


# Costs


def test_what_a_first_run_compiles_is_a_cost_of_its_process(monkeypatch):
    """30 s before its clock starts are in the time without samples; virtual time adds nothing."""
    now_s = [0.0]
    monkeypatch.setattr(sampling.time, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(measuring, "_required_effective", lambda _: None)

    def compiling(_phase, detail, _eta_s):
        now_s[0] += 30.0 if detail.endswith(" 1") else 0.0

    for progress, untimed_s in ((compiling, 30.0), (quiet, 0.0)):
        opened = SimpleNamespace(load_s=2.0)
        repeater = SimpleNamespace(
            unsampled_s=2.0, current=lambda opened=opened: SimpleNamespace(opened=opened)
        )
        running = Running(Program(), random.Random(1))
        running.renew()
        model = measuring._warmed_up(repeater, Side(name="a", repeat=running), GOAL, progress)
        timed_s = sum(model.warmed.durations_s)
        assert model.warmed.untimed_s == pytest.approx(untimed_s, abs=timed_s + 0.01)
        assert repeater.unsampled_s == pytest.approx(2.0 + timed_s + model.warmed.untimed_s)
        assert (repeater.unsampled_s > 30) == (untimed_s > 0)


def test_repetitions_of_a_process_follow_from_costs_and_spreads():
    """Kalibera and Jones: sqrt(10 s / 0.1 s) x 3 % / 1 %, where the budget is long."""
    costs = Costs(load_s=10.0, repetition_s=0.1)
    assert best_size(costs, 0.03, 600.0) == 30
    assert best_size(costs, 0.015, 600.0) == 15
    assert best_size(costs, 0.03, 66.0) == 10  # six processes of 11 s


def test_three_processes_must_fit():
    """Of four repetitions where those are cheap, of two where they are long, else there is one."""
    assert least_size(Costs(load_s=0.5, repetition_s=0.15), 20.0) == 4
    assert least_size(Costs(load_s=0.5, repetition_s=2.5), 20.0) == 2
    assert least_size(Costs(load_s=0.5, repetition_s=5.0), 20.0) is None
    assert least_size(Costs(load_s=60.0, repetition_s=0.1), 20.0) is None
    assert most_repetitions(Costs(load_s=2.0, repetition_s=0.5), 20.0, 5) == 4


def test_looks_lie_ever_farther_apart():
    """After four processes, five, seven, nine."""
    looks = [4]
    while looks[-1] < 20:
        looks.append(next_look(looks[-1]))
    assert looks == [4, 5, 7, 9, 12, 15, 19, 24]


# Sampling


def test_a_quiet_program_takes_few_processes():
    """Spreads of 0.1 % are known well enough after four processes of four."""
    sizes, _ = spread(Program(repetitions=0.001, processes=0.001))
    assert sizes == (4, 4, 4, 4)


def test_a_noisy_program_takes_what_the_budget_holds_and_no_more():
    """Loads are in the budget: 20 s hold 18 processes of 4 x 0.15 s and a load of 0.5 s."""
    sizes, (side,) = spread(Program(repetitions=0.005, processes=0.03))
    assert sizes == (4,) * 18
    assert len(side.runs) == sum(sizes)


def test_dear_loads_get_more_repetitions_each():
    """As many as pay, while the budget holds several processes."""
    cheap, _ = spread(Program(repetitions=0.05, processes=0.01, load_s=0.2))
    dear, _ = spread(Program(repetitions=0.05, processes=0.01, load_s=1.5))
    assert max(dear) > max(cheap)
    assert len(dear) >= 3


def test_what_is_too_dear_is_one_process_that_goes_on():
    """At least ten repetitions come before the first look at the interval."""
    sizes, (side,) = spread(Program(repetitions=0.001, processes=0.01, load_s=60.0))
    assert sizes == ()
    assert len(side.runs) == 10


def test_long_repetitions_end_with_the_budget():
    """Ten of 5 s would take 50 s; a budget of 20 s ends after four."""
    _, (side,) = spread(Program(repetitions=0.001, repetition_s=5.0))
    assert len(side.runs) in (4, 5)


def test_a_single_process_is_not_looked_at_before_ten_repetitions():
    """The negative control is the audit: from the fourth on, coverage was 86 to 94 %."""
    running = Running(Program(repetitions=0.0001, processes=0.0), random.Random(1))
    running.renew()
    side = Side(name="one", repeat=running)
    sample([side], GOAL, quiet)
    assert len(side.runs) == 10


@pytest.mark.parametrize("wanted", [2, 5])
def test_who_names_a_number_gets_it_whatever_it_costs(wanted):
    """And enough repetitions in all."""
    goal = Goal(precision=0.01, budget_s=20.0, processes=wanted)
    sizes, _ = spread(Program(load_s=100.0), goal)
    assert len(sizes) == wanted
    assert sum(sizes) >= 10
    slow, _ = spread(Program(load_s=8.0, repetition_s=9.0), goal)
    assert slow == (2,) * wanted
    cheap, _ = spread(Program(load_s=0.1), goal)
    assert len(cheap) == wanted
    assert sum(cheap) >= 10


def test_two_sides_run_in_turn_in_each_block():
    """Each block has both sides' processes, and as many repetitions of each."""
    sizes, (first, second) = spread(Program(), sides=2)
    assert len(first.runs) == len(second.runs) == sum(sizes)


def test_sides_that_do_not_fit_together_are_loaded_once_a_block():
    """Not once a pair: a block's repetitions of one side come one after another."""
    order = []

    def logged(name, running):
        def repeat(repetition):
            order.append(name)
            return running(repetition)

        return repeat

    running = Running(Program(load_s=30.0), random.Random(1))
    running.renew()
    sides = [Side(name=name, repeat=logged(name, running)) for name in "AB"]
    fresh = Fresh(renew=running.renew, unsampled_s=lambda: 60.0, repetition_s=0.3, in_turn=True)
    sizes = sample_processes(sides, GOAL, quiet, fresh)
    assert "".join(order).startswith("BBBBAAAA")
    switches = sum(a != b for a, b in pairwise(order))
    assert switches < 2 * len(sizes)


def test_a_marked_process_is_in_no_size():
    """Sizes are of what is valid, by process; one without a valid repetition is left out."""
    assert valid_sizes((3, 2, 4), (0, 2, 5, 6, 7, 8)) == (2, 4)
    assert valid_sizes((), (0, 1)) == ()


def test_a_busy_device_is_given_twice_the_budget():
    """And is then the test's error."""
    marked = Mark(kind="foreign", detail="another process")
    running = Running(Program(), random.Random(1))
    running.renew()

    def repeat(repetition):
        ran = running(repetition)
        return type(ran)(
            trace=type(ran.trace)(
                repetition=repetition, requests=ran.trace.requests, marks=(marked,)
            ),
            step=None,
            prompts_hash="",
            outputs_hash="",
        )

    side = Side(name="busy", repeat=repeat)
    fresh = Fresh(renew=running.renew, unsampled_s=lambda: running.loads_s, repetition_s=0.15)
    with pytest.raises(Exception, match="foreign in"):
        sample_processes([side], GOAL, quiet, fresh)
    assert len(side.runs) * 0.15 + running.loads_s > 30


# What can be renewed


def test_what_a_test_holds_and_what_has_an_address_cannot_be_renewed():
    """The reason is said; everything else can."""
    served = LoadPlan(
        model=ModelRef(name="m", kind="hub", location="m"),
        engine="server",
        strategy="auto",
        options=(("url", "http://h:1"),),
    )
    assert "the test itself" in why_not_renewed([scripted_plan()], adopted=lambda _plan: True)
    assert "http://h:1" in why_not_renewed([served], adopted=lambda _plan: False)
    assert why_not_renewed([scripted_plan()], adopted=lambda _plan: False) == ""


def test_processes_in_virtual_time_are_alike_unless_the_script_says_otherwise():
    """One is enough then."""
    assert are_alike([scripted_plan("noise=0.1")])
    assert not are_alike([scripted_plan("noise=0.1"), scripted_plan("process=0.01")])


# What is known


def run(at, rates, sizes=(), **more):
    """A stored run, later the larger `at`."""
    values = {"samples": {"throughput": tuple(rates)}, "session_id": f"s{at}"}
    facts = ProcessFacts(count=max(1, len(sizes)), sizes=sizes)
    return record(f"r{at}", **{**values, "processes": facts, **more})


def test_stored_runs_in_several_processes_show_their_spread():
    """Pooled: two runs of three processes have four degrees of freedom."""
    runs = [run(0, [100, 100, 102, 102, 104, 104], (2, 2, 2)), run(1, [98, 100, 102], (1, 1, 1))]
    known = of_series(runs)["throughput"]
    assert known.spread == pytest.approx(0.02, rel=0.02)
    assert (known.freedom, known.source) == (4, "2 stored runs in 6 processes")


def test_stored_sessions_in_one_process_show_it_by_their_steps():
    """So that a change of level counts once: steps of 2 %, and one of 40 %."""
    levels = [100, 102, 100, 102, 100, 140, 143, 140, 143, 140]
    known = of_series([run(at, [level] * 5) for at, level in enumerate(levels)])["throughput"]
    assert known.spread < 0.5 * math.log(140 / 100) / math.sqrt(2)
    steady = of_series([run(at, [100 + 2 * (at % 2)] * 5) for at in range(10)])["throughput"]
    assert steady.spread == pytest.approx(0.0198 / math.sqrt(2), rel=0.02)


def test_runs_of_one_session_are_no_evidence_about_processes():
    """They may have been in one."""
    runs = [run(at, [100 + at] * 5, session_id="s") for at in range(10)]
    assert of_series(runs) == {}


def test_few_sessions_show_nothing():
    """Four are needed."""
    runs = [run(at, [100 + at] * 5) for at in range(4)]
    assert of_series(runs[:3]) == {}
    assert set(of_series(runs)) == {"throughput"}


def test_a_machine_shows_the_largest_spread_of_its_series():
    """Of runs in several processes alone: others may be of other programs."""
    small = [run(at, [100, 101, 102, 101, 100], (1,) * 5) for at in range(3)]
    large = [run(at, [100, 110, 120, 110, 100], (1,) * 5, test="t2") for at in range(3, 6)]
    single = [run(at, [100 * at] * 5, test="t3") for at in range(6, 12)]
    known = of_machine([*small, *large, *single])["throughput"]
    assert known.spread == pytest.approx(of_series(large)["throughput"].spread)
    assert "this machine" in known.source
