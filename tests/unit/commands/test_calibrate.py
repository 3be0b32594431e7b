"""How much unchanged sessions differ: the statistics, the file of floors, and the command."""

from __future__ import annotations

import math
import random
import tomllib
from datetime import date
from itertools import chain
from statistics import median

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from support.history_records import metric, record

from pytest_llmperf.commands import calibrating, cli
from pytest_llmperf.commands.calibrating import examine, run_session
from pytest_llmperf.core.record import Environment, ProcessFacts
from pytest_llmperf.core.verdicts.noise import _at_most, noise
from pytest_llmperf.errors import InvalidRun, UsageError
from pytest_llmperf.gate.calibration import Calibrated, read_calibrations, write_calibrations

ENTRY = Calibrated(
    metric="throughput",
    test='t.py::test["a\\b"\x7f]',
    model="m",
    strategy="bf16",
    workload="decode b1 p128 n128",
    device="NVIDIA H200",
    floor=0.035,
    spread=0.011,
    false_alarms=0.0,
    autocorrelation=-0.1,
    sessions=12,
    pairs=96,
    date=date(2026, 11, 23),
    versions={"torch": "2.13.0", "pytest-llmperf": "0.1.0"},
)


def sessions(n, spread, seed=0):
    draw = random.Random(seed)
    return [100 * math.exp(spread * draw.gauss(0, 1)) for _ in range(n)]


# Statistics


def test_the_spread_and_the_floor_of_known_noise():
    """2 % between 2,000 sessions: one normal session in a thousand is past the floor.

    That is at 3.09 standard deviations.
    """
    found = noise(sessions(2000, 0.02), [], direction="lower", floor=0.03, draws=10)
    assert found.spread == pytest.approx(0.02, rel=0.05)
    assert found.proposed == 0.065
    assert noise(sessions(2000, 0.02), [], direction="higher", floor=0.03, draws=10).proposed in (
        0.06,
        0.065,
    )


def test_few_sessions_take_a_wider_floor():
    """Twelve say less about the tails than two thousand."""
    few = noise(sessions(12, 0.02), [], direction="lower", floor=0.03, draws=10)
    assert few.proposed > 3.09 * few.spread


def test_the_false_alarms_of_unchanged_sessions_are_rare_and_those_of_two_levels_are_not():
    """At 2 %, rule A fails next to none.

    Sessions that jump between two levels held against sessions of one of them would.
    """
    quiet = noise(sessions(20, 0.02), [], direction="higher", floor=0.03, draws=2000)
    assert quiet.false_alarms <= 0.001
    assert quiet.false_alarms < quiet.at_most < 0.01
    jumping = [100.0, 100.1] * 3 + [60.0, 60.1]
    assert (
        noise(jumping, [], direction="higher", floor=0.03, draws=2000).false_alarms > quiet.at_most
    )


def test_the_autocorrelation_of_pairs():
    """Independent repetitions have none.

    A slow wave over all pairs of a session shows, whatever the order inside a pair.
    """
    draw = random.Random(3)
    independent = [[[math.exp(draw.gauss(0, 0.02)) for _ in range(200)]] for _ in range(5)]
    found = noise(sessions(8, 0.01), independent, direction="lower", floor=0.03, draws=10)
    assert found.pairs == 500
    assert abs(found.autocorrelation) < 0.15
    too_few = noise(sessions(8, 0.01), [[[1.0, 1.1]]] * 3, direction="lower", floor=0.03, draws=10)
    assert (too_few.pairs, too_few.autocorrelation) == (3, None)


def with_repetitions(n, between, within, seed=0, processes=1):
    """Sessions of twenty repetitions a process: their medians, and the repetitions."""
    draw = random.Random(seed)
    repetitions = [
        [
            [100 * math.exp(level + within * draw.gauss(0, 1)) for _ in range(20)]
            for level in [between * draw.gauss(0, 1) for _ in range(processes)]
        ]
        for _ in range(n)
    ]
    return [median(chain.from_iterable(values)) for values in repetitions], repetitions


def test_what_processes_differ_by_is_told_apart_from_their_repetitions():
    """2 % between, 1 % within; and nothing between where repetitions explain the spread."""
    values, repetitions = with_repetitions(400, 0.02, 0.01)
    found = noise(values, repetitions, direction="lower", floor=0.03, draws=1)
    assert found.between == pytest.approx(0.02, rel=0.1)
    assert found.within == pytest.approx(0.01, rel=0.1)
    values, repetitions = with_repetitions(400, 0.0, 0.05)
    found = noise(values, repetitions, direction="lower", floor=0.03, draws=1)
    assert found.between < 0.5 * found.spread
    alone = noise(values, [], direction="lower", floor=0.03, draws=1)
    assert (alone.between, alone.within) == (None, None)


