"""The sessions that a new one is held against: which count, and what is said of the others."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from support.history_records import metric, record

from pytest_llmperf.core.record import Environment
from pytest_llmperf.core.verdicts.against_history import compare
from pytest_llmperf.core.verdicts.judge import Outcome
from pytest_llmperf.gate import words
from pytest_llmperf.gate.accepted import accepted_sessions
from pytest_llmperf.gate.gated import GatedMetric
from pytest_llmperf.gate.lineage import DIRTY, OTHER_BRANCH, Lineage
from pytest_llmperf.gate.past import Question
from pytest_llmperf.history.accept import Acceptance, Reviewed
from pytest_llmperf.history.identity import series_key
from pytest_llmperf.history.store import open_store

NOW = datetime(2026, 11, 30, tzinfo=UTC)


@pytest.fixture
def store(tmp_path):
    with open_store(f"sqlite:///{tmp_path}/history.db") as opened:
        yield opened


def session(at, value, *, host=None, outcome="PASS", created=None, session_id=None, **fields):
    """Session `at` of the series, an hour after the one before it."""
    facts = {"device": "cpu", "host": host, **fields.pop("facts", {})}
    return record(
        f"{at:04d}beef{value:g}",
        session_id=session_id or f"session-{at}",
        created=(created or NOW - timedelta(hours=100 - at)).isoformat(),
        outcome=outcome,
        metrics=(metric("throughput", value),),
        environment=Environment(facts=facts),
        **fields,
    )


def put(store, *sessions):
    for one in sessions:
        store.add(one)


def alike(n, value=100.0, start=0, **fields):
    return [session(start + at, value + 0.1 * (at % 3), **fields) for at in range(n)]


def asked(store, value=100.0, *, reviewed=None, lineage=None, limit=0.03, **fields):
    new = session(99, value, **fields)
    question = Question(record=new, metric=new.metrics[0], limit=limit, lineage=lineage)
    return accepted_sessions(store, reviewed or Reviewed(), question)


def said(sessions, value, **fields):
    """The line of the gate on this value."""
    new = session(99, value, **fields)
    comparison = compare(value, sessions.accepted, direction="higher")
    gated = GatedMetric(
        position=0,
        record=new,
        metric=new.metrics[0],
        limit=0.03,
        sessions=sessions,
        comparison=comparison,
    )
    return words.judged(gated, comparison, strict=False)


def include(one, *, level=False):
    return Reviewed(
        accepted=(
            Acceptance(
                series=series_key(one),
                record=one.id,
                created=one.created,
                test=one.test,
                who="me",
                why="it counts",
                when=NOW.isoformat(),
                level=level,
            ),
        )
    )


# Suspicions


def test_an_undecided_session_past_the_limit_is_held_back_and_named(store):
    """4 % less throughput, UNDECIDED in its time: neither it nor the next is accepted."""
    suspicious = session(20, 96.0, outcome="UNDECIDED")
    put(store, *alike(10), suspicious, session(21, 96.5))
    found = asked(store)
    assert found.accepted.n == 10
    assert found.accepted.open == (96.0, 96.5)
    (remark,) = found.remarks
    assert remark.startswith("2 sessions are held back since 0020beef")
    assert "llmperf accept --include 0020beef" in remark


def test_somebody_can_say_that_a_held_back_session_counts(store):
    """It does; the next is a suspicion of its own."""
    suspicious = session(20, 96.0, outcome="UNDECIDED")
    put(store, *alike(10), suspicious, session(21, 96.5))
    found = asked(store, reviewed=include(suspicious))
    assert found.accepted.values[-1] == 96.0
    assert found.accepted.open == (96.5,)


def test_an_accepted_level_is_still_a_new_level(store):
    """The other kind of line."""
    lower = session(20, 90.0, outcome="FAIL")
    put(store, *alike(10), lower)
    found = asked(store, reviewed=include(lower, level=True))
    assert found.accepted.values == (90.0,)
    assert len(found.accepted.earlier[0]) == 10


# Left out by name


def test_a_value_of_zero_or_less_is_left_out(store):
    """Nothing can be told from it, and it cannot be put back."""
    put(store, *alike(10), session(20, 0.0), session(21, -3.0))
    found = asked(store)
    assert found.accepted.n == 10
    assert "with a value of 0 tok/s is left out" in found.remarks[0]
    assert "--include" not in found.remarks[0]


def test_a_session_of_the_future_is_left_out(store):
    """A clock that jumped five years would be among the newest for ever."""
    ahead = session(20, 60.0, created=NOW + timedelta(days=5 * 365))
    put(store, *alike(10), ahead)
    found = asked(store)
    assert found.accepted.n == 10
    assert (
        "dated 2031-11-29, after this one is left out (0020beef of 2031-11-29" in (found.remarks[0])
    )
    assert asked(store, reviewed=include(ahead)).accepted.values[-1] == 60.0


def test_one_outlier_is_left_out_with_the_way_to_put_it_back(store):
    """Twice as fast, once."""
    put(store, *alike(10), session(20, 200.0), *alike(3, start=30))
    found = asked(store)
    assert 200.0 not in found.accepted.values
    assert found.remarks[0].startswith("left out: 0020beef of 2026-11-26, 200 tok/s")
    assert "llmperf accept --include 0020beef" in found.remarks[0]


# Models


def test_two_models_of_one_test_with_equal_weights_are_two_series(store):
    """Eight sessions measured both, at 94 and 80: each is held against its own."""
    both = [
        session(at, value, session_id=f"s{at}", model=model)
        for at in range(8)
        for value, model in ((94.0 + at / 10, "bot:build"), (80.0 + at / 10, "bot:slow"))
    ]
    put(store, *both)
    found = asked(store, 80.2, model="bot:slow")
    assert found.accepted.values == tuple(80.0 + at / 10 for at in range(8))
    assert said(found, 80.2).outcome is Outcome.PASS
    mixed = [87.0 + at / 10 for at in range(8)]
    assert compare(
        80.2, found.accepted.__class__(values=tuple(mixed)), direction="higher"
    ).suspected


def test_a_model_that_was_renamed_keeps_its_history(store):
    """No session measured two: a name alone is no other model, as in records of before."""
    put(store, *alike(9, model="./v1"))
    assert asked(store, model="./v2").accepted.n == 9


def test_a_second_model_of_equal_weights_has_no_history_yet(store):
    """It joins a test that has one: it is not held against the other's."""
    put(store, *alike(9, model="a"), session(99, 100.0, session_id="session-99", model="a"))
    new = session(98, 50.0, session_id="session-99", model="b")
    put(store, new)
    question = Question(record=new, metric=new.metrics[0])
    found = accepted_sessions(store, Reviewed(), question)
    assert found.accepted.n == 0
    assert found.reason == "the 9 earlier runs are of other models than 'b'"


