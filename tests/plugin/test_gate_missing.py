"""Under --llmperf-gate a test or a run that is not there any more is an outcome.

It was renamed, removed, or is measured no more.
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace
from support.stored_sessions import ONE, TWO

from pytest_llmperf.history import accept
from pytest_llmperf.history.store import open_store
from pytest_llmperf.plugin.gate_watch import EXIT_JUDGED_NOTHING

RENAMED = TWO.replace("test_speed", "test_velocity")
GONE = (
    "*not comparable: test_it.py::test_speed is not there any more, "
    "its last accepted session is of *"
)
STILL_THERE = "*is not there any more*"


def llmperf(pytester, *arguments):
    command = [sys.executable, "-m", "pytest_llmperf", *arguments]
    return subprocess.run(
        command, cwd=pytester.path, check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize(("days_ahead", "missed"), [(400, False), (-400, True)])
def test_a_session_whose_clock_was_ahead_makes_nothing_missed(
    project, run, sessions, opened, days_ahead, missed
):
    """Its runs are dated on a day to come; of a test that is gone it had the only one."""
    sessions(10)
    created = datetime.now(UTC) + timedelta(days=days_ahead)
    with opened() as store:
        record = next(iter(store.records()))
        ghost = replace(
            record,
            id="ghost",
            session_id="ghost",
            test="test_it.py::test_ghost",
            created=created.isoformat(),
        )
        store.add(ghost)
    project(TWO)
    result = run("--llmperf-gate", "--llmperf-require-accepted")
    assert (result.ret == 1) is missed
    assert ("test_ghost is not there any more" in result.stdout.str()) is missed


@pytest.mark.own_process
def test_a_renamed_test_is_missed_with_its_likely_new_name(project, run_both, sessions):
    """The old id, the new one that measures the same, and the command that keeps the history."""
    sessions(10)
    project(RENAMED)
    result = run_both("--llmperf-gate")
    result.assert_outcomes(passed=2, warnings=3)
    result.stdout.fnmatch_lines(
        [GONE + "test_it.py::test_velocity measures the same and has no history:*accept --rename*"]
    )
    assert result.ret == 0


def test_a_missing_test_fails_where_accepted_sessions_are_required(project, run, sessions):
    """Exit code 1 although each test that is there passes.

    The same session without the gone test is green.
    """
    sessions(10)
    project(TWO.replace("def test_speed(llm)", "def helper(llm)"))
    result = run("--llmperf-gate", "--llmperf-require-accepted")
    result.assert_outcomes(passed=1)
    assert result.ret == 1
    project(TWO)
    assert run("--llmperf-gate", "--llmperf-require-accepted").ret == 0


def test_after_accepting_the_rename_its_history_goes_on(project, run, sessions, pytester):
    """Judged against ten sessions under the old name; a regression under the new name fails.

    Nobody misses the old one.
    """
    sessions(10)
    project(RENAMED)
    run("--llmperf-gate")
    said = llmperf(
        pytester,
        "accept",
        "--rename",
        "test_it.py::test_speed",
        "test_it.py::test_velocity",
        "--reason",
        "clearer",
    )
    assert "the history of 1 test goes on under it" in said
    result = run("--llmperf-gate")
    result.assert_outcomes(passed=2, warnings=0)
    result.stdout.no_fnmatch_line(STILL_THERE)
    project(RENAMED, script="ttft=57.5ms,tpot=11.5ms")
    result = run("--llmperf-gate=throughput")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*throughput of auto *% less than in 1[0-9] accepted sessions*"])


def test_a_renamed_file_keeps_its_history(project, run, sessions, pytester):
    """The old file does not exist any more; its folder was asked for."""
    sessions(10)
    project(TWO).rename(pytester.path / "test_new.py")
    result = run("--llmperf-gate")
    result.stdout.fnmatch_lines([GONE + "test_new.py::test_speed measures the same*"])
    llmperf(pytester, "accept", "--rename", "test_it.py", "test_new.py", "--reason", "moved")
    run("--llmperf-gate").assert_outcomes(passed=2, warnings=0)


def test_a_test_removed_on_purpose_is_missed_until_that_is_said(project, run, sessions, pytester):
    """`accept --removed` writes a reviewed line; who removes it again is told again."""
    sessions(10)
    project(TWO.replace("def test_speed(llm)", "def helper(llm)"))
    run("--llmperf-gate").stdout.fnmatch_lines(
        [GONE + "If that was meant: *--removed test_it.py::test_speed*"]
    )
    llmperf(pytester, "accept", "--removed", "test_it.py::test_speed", "--reason", "superseded")
    run("--llmperf-gate").stdout.no_fnmatch_line(STILL_THERE)
    (pytester.path / accept.FILE).unlink()
    run("--llmperf-gate").stdout.fnmatch_lines([GONE + "*"])


@pytest.mark.own_process
@pytest.mark.parametrize(
    "asked",
    [
        ("test_it.py::test_other",),
        ("-k", "other"),
        ("--deselect", "test_it.py::test_speed"),
        ("other/",),
    ],
)
def test_a_partial_run_accuses_nobody_of_what_it_did_not_look_into(
    project, run, sessions, pytester, asked
):
    """test_speed is there or was not asked for.

    (With -k and --deselect it is collected, and not gone.)
    """
    sessions(10)
    gone = asked in (("test_it.py::test_other",), ("other/",))
    project(TWO.replace("def test_speed(llm)", "def helper(llm)") if gone else TWO)
    pytester.mkdir("other").joinpath("test_that.py").write_text(Path("test_it.py").read_text())
    result = run("--llmperf-gate=on", *asked)
    assert result.parseoutcomes()["passed"] > 0
    result.stdout.no_fnmatch_line(STILL_THERE)


def test_a_run_of_the_last_failures_accuses_nobody(project, sessions, pytester):
    """--lf leaves the tests that passed out while it collects."""
    sessions(10)
    project(TWO.replace("new_tokens=21))", "new_tokens=21))\n    assert False"))
    pytester.runpytest_subprocess("--llmperf-store=none").assert_outcomes(passed=1, failed=1)
    result = pytester.runpytest_subprocess("--llmperf-gate=on", "--lf")
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line(STILL_THERE)


def test_a_file_that_was_asked_for_as_a_whole_is_looked_into(project, run, sessions):
    """The same as above with the file's name alone."""
    sessions(10)
    project(TWO.replace("def test_speed(llm)", "def helper(llm)"))
    run("--llmperf-gate=on", "test_it.py").stdout.fnmatch_lines([GONE + "*"])