def test_sessions_of_several_processes_tell_what_single_ones_differ_by():
    """The median of three is nearer to the truth than one of them: the spread hides the rest.

    Taken for those of one process, repetitions would seem to differ as processes do.
    """
    values, repetitions = with_repetitions(400, 0.02, 0.004, processes=3)
    measured = noise(values, repetitions, direction="lower", floor=0.03, draws=1)
    assert measured.spread < 0.016
    assert measured.between == pytest.approx(0.02, rel=0.1)
    assert measured.within == pytest.approx(0.004, rel=0.1)
    straddling = [[list(chain.from_iterable(session))] for session in repetitions]
    blind = noise(values, straddling, direction="lower", floor=0.03, draws=1)
    assert blind.between < 0.016
    assert blind.within > 0.012


def test_no_pair_straddles_two_processes():
    """Nine repetitions in processes of 5 and 4 are two pairs each: the fifth is alone.

    One straddling pair would be ten times as far apart as the others.
    """
    a, b = [1.0, 1.01, 1.0, 1.01, 1.0], [1.5, 1.51, 1.5, 1.51]
    run = record(
        "a", samples={"throughput": (*a, *b)}, processes=ProcessFacts(count=2, sizes=(5, 4))
    )
    (first, second) = calibrating._repetitions([run], "throughput")
    assert (list(first), list(second)) == (a, b)
    told = noise([1.0] * 8, [(first, second)] * 8, direction="lower", floor=0.03, draws=1)
    assert told.pairs == 32
    assert calibrating._pairs([{("k",): [run]}] * 8, ("k",)) == 32
    older = replace(run, processes=None)
    assert list(map(list, calibrating._repetitions([older]))) == [[*a, *b]]


def test_a_metric_is_examined_by_its_own_repetitions():
    """Times vary by 3 %, rates by 1 %: each metric has its own spread within processes."""
    draw = random.Random(2)

    def noisy(spread):
        return tuple(100 * math.exp(spread * draw.gauss(0, 1)) for _ in range(30))

    runs = [
        {
            ("k",): [
                record(
                    f"r{at}",
                    metrics=(metric(), metric("ttft.p50", 0.1, "s")),
                    samples={"throughput": noisy(0.01), "ttft": noisy(0.03)},
                )
            ]
        }
        for at in range(8)
    ]
    rate, time = examine(runs, {"throughput": 0.03, "ttft.p50": 0.03})
    assert rate.noise.within == pytest.approx(0.01, rel=0.2)
    assert time.noise.within == pytest.approx(0.03, rel=0.2)


def test_the_share_of_false_alarms_knows_that_other_sessions_could_have_been_measured():
    """Eleven equal sessions and one far off: draws alone would say that they know it well.

    The upper end over sets of sessions is several times that of so many draws of this one set.
    """
    values = [100.0, 100.2] * 5 + [100.1, 70.0]
    found = noise(values, [], direction="higher", floor=0.03, draws=2000)
    of_draws = _at_most(round(found.false_alarms * 2000), 2000)
    assert found.at_most > 2 * of_draws
    assert found.unseen == pytest.approx(1 - 0.01 ** (1 / 12))


@given(spread=st.floats(0.0, 0.3), n=st.integers(8, 40))
def test_a_floor_is_a_share_in_half_percents(spread, n):
    """And at least half a percent, also where sessions are equal."""
    found = noise(sessions(n, spread), [], direction="lower", floor=0.03, draws=1)
    assert found.proposed >= 0.005
    assert found.proposed / 0.005 == pytest.approx(round(found.proposed / 0.005))


def test_a_file_without_the_newer_numbers_is_read(tmp_path):
    """As those of earlier versions: nothing is known of processes, and their sessions stand in."""
    path = write_calibrations(tmp_path, [ENTRY])
    assert "between" not in path.read_text()
    (entry,) = read_calibrations(tmp_path)
    assert (entry.between, entry.within, entry.at_most, entry.unseen) == (None,) * 4
    assert entry.apart == entry.spread == 0.011
    assert replace(entry, between=0.02).apart == 0.02


def test_too_few_sessions_are_refused():
    """Seven."""
    with pytest.raises(UsageError, match="7 sessions"):
        noise(sessions(7, 0.01), [], direction="lower", floor=0.03)


# The file


def test_floors_come_back_from_the_file_and_take_the_place_of_older_ones(tmp_path):
    """Whatever the names hold; another device is another entry."""
    newer, elsewhere = (
        replace(ENTRY, floor=0.05),
        replace(ENTRY, device="NVIDIA L4", autocorrelation=None),
    )
    write_calibrations(tmp_path, [ENTRY, elsewhere])
    assert read_calibrations(tmp_path) == (ENTRY, elsewhere)
    write_calibrations(tmp_path, [newer])
    assert read_calibrations(tmp_path) == (elsewhere, newer)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("sessions = 12", "sessions = 5"), "5 sessions, 2 versions; a floor needs 8 sessions"),
        (("floor = 0.035", "floor = 3.5"), "the floor is 3.5. A share between 0 and 1 is needed"),
        (
            ("date = 2026-11-23\n", ""),
            (
                "missing required field `date`. "
                "A floor that does not say where it is known from is refused"
            ),
        ),
        (("[[calibrated]]", "[[calibration]]"), "calibration is not known there"),
        (("floor = ", "floor == "), "cannot be read"),
    ],
)
def test_a_floor_that_does_not_say_where_it_is_from_is_refused(tmp_path, change, said):
    """File and entry are named."""
    path = write_calibrations(tmp_path, [ENTRY])
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))
    with pytest.raises(UsageError) as caught:
        read_calibrations(tmp_path)
    assert said in str(caught.value)