# Hosts


def test_sessions_of_the_same_host_come_first(store):
    """Two hosts 12 % apart, half of the sessions each: 10 % less on the fast one is seen."""
    fast, slow = alike(12, 112.0, host="fast"), alike(12, 100.0, start=12, host="slow")
    put(store, *(one for pair in zip(fast, slow, strict=True) for one in pair))
    found = asked(store, 101.0, host="fast")
    assert set(found.accepted.values) == {112.0, 112.1, 112.2}
    assert said(found, 101.0, host="fast").outcome is Outcome.FAIL
    pooled = found.accepted.__class__(values=tuple(one.metrics[0].value for one in (*fast, *slow)))
    assert not compare(101.0, pooled, direction="higher").suspected


def test_another_host_fails_nothing_and_is_named(store):
    """Twenty sessions on one host, then one on another that is 12 % slower."""
    put(store, *alike(20, host="one"))
    line = said(asked(store, 88.0, host="two"), 88.0, host="two")
    assert line.outcome is Outcome.UNDECIDED
    assert "than in 1 other host" in line.text
    assert "all of them of other hosts than two (one), which may differ" in line.detail


def test_hosts_that_come_and_go_are_pooled(store):
    """A CI system's runners have a name each: their spread is that of hosts."""
    put(store, *(session(at, 100.0 + at % 3, host=f"runner-{at}") for at in range(12)))
    found = asked(store, host="runner-99")
    assert found.accepted.n == 12
    assert found.remarks == ()


def test_records_of_before_that_name_no_host_count_for_every_host(store):
    """Else the first session after an upgrade would be compared with nothing."""
    put(store, *alike(9))
    assert asked(store, host="one").accepted.n == 9


# What else has changed


