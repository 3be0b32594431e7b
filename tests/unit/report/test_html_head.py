"""The first screen of the HTML report: the head, and what failed before and after."""

from __future__ import annotations

from msgspec.structs import replace
from support.history_records import record
from support.html_pages import content, panels, session_value

from pytest_llmperf.core.change import Change, run_fields
from pytest_llmperf.core.record import ClaimRecord, Environment
from pytest_llmperf.report.html import build, head
from pytest_llmperf.report.html.content import History


def _gated(**more):
    """A failed run of a gated session, with ten sessions of history."""
    claim = ClaimRecord(
        text="throughput of bf16 is 69.6 tok/s, 13 % less than in 10 accepted sessions",
        outcome="FAIL",
        margin=-0.1,
        detail="on this machine",
    )
    failed = record("failed", claims=(claim,), outcome="FAIL", **more)
    change = Change(
        **run_fields(failed),
        metric="throughput",
        unit="tok/s",
        direction="higher",
        before=80.0,
        after=69.6,
        ratio=0.87,
        outcome="FAIL",
        limit=0.03,
    )
    values = (80.0, 81.0, 79.0, 69.6)
    history = History(
        key="k",
        test=failed.test,
        label=failed.label,
        workload=failed.workload_text,
        strategy=failed.strategy,
        model=failed.model,
        metric="throughput",
        unit="tok/s",
        sessions=tuple(
            session_value(f"2026-11-0{n + 1}T00:00:00+00:00", value)
            for n, value in enumerate(values)
        ),
    )
    return failed, change, history


def test_a_failure_stands_first_with_before_and_after_and_a_small_line():
    """Its line says how many sessions it is of, and its name leads to the run's row."""
    failed, change, history = _gated()
    page_text = build(content(failed, changes=(change,), histories=(history,)))
    (item,) = panels(content(failed, changes=(change,), histories=(history,)))[0].items
    assert item.change == "80.0 → 69.6 tok/s (-13 %)"
    assert item.line.title == "the last 4 sessions: 69.6 tok/s to 81.0 tok/s, now 69.6 tok/s"
    assert len(item.line.points.split()) == 4
    assert page_text.index("80.0 → 69.6 tok/s") < page_text.index("What was not in effect")
    assert f'href="#run-{failed.id}"' in page_text
    assert page_text.count(f'id="run-{failed.id}"') == 1


def test_a_failure_without_a_change_or_with_few_sessions_has_neither():
    """A claim on a number has nothing before it, and two dots are no line."""
    failed, change, history = _gated()
    short = replace(history, sessions=history.sessions[:2])
    (item,) = panels(content(failed, histories=(short,)))[0].items
    assert (item.change, item.line) == ("", None)
    other = replace(change, strategy="other")
    assert panels(content(failed, changes=(other,)))[0].items[0].change == ""


def test_the_head_says_when_where_of_what_and_what_judged():
    """Each once; what nobody knows is left out."""
    environment = Environment(
        facts={
            "git_commit": "a" * 40,
            "git_branch": "main",
            "git_dirty": True,
            "host": "node7",
            "device_name": "NVIDIA H200",
            "version_torch": "2.11.0",
        }
    )
    known = replace(record("a"), environment=environment)
    shown = dict(head.facts(content(known, judged="held against accepted sessions")))
    assert shown["commit"] == "aaaaaaaaaa on main, with uncommitted changes"
    assert shown["host"] == "node7"
    assert "NVIDIA H200" in shown["device"]
    assert "torch 2.11.0" in shown["versions"]
    assert shown["judged"] == "held against accepted sessions"
    bare = replace(record("b"), environment=Environment(facts={}))
    assert "commit" not in dict(head.facts(content(bare)))
    assert head.facts(content()) == []


def test_the_other_side_is_named_and_not_its_facts():
    """A mapping was the title of a comparison."""
    against = {"value": "HEAD~1", "commit": "b" * 40, "base": {"facts": {"cpu": "x"}}}
    assert head.base_name(against) == "HEAD~1 (bbbbbbbb)"
    assert head.base_name({"base": "main"}) == "main"
    assert head.base_name({}) == "the base"
