"""What every command has: examples that work, JSON, completion, tables that lose nothing."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.history_records import metric, record

from pytest_llmperf.commands import bisecting, calibrating, cli, shared
from pytest_llmperf.commands.start import init, run
from pytest_llmperf.history.store import open_store
from pytest_llmperf.plugin import recording

COMMAND = [sys.executable, "-m", "pytest_llmperf"]
COMMANDS = sorted(cli.main.commands)
NOT_JSON = {"schema", "init", "record", "run"}
"""The output of the first is JSON without being asked; that of the others is pytest's."""
STARTING = {"bisect", "calibrate", "init", "record", "run"}


def examples(name):
    text = CliRunner().invoke(cli.main, [name, "--help"], terminal_width=200).stdout
    return [line.strip() for line in text.partition("Example:")[2].splitlines() if line.strip()]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a history, two files of records and a lane."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMPERF_CACHE", str(tmp_path / "cache"))
    (tmp_path / "pytest.ini").write_text("[pytest]\nllmperf_lanes =\n    all:\n")
    (tmp_path / "test_speed.py").write_text("def test_speed(): pass\n")
    now = datetime.now(UTC)
    metrics = (
        metric(),
        metric("ttft.p50", 0.08, "s"),
        metric("memory.weights", 5e8, "B"),
        metric("memory.peak", 6e8, "B"),
    )
    kept = {"test": "test_speed.py::test_speed", "outcome": "PASS", "metrics": metrics}
    with open_store("sqlite:///.llmperf/history.db", folder=tmp_path) as store:
        for at in (2, 1):
            created = (now - timedelta(days=at)).isoformat()
            store.add(record(f"r{at}", session_id=f"s{at}", created=created, **kept))
    done = CliRunner().invoke(cli.main, ["export", "--out", "llmperf-history.jsonl"])
    assert done.exit_code == 0, done.output
    for name in ("before.jsonl", "after.jsonl"):
        shutil.copy("llmperf-history.jsonl", name)
    return tmp_path


@pytest.fixture
def no_sessions(monkeypatch):
    """Commands that run pytest for minutes do not: what they would start is kept."""
    started = []

    def session(*arguments):
        started.append(arguments)
        return {("test_speed",): [record("r", metrics=(metric(value=14.0 + len(started) / 100),))]}

    def pytest_session(*arguments, **_more):
        started.append(arguments)
        return 0

    monkeypatch.setattr(calibrating, "run_session", session)
    monkeypatch.setattr(recording, "_run_session", pytest_session)
    monkeypatch.setattr(run, "_run_pytest", pytest_session)
    monkeypatch.setattr(init, "_run_once", pytest_session)
    step = bisecting.Step(
        commit="a" * 40,
        subject="s",
        word="bad",
        outcome="FAIL",
        ratio=0.9,
        low=0.8,
        high=0.95,
        pairs=8,
        test="t",
    )
    found = bisecting.Bisection(first_bad=step, suspects=(), steps=(step,))
    monkeypatch.setattr(bisecting, "bisect", lambda *args: started.append(args) or found)
    return started


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_every_command_run(project, no_sessions, name):
    """As they are written, in a project that has what they name."""
    lines = examples(name)
    assert lines
    for line in lines:
        word, *arguments = shlex.split(line)
        assert (word, arguments[0]) == ("llmperf", name)
        done = CliRunner().invoke(cli.main, arguments)
        assert done.exit_code == 0, (line, done.output, done.exception)
    assert bool(no_sessions) == (name in STARTING)


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - NOT_JSON))
def test_every_command_gives_one_json_document(project, no_sessions, name):
    """The example's arguments with --json.

    Where an export goes to standard output, it is JSON lines.
    """
    _, *arguments = shlex.split(examples(name)[0])
    with_json = [arguments[0], *(["--json"] if "--json" not in arguments else []), *arguments[1:]]
    done = CliRunner().invoke(cli.main, with_json)
    assert done.exit_code == 0, (done.output, done.exception)
    assert isinstance(json.loads(done.stdout), dict)


def test_an_example_that_does_not_work_would_be_seen(project):
    """The same call with a wrong option ends otherwise."""
    assert CliRunner().invoke(cli.main, ["history", "--no-such-option"]).exit_code == 2


# Completion


