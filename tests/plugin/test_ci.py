"""What a session writes for CI systems: where it was asked for, and of all processes.

A session inside of another one writes nothing.
"""

from __future__ import annotations

import json
import re

import pytest
from markdown_it import MarkdownIt
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from pytest_llmperf.plugin.gate_watch import EXIT_JUDGED_NOTHING

TESTS = """
@pytest.mark.parametrize("name", ["a|b", "<b>", "\\n::error::x"])
def test_slow(llm, name):
    run = llm.run(WORK)
    assert run.tpot.p50 <= 1 * ms

def test_good(llm):
    assert llm.run(WORK).tpot.p50 <= 50 * ms

def test_close(llm):
    assert llm.run(WORK).tpot.p50 <= 9.9 * ms

@pytest.mark.llmperf(strategy="bf17")
def test_wrong(llm):
    pass

@pytest.mark.skip(reason="not today")
def test_skipped(llm):
    pass
"""
FILES = (
    "--llmperf-markdown=out/comment.md",
    "--llmperf-gitlab=quality.json",
    "--llmperf-openmetrics=metrics.txt",
)


@pytest.fixture
def on_github(monkeypatch, pytester):
    """As in a job of a repository whose project is a folder."""
    monkeypatch.delenv("LLMPERF_CI_SESSION", raising=False)
    monkeypatch.delenv("CI_PROJECT_DIR", raising=False)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "page.md"))
    monkeypatch.setenv("GITHUB_WORKSPACE", str(pytester.path.parent))


@pytest.fixture
def elsewhere(monkeypatch):
    """On a machine that is no CI job."""
    for name in (
        "LLMPERF_CI_SESSION",
        "CI_PROJECT_DIR",
        "GITHUB_ACTIONS",
        "GITHUB_STEP_SUMMARY",
        "GITHUB_WORKSPACE",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def several(project, pytester):
    """TESTS, and a failing test that is none of ours."""
    project(TESTS)
    pytester.makepyfile(test_plain="def test_plain():\n    assert False\n")


def commands(result):
    return [line for line in result.outlines if line.startswith("::")]


def line_of(pytester, text):
    return next(
        n
        for n, line in enumerate((pytester.path / "test_it.py").read_text().splitlines(), start=1)
        if text in line
    )


def test_github_gets_annotations_on_the_failing_lines_and_a_page(
    several, run_both, on_github, pytester
):
    """Errors for what failed, a warning for what was not decided, nothing for a skip.

    Nothing is written for a test that is not an llmperf test, either. Names are text.
    """
    result = run_both()
    found = commands(result)
    file = f"file={pytester.path.name}/test_it.py"
    failing = (
        f"::error {file},line={line_of(pytester, '<= 1 * ms')},title=FAIL "
        f"test_it.py%3A%3Atest_slow["
    )
    assert [line.startswith(failing) for line in found] == [True, True, True, False, False]
    assert found[3].startswith(f"::error {file},line=")
    assert "title=ERROR test_it.py%3A%3Atest_wrong::UsageError: strategy part 'bf17'" in found[3]
    assert found[4].startswith(f"::warning {file}")
    assert "practical floor of 3.0 %25" in found[4]
    page = (pytester.path / "page.md").read_text(encoding="utf-8")
    rows = [
        token
        for token in MarkdownIt("gfm-like", {"linkify": False}).parse(page)
        if token.type == "tr_open"
    ]
    assert len(rows) == 1 + 5
    assert "3 FAIL" in page
    assert re.search(
        r"SKIPPED test_it\.py.*test_skipped.*not today",
        MarkdownIt("gfm-like", {"linkify": False}).render(page),
    )


@pytest.mark.own_process
def test_what_is_wrong_with_the_session_is_an_annotation_without_a_place(
    project, run, on_github, pytester
):
    """A gate that judged nothing fails no test, and the red job shows why.

    Without this it would show no reason beside the code.
    """
    project("def test_speed(llm):\n    llm.run(WORK)\n")
    result = run("--llmperf-gate", "--llmperf-gitlab=quality.json", "--llmperf-html=report.html")
    assert result.ret == EXIT_JUDGED_NOTHING
    of_session = [line for line in commands(result) if line.startswith("::error")]
    assert [line.partition("::--")[0] for line in of_session] == ["::error title=FAIL the session"]
    assert "judged nothing" in of_session[0]
    assert "FAIL the session" in (pytester.path / "page.md").read_text(encoding="utf-8")
    assert "--llmperf-gate judged nothing" in (pytester.path / "report.html").read_text(
        encoding="utf-8"
    )
    quality = json.loads((pytester.path / "quality.json").read_text())
    assert [each["severity"] for each in quality] == ["minor"]  # of the test alone: NOT COMPARABLE
    assert commands(run()) == []


def test_a_gate_that_could_measure_nothing_says_that(project, run, on_github):
    """To record first, which it says where there is no history, would not help."""
    project("def test_speed(llm):\n    llm.run(WORK)\n", script="tpot=10ms,fault=short_output@run")
    result = run("--llmperf-gate")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            (
                "::error title=FAIL the session::--llmperf-gate judged "
                "nothing: no run could be measured.*"
            )
        ]
    )
    result.stdout.no_fnmatch_line("*Record some*")