def test_a_file_that_cannot_be_collected_is_not_looked_into(project, run, sessions, pytester):
    """Its tests are unknown, not gone; the session fails for the file itself."""
    sessions(10)
    project("raise RuntimeError")
    pytester.makepyfile(test_more=Path("test_it.py").read_text().replace("raise RuntimeError", ONE))
    run("--llmperf-gate", "--continue-on-collection-errors").stdout.no_fnmatch_line(STILL_THERE)


def test_tests_of_another_project_in_the_same_store_are_not_missed(project, run, sessions, opened):
    """A fleet's store holds several; the project's name is a fact of each record."""
    sessions(10)
    with opened() as store:
        record = next(iter(store.records()))
        facts = record.environment.facts
        elsewhere = type(record.environment)(facts=facts | {"project": "another"})
        store.add(
            type(record)(
                **{
                    **fields(record),
                    "id": "x",
                    "test": "test_it.py::test_theirs",
                    "environment": elsewhere,
                }
            )
        )
        store.add(type(record)(**{**fields(record), "id": "y", "test": "test_it.py::test_ours"}))
    project(TWO)
    result = run("--llmperf-gate")
    result.stdout.fnmatch_lines(["*not comparable: test_it.py::test_ours is not there*"])
    result.stdout.no_fnmatch_line("*test_theirs*")