def complete(shell, words, folder):
    """What click answers to the script's question."""
    text = " ".join(words)
    variables = {
        "_LLMPERF_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": text,
        "COMP_CWORD": str(len(words) - 1),
    }
    if shell == "fish":
        variables["COMP_CWORD"] = words[-1]
    done = subprocess.run(
        COMMAND,
        env=os.environ | variables,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_that_asks_the_variable_it_is_answered_by(shell, tmp_path):
    """The script names the variable, and the answer to it holds the command that was begun."""
    script = CliRunner().invoke(cli.main, ["--completion", shell])
    assert script.exit_code == 0
    assert f"_LLMPERF_COMPLETE={shell}_complete" in script.stdout
    assert "history" in complete(shell, ["llmperf", "hist"], tmp_path)
    assert "doctor" not in complete(shell, ["llmperf", "hist"], tmp_path)


def test_bash_completes_commands_options_and_choices(tmp_path):
    """In a bash that has read the script, through the function that it registers."""
    (tmp_path / "llmperf").write_text(f'#!/bin/sh\nexec {sys.executable} -m pytest_llmperf "$@"\n')
    (tmp_path / "llmperf").chmod(0o755)
    (tmp_path / "script").write_text(CliRunner().invoke(cli.main, ["--completion", "bash"]).stdout)
    ask = "COMPREPLY=(); COMP_WORDS=({0}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); "
    ask += "_llmperf_completion llmperf\n"
    ask += 'echo "${{COMPREPLY[@]}}"\n'
    cases = {
        "llmperf exp": "export",
        "llmperf doctor --dev": "--device",
        "llmperf doctor --device cu": "cuda",
    }
    (tmp_path / "ask").write_text("source ./script\n" + "".join(map(ask.format, cases)))
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "ask"],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.split() == list(cases.values()), done.stderr


def test_an_unknown_shell_is_refused_with_the_known_ones():
    """As any other choice."""
    done = CliRunner().invoke(cli.main, ["--completion", "tcsh"])
    assert done.exit_code == 2
    assert "'bash', 'zsh', 'fish'" in done.stderr


# Tables

HOSTILE = "test_it.py::test_\x1b[31mred\x1b[0m\nnext\u202egnp[" + "x" * 300 + "]"


def test_a_piped_table_loses_nothing_and_carries_no_escape(capsys):
    """One line a row, however long, in columns that line up."""
    shared.print_table([(HOSTILE, "PASS"), ("数据", "FAIL")], ("test", "verdict"))
    head, first, second = capsys.readouterr().out.splitlines()
    assert "x" * 300 in first
    assert "\x1b" not in first
    assert "\\x1b[31mred\\x1b[0m\\nnext\\u202egnp" in first
    assert first.index("PASS") == head.index("verdict")
    assert second.rstrip().endswith("FAIL")


def test_a_terminal_gets_the_same_table(monkeypatch, capsys):
    """Neither its width nor its colours change what is printed."""
    table = ([(HOSTILE, "FAIL")], ("test", "verdict"))
    shared.print_table(*table)
    piped = capsys.readouterr().out
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "60"}.items():
        monkeypatch.setenv(name, value)
    shared.print_table(*table)
    assert capsys.readouterr().out == piped


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--metric", "throughputt"],
            "metric 'throughputt' is not in the newest records. Did you mean 'throughput'?",
        ),
        (
            ["--markdown", "--openmetrics"],
            "--markdown and --openmetrics cannot both be made at once",
        ),
    ],
)
def test_a_report_that_cannot_be_meant_is_refused(project, arguments, said):
    """Silence would look as if it had been made."""
    done = CliRunner().invoke(cli.main, ["report", *arguments])
    assert done.exit_code == 1
    assert said in done.output
    assert not list(project.glob("*.html"))


def test_a_full_disk_behind_standard_output_is_one_line(project):
    """A report that is piped into a file."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "report", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert (
        done.stderr
        == "Error: standard output cannot be written: [Errno 28] No space left on device\n"
    )


def test_the_list_of_commands_has_whole_sentences():
    """Nothing is cut with dots, which would hide what a command is for."""
    listed = (
        CliRunner().invoke(cli.main, ["--help"], terminal_width=80).stdout.partition("Commands:")[2]
    )
    assert len(listed.strip().splitlines()) == len(COMMANDS)
    assert "..." not in listed