def test_a_fail_names_the_versions_the_driver_and_the_host_that_changed(store):
    """Not the commit: that is what is judged."""
    facts = {"driver": "570.1", "version_torch": "2.10", "git_commit": "a"}
    put(store, *alike(12, facts=facts, host="one"))
    now = {"driver": "580.1", "version_torch": "2.11", "git_commit": "b"}
    found = asked(store, 88.0, facts=now, host="one")
    assert found.changed == "driver is 580.1, was 570.1, torch is 2.11, was 2.10"
    line = said(found, 88.0, facts=now, host="one")
    assert line.outcome is Outcome.FAIL
    assert line.detail.endswith(f"changed since the newest accepted session: {found.changed}")
    assert "changed" not in said(found, 100.0, facts=now, host="one").detail


# Attempts


def test_a_session_whose_last_attempt_passed_counts_by_that_attempt(store):
    """A rerun plugin's failed attempts are no value of it."""
    put(
        store,
        *alike(9),
        session(20, 50.0, outcome="FAIL", session_id="r"),
        session(21, 100.0, outcome="PASS", session_id="r"),
    )
    assert asked(store).accepted.values[-1] == 100.0


# Branches and trees


@pytest.fixture
def commits(tmp_path, monkeypatch):
    """A repository on main with one commit, and one on a branch: {"main": …, "branch": …}."""
    for name in ("GITHUB_HEAD_REF", "GITHUB_REF_NAME", "CI_COMMIT_BRANCH"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "project"
    folder.mkdir()

    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", *identity, *arguments]
        return subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True
        ).stdout.strip()

    def commit(name):
        git("commit", "-q", "--allow-empty", "-m", name)
        return git("rev-parse", "HEAD")

    git("init", "-q", "-b", "main")
    found = {"main": commit("one")}
    git("checkout", "-q", "-b", "feature")
    found["branch"] = commit("two")
    git("checkout", "-q", "main")
    return folder, found, git


def test_sessions_of_another_branch_are_left_out(store, commits):
    """And counted, with the way to take them in."""
    folder, ids, git = commits
    put(store, *alike(9, facts={"git_commit": ids["main"], "git_dirty": False}))
    put(store, *alike(3, 80.0, start=20, facts={"git_commit": ids["branch"], "git_dirty": False}))
    found = asked(store, lineage=Lineage(folder))
    assert found.accepted.n == 9
    assert found.remarks[0].startswith("3 sessions of another branch are left out (0022beef")
    assert asked(store).accepted.open == (80.0, 80.1, 80.2)
    git("checkout", "-q", "feature")
    assert asked(store, lineage=Lineage(folder)).accepted.open == (80.0, 80.1, 80.2)


def test_sessions_with_uncommitted_changes_are_left_out(store, commits):
    """Alone they are nothing to compare with, and the reason says so."""
    folder, ids, _ = commits
    put(store, *alike(9, facts={"git_commit": ids["main"], "git_dirty": True}))
    found = asked(store, lineage=Lineage(folder))
    assert found.accepted.n == 0
    assert found.reason.startswith("9 sessions with uncommitted changes are left out")


def test_sessions_without_a_commit_count(tmp_path):
    """They are of no git work tree, or this is of none."""
    lineage = Lineage(tmp_path)
    assert lineage.refuses({}) == ""
    assert lineage.refuses({"git_commit": "a" * 40}) == ""
    assert lineage.refuses({"git_commit": "a" * 40, "git_dirty": True}) == DIRTY


def test_a_shallow_clone_goes_by_the_branch_that_was_recorded(commits, tmp_path):
    """It knows one commit: others of main count, of other branches not, old records do."""
    folder, ids, git = commits
    git("commit", "-q", "--allow-empty", "-m", "three")
    clone = tmp_path / "clone"
    command = ["git", "clone", "-q", "--depth=1", "--branch=main", f"file://{folder}", str(clone)]
    subprocess.run(command, check=True, capture_output=True)
    lineage = Lineage(clone)
    assert lineage.refuses({"git_commit": ids["main"]}) == ""
    assert lineage.refuses({"git_commit": ids["main"], "git_branch": "main"}) == ""
    assert lineage.refuses({"git_commit": ids["branch"], "git_branch": "feature"}) == OTHER_BRANCH
    assert Lineage(folder).refuses({"git_commit": ids["branch"]}) == OTHER_BRANCH
