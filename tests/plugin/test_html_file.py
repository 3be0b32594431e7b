"""--llmperf-html and `llmperf report`: the file of a session, and the same from the store.

A file that cannot be written is named.
"""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner

from pytest_llmperf.commands import cli

TESTS = """
@pytest.mark.parametrize("llm", ["bf16"], indirect=True)
def test_pays(llm, baseline):
    ours, ref = llm.compare(baseline, WORK)
    assert ours.throughput >= 9 * ref.throughput

def test_speed(llm):
    llm.run(WORK)

@pytest.mark.skip(reason="no <b>GPU</b>")
def test_skipped(llm):
    llm.run(WORK)
"""


@pytest.fixture
def report(pytester):
    def read(name="report.html"):
        return (pytester.path / name).read_text(encoding="utf-8")

    return read


def llmperf(*arguments):
    return CliRunner().invoke(cli.main, ["report", *arguments])


def test_the_report_has_what_the_session_measured_and_skipped(project, run_both, report):
    """The same under xdist: verdicts, the skipped test with its reason, samples, the history."""
    project(TESTS)
    done = run_both("--llmperf-html=report.html")
    done.assert_outcomes(failed=1, passed=1, skipped=1)
    done.stdout.fnmatch_lines(["*HTML report of 3 records in *report.html*"])
    text = report()
    assert "1 test failed" in text
    assert "claimed &gt;= 9.00x" in text
    assert "no &lt;b&gt;GPU&lt;/b&gt;" in text
    assert '"samples":{"throughput":[' in text
    assert 'id="history"' in text
    assert "sqlite:" in text


def test_without_a_store_there_is_no_history(project, run, report):
    """And the report says that it is of this session alone."""
    project(TESTS)
    run("--llmperf-html=report.html", "--llmperf-store=none", "-k", "test_speed").assert_outcomes(
        passed=1
    )
    assert 'id="history"' not in report()
    assert "this session alone" in report()


def test_a_path_that_cannot_be_written_is_said_and_changes_no_outcome(project, run):
    """Outcome and exit code are those of the tests; the way out is named."""
    project(TESTS)
    done = run("--llmperf-html=/proc/no/report.html", "-k", "test_speed")
    done.assert_outcomes(passed=1)
    assert done.ret == 0
    done.stdout.fnmatch_lines(
        [
            (
                "llmperf: the HTML report /proc/no/report.html cannot be "
                "written:*'llmperf report' makes it*"
            )
        ]
    )


def test_collecting_alone_writes_no_report(project, run, pytester):
    """Neither --collect-only nor --llmperf-plan measures anything."""
    project(TESTS)
    run("--llmperf-html=report.html", "--collect-only")
    assert not (pytester.path / "report.html").exists()


def test_the_command_makes_the_report_from_the_store(project, run, report, monkeypatch, pytester):
    """With filters; a test, strategy or session that is not there is said with what is."""
    project(TESTS)
    run("-k", "not skipped")
    monkeypatch.chdir(pytester.path)
    done = llmperf("--out", "all.html")
    assert done.exit_code == 0, done.output
    assert re.match(r"3 records in all\.html \(\d{3} kB\)", done.output)
    assert "a report of their own session names them" in report("all.html")
    assert llmperf("--strategy", "bf16", "--out", "one.html").output.startswith(
        "1 record in one.html"
    )
    assert llmperf(
        "test_speed", "--session", "last", "--since", "1h", "--out", "one.html"
    ).output.startswith("1 record ")
    assert llmperf("--since", "2999-01-01", "--out", "none.html").output.startswith("0 records ")
    assert "There are no runs: no stored run; since 2999-01-01" in report("none.html")
    assert "<!doctype html>" in llmperf("--out", "-").output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing",), "no test in .* has 'nothing' in its name"),
        (("--since", "soon"), "--since 'soon' is neither a time such as 2026-11-23 nor a span"),
        (("--session", "zzz"), "no session in .* begins with 'zzz'"),
        (("--out", "/proc/no/r.html"), "/proc/no/r.html cannot be written"),
    ],
)
def test_what_the_command_cannot_use_is_said(sessions, monkeypatch, pytester, arguments, said):
    """One message, exit code 1."""
    sessions(2)
    monkeypatch.chdir(pytester.path)
    done = llmperf(*arguments)
    assert done.exit_code == 1
    assert re.search(said, done.output), done.output


def test_a_change_in_the_history_is_drawn(sessions, monkeypatch, pytester, report):
    """A level that fell by a fifth over stored sessions stands at the top and in the figure.

    Other series do not.
    """
    import msgspec

    def slower(record):
        late = record.session_id in {
            f"earlier-{hours}" for hours in range(1, 16)
        } and record.test.endswith("test_speed")
        metrics = tuple(
            msgspec.structs.replace(m, value=m.value * 0.8)
            if m.name == "throughput" and late
            else m
            for m in record.metrics
        )
        return msgspec.structs.replace(record, metrics=metrics, outcome="PASS")

    sessions(30, change=slower)
    monkeypatch.chdir(pytester.path)
    assert llmperf("--out", "report.html").exit_code == 0
    text = report()
    assert "Levels that changed" in text
    assert text.count('"steps":[[15,') == 1
    assert text.count('"steps":[]') == 1
