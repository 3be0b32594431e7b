"""Change points over a store: changes of level by environment, acceptances and drift."""

from __future__ import annotations

import json
import math
import random
from datetime import datetime, timedelta

import pytest
from click.testing import CliRunner
from msgspec import structs
from support.history_records import metric, record

from pytest_llmperf.commands import cli
from pytest_llmperf.history import accept
from pytest_llmperf.history.changes import changes_of, series_changes, sessions_of
from pytest_llmperf.history.identity import series_key
from pytest_llmperf.history.sessions import session_values
from pytest_llmperf.history.store import open_store

START = datetime.fromisoformat("2026-01-01T00:00:00+00:00")
KEY = series_key(record("any"))


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fill(folder, values, **changes):
    """One session a value, a day apart, each with two records about it."""
    draw = random.Random(0)
    with open_store("sqlite:///.llmperf/history.db", folder=folder) as store:
        for at, value in enumerate(values):
            for n in range(2):
                noisy = value * math.exp(0.01 * draw.gauss(0, 1))
                created = (START + timedelta(days=at, minutes=n)).isoformat()
                more = {"outcome": "RECORDED", **changes}
                made = record(
                    f"r{at}-{n}-{changes}",
                    session_id=f"s{at}",
                    created=created,
                    metrics=(metric(value=noisy),),
                    **more,
                )
                store.add(made)


def found(folder, accepted=()):
    with open_store("sqlite:///.llmperf/history.db", folder=folder) as store:
        return series_changes(store, KEY, "throughput", accepted)


def acceptance(at):
    created = (START + timedelta(days=at)).isoformat()
    return accept.Acceptance(
        series=KEY,
        record=f"r{at}-0-{{}}",
        created=created,
        test="t",
        who="me",
        why="meant",
        when=created,
    )


def test_a_session_is_one_value_the_median_of_its_records(project):
    """Two records a session; forty sessions, oldest first."""
    fill(project, [100.0] * 40)
    with open_store("sqlite:///.llmperf/history.db", folder=project) as store:
        values = session_values(store.points(KEY, "throughput"))
    assert [each.session_id for each in values] == [f"s{at}" for at in range(40)]


def test_a_step_is_found_between_the_sessions_it_lies_between(project):
    """-8 % from session 30 on."""
    fill(project, [100.0] * 30 + [92.0] * 20)
    (series,) = found(project)
    (change,) = series.changes
    assert (change.before.session_id, change.after.session_id) == ("s29", "s30")
    assert change.point.change == pytest.approx(-0.08, abs=0.01)
    assert series.unaccepted


def test_an_accepted_step_is_no_news_but_a_later_one_is(project):
    """Accepted at session 30; the same again at 60 is not."""
    fill(project, [100.0] * 30 + [92.0] * 30)
    (series,) = found(project, (acceptance(30),))
    assert [change.accepted for change in series.changes] == [True]
    assert not series.unaccepted
    fill(project, [100.0] * 30 + [92.0] * 30 + [84.0] * 30, environment_key="other")
    later = next(
        each for each in found(project, (acceptance(30),)) if each.environment_key == "other"
    )
    assert [change.accepted for change in later.changes] == [True, False]


def test_environments_are_histories_of_their_own(project):
    """Two machines, one slower: no change of level in either."""
    fill(project, [100.0] * 20)
    fill(project, [70.0] * 20, environment_key="slow")
    assert [each.changes for each in found(project)] == [(), ()]


def test_two_models_of_equal_weights_in_one_test_are_two_histories(project):
    """The second was measured in the first twenty sessions alone: no level changed.

    In one series the median of both would have risen from 80 to 100.
    """
    fill(project, [100.0] * 40, model="a")
    fill(project, [60.0] * 20, model="b")
    told = [(one.model, one.n_sessions, one.changes) for one in found(project)]
    assert sorted(told) == [("a", 40, ()), ("b", 20, ())]
    shown = CliRunner().invoke(cli.main, ["history", "--fail-on-change"])
    assert (shown.exit_code, "no change of level" in shown.stdout) == (0, True)
    with open_store("sqlite:///.llmperf/history.db", folder=project) as store:
        points = [structs.replace(point, model="") for point in store.points(KEY, "throughput")]
    mixed = changes_of("e", sessions_of(points)["e"], ())
    assert mixed.unaccepted


