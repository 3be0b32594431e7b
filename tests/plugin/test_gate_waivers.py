"""--llmperf-gate with waivers, a budget for second measurements, and calibrated floors."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.stored_sessions import ONE, TWO

from pytest_llmperf.devices.host import cpu_model
from pytest_llmperf.gate.calibration import read_calibrations

CPU = cpu_model()
SLOW = "ttft=57.5ms,tpot=11.5ms"
WAIVER = """
[[waiver]]
test = "test_it.py::{test}"
metric = "{metric}"
owner = "ana"
reason = "known"
expires = {expires}
"""


@pytest.fixture
def waive(pytester):
    """`waive(test, metric, expires, file=…)` adds an entry."""

    def add(
        test="test_speed", metric="throughput", expires="2999-12-31", file="llmperf-waivers.toml"
    ):
        path = pytester.path / file
        earlier = path.read_text() if path.exists() else ""
        path.write_text(earlier + WAIVER.format(test=test, metric=metric, expires=expires))

    return add


@pytest.mark.own_process
def test_a_waived_regression_passes_with_its_owner_and_fails_without(
    project, run_both, sessions, waive, pytester
):
    """WAIVED in the summary, a warning of the test with owner, day and reason.

    Without the file the same session fails.
    """
    project(ONE)
    sessions(10)
    project(ONE, script=SLOW)
    waive()
    waive(metric="ttft.p50")
    result = run_both("--llmperf-gate=throughput,ttft.p50")
    result.assert_outcomes(passed=1, warnings=2)
    result.stdout.fnmatch_lines(
        ["*waived: throughput of auto is * less than *waived by ana until 2999-12-31: known*"]
    )
    result.stdout.fnmatch_lines(["*speed*WAIVED*"])
    assert result.ret == 0
    (pytester.path / "llmperf-waivers.toml").unlink()
    run_both("--llmperf-gate=throughput,ttft.p50").assert_outcomes(failed=1)


def test_a_waived_level_is_not_accepted(project, run, sessions, waive):
    """Sessions that regressed and were waived do not pull the accepted level down."""
    project(ONE)
    sessions(10)
    project(ONE, script=SLOW)
    waive()
    for _ in range(2):
        result = run("--llmperf-gate=throughput")
        result.stdout.fnmatch_lines(["*less than in 10 accepted sessions*"])


@pytest.mark.own_process
def test_a_waiver_is_for_its_metric_and_its_test_alone(project, run, sessions, waive):
    """The other test and the other metric fail as ever."""
    project(TWO)
    sessions(10)
    project(TWO, script=SLOW)
    waive()
    run("--llmperf-gate=throughput").assert_outcomes(passed=1, failed=1)
    run("--llmperf-gate=throughput,ttft.p50").assert_outcomes(failed=2)


def test_an_expired_waiver_waives_nothing_and_fails_the_session(project, run_both, sessions, waive):
    """Also where every test passes: exit code 1, and the line names owner, test and day."""
    project(ONE)
    sessions(10)
    waive(expires="2020-01-31")
    result = run_both("--llmperf-gate=throughput")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["*the waiver of ana for throughput of test_it.py::test_speed expired on 2020-01-31*"]
    )
    assert result.ret == 1


def test_a_regression_under_an_expired_waiver_fails(project, run, sessions, waive):
    """As if it were not there."""
    project(ONE)
    sessions(10)
    waive(expires="2020-01-31")
    project(ONE, script=SLOW)
    run("--llmperf-gate=throughput").assert_outcomes(failed=1)


def test_a_waiver_for_no_test_fails_the_session_unless_its_file_was_not_looked_into(
    project, run, sessions, waive
):
    """A typo waives nothing, and is told at once."""
    project(ONE)
    sessions(10)
    waive(test="test_spede")
    result = run("--llmperf-gate=throughput")
    result.stdout.fnmatch_lines(
        ["*is for test_it.py::test_spede, which is not a test: correct it or remove it*"]
    )
    assert result.ret == 1
    assert run("--llmperf-gate=throughput", "test_it.py::test_speed").ret == 0


def test_a_waived_test_that_passes_again_is_reported(project, run, sessions, waive):
    """The waiver has done its work."""
    project(ONE)
    sessions(10)
    waive()
    result = run("--llmperf-gate=throughput")
    result.assert_outcomes(passed=1, warnings=0)
    assert (
        "throughput passes again, so the waiver of ana (until 2999-12-31) is needed no more"
        in " ".join(
            " ".join(result.outlines).split(),
        )
    )


def test_a_file_that_cannot_be_read_stops_the_session(project, run, waive):
    """Exit code 4 before anything is measured; an ini file may name another file.

    Without the gate nobody reads it.
    """
    project(ONE)
    waive(metric="agreement.top1")
    result = run("--llmperf-gate")
    assert result.ret == 4
    result.stderr.fnmatch_lines(
        [
            (
                "*llmperf-waivers.toml, waiver 1 (test_it.py::test_speed): "
                "'agreement.top1' cannot be waived.*"
            )
        ]
    )
    assert run().ret == 0


@pytest.mark.own_process
def test_the_ini_file_names_another_file(project, run, sessions, waive, pytester):
    """`llmperf_waivers`."""
    project(ONE)
    sessions(10)
    project(ONE, script=SLOW)
    pytester.mkdir("ci")
    waive(file="ci/waived.toml")
    pytester.makeini("[pytest]\nllmperf_waivers = ci/waived.toml\n")
    run("--llmperf-gate=throughput").assert_outcomes(passed=1)
    pytester.makeini("[pytest]\nllmperf_waivers = ci/nothing.toml\n")
    assert run("--llmperf-gate=throughput").ret == 4


def test_second_measurements_end_with_their_budget(project, run, sessions):
    """The first suspicion is always measured again.

    Later ones stay undecided once the time is used, and say why.
    """
    project(TWO)
    sessions(10)
    project(TWO, script=SLOW)
    result = run("--llmperf-gate=throughput", "--llmperf-again-budget=0.001")
    result.assert_outcomes(passed=1, failed=1, warnings=1)
    said = " ".join(" ".join(result.outlines).split())
    assert "undecided: not measured again, the session has used its 0.001 s for that" in said
    run(
        "--llmperf-gate=throughput", "--llmperf-again-budget=0.001", "--llmperf-strict"
    ).assert_outcomes(failed=2)
    assert run("--llmperf-gate=throughput", "--llmperf-again-budget=0").ret != 0


CALIBRATED = """
[[calibrated]]
metric = "throughput"
model = "scripted:{script}"
strategy = "auto"
workload = "decode b1 p8 n11"
device = "{device}"
floor = {floor}
spread = 0.01
false_alarms = 0.0
sessions = 12
pairs = 96
date = 2026-11-20
versions = {{ torch = "2.13" }}
"""


def test_a_calibrated_floor_takes_the_place_of_the_default(project, run, sessions, pytester):
    """15 % slower: past the default of 3 %, within a calibrated floor of 25 %."""
    project(ONE)
    sessions(10)
    project(ONE, script=SLOW)
    path = pytester.path / "llmperf-calibration.toml"
    path.write_text(CALIBRATED.format(floor=0.25, script=SLOW, device=CPU))
    result = run("--llmperf-gate")
    result.stdout.no_fnmatch_line("*throughput of auto*less than in * accepted session*")
    path.unlink()
    run("--llmperf-gate").stdout.fnmatch_lines(
        ["*throughput of auto*less than in * accepted session*"]
    )


def test_a_limit_below_what_was_calibrated_is_named(project, run, sessions, pytester):
    """It is applied as it was asked for, on the command line or on the marker."""
    project("@pytest.mark.llmperf(gate={'throughput': 0.01})" + ONE)
    sessions(10)
    (pytester.path / "llmperf-calibration.toml").write_text(
        CALIBRATED.format(floor=0.04, script="ttft=50ms,tpot=10ms", device=CPU),
    )
    said = " ".join(" ".join(run("--llmperf-gate=throughput:2%").outlines).split())
    assert (
        f"the limit of throughput, 1.0 %, is below the 4.0 % calibrated on {CPU} on 2026-11-20"
        in said
    )
    project(ONE)
    assert "the limit of throughput, 2.0 %, is below" in " ".join(
        " ".join(run("--llmperf-gate=throughput:2%").outlines).split()
    )


@pytest.mark.parametrize(
    "line",
    [
        "date = 2026-11-20\n",
        f'device = "{CPU}"\n',
        "sessions = 12\n",
        'versions = { torch = "2.13" }\n',
    ],
)
def test_a_floor_without_provenance_is_refused(project, run, pytester, line):
    """Exit code 4, with the field that is missing and the command that measures a floor."""
    project(ONE)
    text = CALIBRATED.format(floor=0.04, script="ttft=50ms,tpot=10ms", device=CPU)
    assert line in text
    (pytester.path / "llmperf-calibration.toml").write_text(text.replace(line, ""))
    result = run("--llmperf-gate")
    assert result.ret == 4
    field = line.partition(" ")[0]
    result.stderr.fnmatch_lines(
        [
            (
                f"*entry 1: *`{field}`*does not say where it is known from is refused; "
                "'llmperf calibrate'*"
            )
        ]
    )


@pytest.mark.nightly
def test_calibrate_measures_fresh_sessions_of_real_tests(project, pytester):
    """Eight processes of a scripted model without noise: no spread, and the smallest floor.

    The gate then reads the file.
    """
    project(ONE)
    command = [
        sys.executable,
        "-m",
        "pytest_llmperf",
        "calibrate",
        "--sessions",
        "8",
        "--gate",
        "throughput",
        "--",
        "test_it.py",
    ]
    done = subprocess.run(command, cwd=pytester.path, capture_output=True, text=True, check=True)
    assert "session 8 of 8" in done.stderr
    assert "1 floor written to" in done.stdout
    (entry,) = read_calibrations(pytester.path)
    assert (entry.floor, entry.sessions, entry.test, entry.device) == (
        0.005,
        8,
        "test_it.py::test_speed",
        CPU,
    )
    assert not (pytester.path / ".llmperf" / "history.db").exists()