# The command


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "pytest.ini").write_text("[pytest]\nllmperf_gate = throughput:1%\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def measured(monkeypatch):
    """Sessions that need no process: their values spread by 2 %, each with ten repetitions."""
    values = iter(sessions(100, 0.02))
    asked = []

    def run(_root, arguments):
        asked.append(list(arguments))
        value = next(values)
        facts = {"device": "cuda", "device_name": "NVIDIA H200", "version_torch": "2.13.0"}
        made = record(
            f"r{len(asked)}",
            outcome="RECORDED",
            metrics=(metric(value=value),),
            environment=Environment(facts=facts),
            samples={"throughput": tuple(sessions(10, 0.01, len(asked)))},
        )
        return {(made.test, made.label, made.workload_key, made.strategy): [made]}

    monkeypatch.setattr(calibrating, "run_session", run)
    return asked


def calibrate(*arguments, code=0):
    done = CliRunner().invoke(cli.main, ["calibrate", *arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def test_floors_are_measured_reported_and_written_with_their_provenance(project, measured):
    """Twelve sessions of the tests that were asked for.

    The limit of the ini file is below, and is named.
    """
    done = calibrate("--", "tests/test_it.py", "-k", "speed")
    assert len(measured) == 12
    assert measured[0] == ["tests/test_it.py", "-k", "speed"]
    assert "of 60 pairs" in done.stdout
    assert "pairs of repetitions inside one process, and conditional on it" in done.stdout
    assert (
        "throughput of bf16: the limit of 1.0 % is below what sessions differ by without a change"
        in done.stdout
    )
    (entry,) = tomllib.loads((project / "llmperf-calibration.toml").read_text())["calibrated"]
    assert (entry["device"], entry["sessions"], entry["versions"]) == (
        "NVIDIA H200",
        12,
        {"torch": "2.13.0"},
    )
    assert 0.04 < entry["floor"] < 0.16
    assert 0.0 < entry["between"] < entry["spread"]
    assert entry["within"] == pytest.approx(0.01, rel=0.3)
    assert entry["at_most"] >= entry["false_alarms"]
    assert "false alarms are those of sessions such as these 12: as many as 32% of" in done.stdout
    assert entry["test"] == record("x").test


@pytest.mark.nightly
def test_more_sessions_are_run_for_more_pairs_up_to_twice(project, measured):
    """Five pairs a session: 100 need twenty; a thousand cannot be had."""
    calibrate("--pairs", "100", "--dry-run", "--", "t.py")
    assert len(measured) == 20
    measured.clear()
    calibrate("--pairs", "1000", "--dry-run", "--sessions", "8", "--", "t.py")
    assert len(measured) == 16
    assert not (project / "llmperf-calibration.toml").exists()


def test_a_model_alone_is_calibrated_for_any_test(project, measured):
    """A test of its own is written for it, and the floor names no test."""
    calibrate(
        "--model",
        "smollm2-135m",
        "--workload",
        "Decode(batch=2)",
        "--budget",
        "5",
        "--gate",
        "throughput:20%",
    )
    assert measured[0][0].endswith("test_calibrate.py")
    assert "--llmperf-budget=5.0" in measured[0]
    (entry,) = read_calibrations(project)
    assert entry.test == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "either tests"),
        (("--model", "m", "--", "t.py"), "either tests"),
        (("--model", "m", "--workload", "__import__('os').system('x')"), "is not a workload"),
        (("--model", "m", "--workload", "Decode("), "is not a workload"),
        (("--gate", "thruput", "--", "t.py"), "Did you mean 'throughput'"),
    ],
)
def test_what_cannot_be_calibrated_is_said_before_anything_runs(project, measured, arguments, said):
    """One message, exit code 1."""
    assert said in calibrate(*arguments, code=1).output
    assert measured == []


def test_sessions_of_different_machines_are_not_mixed(measured):
    """The fact that differs is named."""
    first, second = (
        {("t",): [record("a", environment=Environment(facts={"device": d}))]}
        for d in ("cpu", "cuda")
    )
    with pytest.raises(InvalidRun, match="device was 'cpu', then 'cuda'"):
        examine([first, second], {"throughput": 0.03})


def test_a_session_that_measures_nothing_is_an_error_with_its_last_lines(tmp_path):
    """A real process: no test is there."""
    with pytest.raises(InvalidRun, match=r"recorded no valid run \(pytest's exit code [45]\)"):
        run_session(tmp_path, ["nothing.py"])