def test_a_change_of_one_of_two_models_names_it(project):
    """A level that was accepted for the other one accepts nothing of this one."""
    fill(project, [100.0] * 30 + [90.0] * 10, model="a")
    fill(project, [60.0] * 40, model="b")
    with open_store("sqlite:///.llmperf/history.db", folder=project) as store:
        points = store.points(KEY, "throughput")
    at_35 = [point for point in points if point.session_id == "s35"]
    of = {point.model: point.record_id for point in at_35}
    for model, is_open in (("b", True), ("a", False)):
        accepted = structs.replace(acceptance(35), record=of[model])
        rows = {one.model: one for one in found(project, (accepted,))}
        assert (rows["a"].unaccepted, rows["b"].unaccepted) == (is_open, False)
    shown = CliRunner().invoke(cli.main, ["history", "--changes"]).stdout
    assert "test_pays[bf16] bf16 a: throughput" in shown
    listed = json.loads(CliRunner().invoke(cli.main, ["history", "--json"]).stdout)["series"]
    assert [(row["model"], row["n"], len(row["points"])) for row in listed] == [
        ("b", 80, 3),
        ("a", 80, 3),
    ]


def test_a_model_that_was_renamed_goes_on(project):
    """No session measured two: the step between both names is found."""
    fill(project, [100.0] * 20, model="./v1")
    with open_store("sqlite:///.llmperf/history.db", folder=project) as store:
        for at in range(20, 40):
            created = (START + timedelta(days=at)).isoformat()
            value = (metric(value=90.0 + at / 100),)
            changes = {"session_id": f"s{at}", "created": created, "metrics": value}
            store.add(record(f"n{at}", outcome="RECORDED", model="./v2", **changes))
    (series,) = found(project)
    assert (series.model, series.n_sessions, len(series.changes)) == ("", 40, 1)


def test_runs_that_were_not_valid_are_left_out(project):
    """Ten INVALID sessions at half speed."""
    fill(project, [100.0] * 20)
    fill(project, [50.0] * 10, outcome="INVALID")
    (series,) = found(project)
    assert series.n_sessions == 20
    assert series.changes == ()


def test_history_prints_changes_and_can_fail_on_them(project):
    """Size, levels and the record it starts with; exit code 1 until it is accepted."""
    fill(project, [100.0] * 30 + [92.0] * 20)
    plain = CliRunner().invoke(cli.main, ["history"])
    assert "->" not in plain.stdout
    shown = CliRunner().invoke(cli.main, ["history", "--changes"])
    assert shown.exit_code == 0
    line = next(line for line in shown.stdout.splitlines() if "->" in line)
    assert "throughput 100 tok/s -> 91.6 tok/s (8.5 % less)" in line
    assert "from record r30-1" in line
    assert CliRunner().invoke(cli.main, ["history", "--fail-on-change"]).exit_code == 1
    assert CliRunner().invoke(cli.main, ["history", "--fail-on-change", "--json"]).exit_code == 1
    accepted = CliRunner().invoke(
        cli.main, ["accept", KEY, "--reason", "meant", "--record", "r30-0-{}"]
    )
    assert accepted.exit_code == 0
    again = CliRunner().invoke(cli.main, ["history", "--fail-on-change"])
    assert again.exit_code == 0
    assert "accepted" in again.stdout


def test_history_without_a_change_says_so(project):
    """Nothing found is said, not left out."""
    fill(project, [100.0] * 20)
    assert "no change of level" in CliRunner().invoke(cli.main, ["history", "--changes"]).stdout


def test_a_definition_that_changed_is_no_change_of_level(project):
    """Ten sessions by the old definition, ten by the new one, at half of its values."""
    fill(project, [100.0] * 10, label="", outcome="RECORDED")
    with open_store("sqlite:///.llmperf/history.db", folder=project) as store:
        for at in range(10, 20):
            anew = structs.replace(metric(value=50.0 + at % 2), formula="output_throughput/2")
            made = record(
                f"r{at}",
                session_id=f"s{at}",
                created=(START + timedelta(days=at)).isoformat(),
                outcome="RECORDED",
                metrics=(anew,),
            )
            store.add(made)
    (changes,) = found(project)
    assert not changes.changes