def fields(record):
    return {name: getattr(record, name) for name in record.__struct_fields__}


@pytest.mark.own_process
def test_a_test_that_measures_nothing_any_more_is_not_green(project, run, sessions):
    """It is there and passes, and its run is gone: NOT COMPARABLE in that very test.

    Alone, exit code 6.
    """
    sessions(10)
    project("\ndef test_speed(llm):\n    assert llm.strategy\n")
    result = run("--llmperf-gate")
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(
        ["*not comparable: decode b1 p8 n11 of auto was not measured any more: the session of*"]
    )
    assert result.ret == EXIT_JUDGED_NOTHING
    run("--llmperf-gate", "--llmperf-require-accepted").assert_outcomes(failed=1)


@pytest.mark.nightly
@pytest.mark.own_process
def test_one_of_two_runs_that_is_gone_is_named(project, run):
    """The other is judged; a run that only changed is reported as what it is, once."""
    both = (
        "\ndef test_speed(llm):\n"
        "    llm.run(WORK)\n"
        "    llm.run(Prefill(batch=1, prompt_tokens=64))\n"
    )
    project(both)
    for _ in range(2):
        run()
    project(ONE)
    result = run("--llmperf-gate=memory.weights")
    result.stdout.fnmatch_lines(
        ["*not comparable: prefill b1 p64 of auto was not measured any more*"]
    )
    assert result.ret == 0
    project(both.replace("=64", "=32"))
    result = run("--llmperf-gate=memory.weights")
    result.stdout.no_fnmatch_line("*not measured any more*")


def test_what_a_fixture_measures_after_a_test_is_not_missed_before(project, run):
    """Its record comes when the test has been judged."""
    project("""
@pytest.fixture
def after(llm):
    yield
    llm.run(WORK)

def test_speed(llm, after):
    pass
""")
    run().assert_outcomes(passed=1)
    run("--llmperf-gate").stdout.no_fnmatch_line("*not measured any more*")


def test_a_rename_of_nothing_is_an_error_with_the_nearest_name(project, run, sessions, pytester):
    """A typo would carry nothing over."""
    sessions(1)
    command = [
        sys.executable,
        "-m",
        "pytest_llmperf",
        "accept",
        "--rename",
        "test_it.py::test_spede",
        "x",
        "--reason",
        "r",
    ]
    done = subprocess.run(command, cwd=pytester.path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Did you mean 'test_it.py::test_speed'?" in done.stderr
    assert not (pytester.path / accept.FILE).exists()


def test_the_line_of_a_rename_says_who_and_why(project, run, sessions, pytester, opened):
    """It is reviewed as code is; the records themselves stay as they are."""
    sessions(1)
    llmperf(
        pytester,
        "accept",
        "--rename",
        "test_it.py::test_speed",
        "test_it.py::test_v",
        "--reason",
        "clearer",
        "--who",
        "me",
    )
    (line,) = (pytester.path / accept.FILE).read_text().splitlines()
    found = json.loads(line)
    names = ("old", "new", "who", "why")
    assert tuple(found[name] for name in names) == (
        "test_it.py::test_speed",
        "test_it.py::test_v",
        "me",
        "clearer",
    )
    with open_store("sqlite:///.llmperf/history.db", folder=pytester.path) as store:
        assert "test_it.py::test_speed" in store.tests()


def test_a_body_in_a_process_of_its_own_is_judged_there(project, run):
    """Its runs are made and looked for in that process.

    The main one, which measured nothing, accuses nobody.
    """
    project("\n@pytest.mark.llmperf_isolated\ndef test_speed(llm):\n    llm.run(WORK)\n")
    run().assert_outcomes(passed=1)
    result = run("--llmperf-gate=memory.weights")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*not measured any more*")
    assert result.ret == 0