def test_files_are_written_where_they_are_asked_for_and_read_by_their_readers(
    several, run, elsewhere, pytester
):
    """All three of one session; no annotation without GitHub, and no difference to the outcomes."""
    result = run(*FILES)
    result.assert_outcomes(passed=2, failed=4, errors=1, skipped=1, warnings=1)
    assert commands(result) == []
    quality = json.loads((pytester.path / "quality.json").read_text())
    assert sorted(each["severity"] for each in quality) == [
        "critical",
        "major",
        "major",
        "major",
        "minor",
    ]
    assert {each["location"]["path"] for each in quality} == {"test_it.py"}
    text = (pytester.path / "metrics.txt").read_text(encoding="utf-8")
    assert any(
        family.name == "llmperf_tpot_seconds" for family in text_string_to_metric_families(text)
    )
    assert "practical floor" in (pytester.path / "out" / "comment.md").read_text(encoding="utf-8")


def test_before_is_the_accepted_history(project, run, elsewhere, pytester):
    """The second session has the first beside it."""
    project("def test_speed(llm):\n    llm.run(WORK)\n")
    run("--llmperf-markdown=first.md")
    assert "there is no earlier session" in (pytester.path / "first.md").read_text()
    run("--llmperf-markdown=second.md")
    second = (pytester.path / "second.md").read_text()
    assert "| +0 % |" in second
    assert "| 8 sessions are needed" not in second
    assert "8 sessions are needed, 1 is there" in second


def test_a_file_that_cannot_be_written_changes_no_outcome(project, run, elsewhere, pytester):
    """It is said, with the path."""
    project("def test_speed(llm):\n    llm.run(WORK)\n")
    pytester.mkdir("taken")
    result = run("--llmperf-gitlab=taken")
    result.assert_outcomes(passed=1)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["llmperf: *taken cannot be written: *"])


def test_a_session_inside_of_a_session_writes_nothing(
    project, run, on_github, pytester, monkeypatch
):
    """Its body's own process, and what a test of a plugin starts, would write a second page."""
    project(
        "@pytest.mark.llmperf_isolated\ndef test_speed(llm):\n"
        "    assert llm.run(WORK).tpot.p50 <= 1 * ms\n"
    )
    assert len(commands(run())) == 1
    assert (pytester.path / "page.md").read_text().count("### llmperf") == 1
    monkeypatch.setenv("LLMPERF_CI_SESSION", "1")
    assert commands(run()) == []


@pytest.mark.own_process
def test_a_ci_job_without_llmperf_tests_loads_and_writes_nothing(run, on_github, pytester):
    """The plugin is only there."""
    pytester.makepyfile(
        test_plain="import sys\ndef test_plain():\n    assert 'msgspec' not in sys.modules\n"
    )
    run().assert_outcomes(passed=1)
    assert not (pytester.path / "page.md").exists()
