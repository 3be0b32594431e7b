"""`llmperf compare`: rows, verdicts and what is not comparable, from records by hand."""

from __future__ import annotations

import math
import random

import pytest
from msgspec.structs import replace
from support.history_records import metric, record

from pytest_llmperf.core.environment import environment_key
from pytest_llmperf.core.record import Environment, ProcessFacts
from pytest_llmperf.core.verdicts.processes import UNKNOWN
from pytest_llmperf.gate.contrast import contrast, side_by_side


def sessions(n: int, value: float, *, spread: float = 0.01, prefix: str = "a", **changes):
    """n sessions of one series, a day apart."""
    draw = random.Random(prefix)
    return [
        record(
            f"{prefix}{at}",
            session_id=f"{prefix}{at}",
            created=f"2026-11-{at + 1:02}T05:00:00+00:00",
            metrics=(
                metric(value=value * math.exp(spread * draw.gauss(0, 1))),
                metric("ttft.p50", 0.08, "s"),
            ),
            **changes,
        )
        for at in range(n)
    ]


def only(rows):
    (row,) = rows
    return row


@pytest.mark.parametrize(
    ("n", "factor", "outcome"),
    [
        (1, 0.8, "FAIL"),
        (1, 1.0, "PASS"),
        (1, 1.3, "PASS"),
        (6, 0.9, "FAIL"),
        (6, 1.0, "PASS"),
        (6, 1.2, "PASS"),
    ],
)
def test_sessions_are_judged_by_rule_a_one_or_by_welchs_interval_several(n, factor, outcome):
    """Ten sessions of 100 tok/s at 1 % spread before; the ratio and its interval hold the truth."""
    row = only(contrast(sessions(10, 100.0), sessions(n, 100.0 * factor, prefix="b"), {}))
    assert (row.metric, row.outcome, row.n_before, row.n_after) == ("throughput", outcome, 10, n)
    assert row.low <= factor <= row.high


def test_few_sessions_are_undecided():
    """Three before, 20 % less now: rule A asks for eight."""
    row = only(contrast(sessions(3, 100.0), sessions(1, 95.0, prefix="b"), {}))
    assert (row.outcome, row.reason) == ("UNDECIDED", "8 sessions are needed, 3 are there")


def test_repetitions_of_one_session_are_one_value():
    """Nine records of one session before do not count as nine."""
    before = [replace(each, session_id="one") for each in sessions(9, 100.0)]
    assert only(contrast(before, sessions(1, 95.0, prefix="b"), {})).n_before == 1


def test_runs_measured_in_turn_are_compared_by_their_pairs():
    """Each pair 10 % slower, while the level moves by half: unpaired nothing could be said."""
    level = [100.0, 50.0, 80.0, 120.0, 60.0, 90.0]
    a = record(
        "a", paired_with="p", metrics=(metric(value=85.0),), samples={"throughput": tuple(level)}
    )
    b = record(
        "b",
        paired_with="p",
        metrics=(metric(value=76.0),),
        samples={"throughput": tuple(0.9 * x for x in level)},
        strategy="x",
    )
    row = only(contrast([a], [b], {}))
    assert (row.outcome, row.how, row.strategy) == ("FAIL", "6 pairs, interleaved", "bf16 -> x")
    assert row.ratio == pytest.approx(0.9)
    assert only(contrast([a], [replace(b, paired_with="q")], {})).outcome == "UNDECIDED"


def in_turn(ratio, sizes, **facts):
    """Two records of a comparison, 0.1 % of noise, whose processes are a few per cent apart."""
    draw = random.Random(1)
    n = sum(sizes) or 12
    apart = [math.exp(0.03 * at) for at, size in enumerate(sizes) for _ in range(size)] or [1.0] * n
    noise = [math.exp(0.001 * draw.gauss(0, 1)) for _ in range(2 * n)]
    sides = (noise[:n], [ratio * x * y for x, y in zip(apart, noise[n:], strict=True)])
    processes = ProcessFacts(count=max(1, len(sizes)), sizes=tuple(sizes), **facts)
    return [
        record(
            name,
            paired_with="p",
            samples={"throughput": tuple(100 * x for x in side)},
            processes=processes,
        )
        for name, side in zip("ab", sides, strict=True)
    ]


def test_the_interval_of_runs_in_turn_contains_what_their_processes_differ_by():
    """Two processes, 3 % apart: 12 repetitions are two observations.

    Taken for those of one process, the same pairs would FAIL.
    """
    a, b = in_turn(0.9, (6, 6))
    row = only(contrast([a], [b], {}))
    assert row.outcome == "UNDECIDED"
    assert row.how.startswith("12 pairs, interleaved, 2 processes, 3.")
    assert row.low < 0.8
    assert row.high > 1.1
    blind = [replace(side, processes=ProcessFacts()) for side in (a, b)]
    row = only(contrast(blind[:1], blind[1:], {}))
    assert (row.outcome, row.high < 0.99) == ("FAIL", True)


@pytest.mark.parametrize(
    ("ratio", "outcome"), [(0.8, "FAIL"), (0.95, "UNDECIDED"), (1.0, "UNDECIDED"), (1.2, "PASS")]
)
def test_one_process_of_unknown_spread_decides_nothing_near_the_limit(ratio, outcome):
    """3 % here; where the spread is known, or processes do not differ, the same pairs decide."""
    a, b = in_turn(ratio, (), note="the test wants one")
    row = only(contrast([a], [b], {}))
    assert (row.outcome, row.reason) == (outcome, UNKNOWN if outcome == "UNDECIDED" else "")
    told = ProcessFacts(known=0.002, known_freedom=7, known_from="4 stored sessions")
    for facts in (told, ProcessFacts()):
        a, b = (replace(side, processes=facts) for side in (a, b))
        assert only(contrast([a], [b], {})).outcome in {"PASS", "FAIL"}


def test_another_environment_and_another_workload_are_named():
    """By the keys that differ."""
    elsewhere = Environment(facts={"device": "cuda", "cpu_cores_limit": 2.0})
    moved = [
        replace(each, environment=elsewhere, environment_key=environment_key(elsewhere))
        for each in sessions(1, 100.0)
    ]
    row = only(contrast(sessions(8, 100.0), moved, {}))
    assert (row.outcome, row.reason) == (
        "NOT COMPARABLE",
        "another environment: device is 'cuda', was 'cpu'",
    )
    longer = sessions(1, 100.0, prefix="b", workload_key="w2", workload_text="decode b1 p128 n256")
    row = only(contrast(sessions(8, 100.0), longer, {}))
    assert (
        row.reason
        == "another workload: workload_text is 'decode b1 p128 n256', was 'decode b1 p128 n128'"
    )


def test_what_is_on_one_side_only_and_what_was_not_measured_are_rows_too():
    """Nothing is left out."""
    both = sessions(8, 100.0) + sessions(1, 100.0, prefix="x", test="test_gone")
    rows = contrast(
        both, sessions(1, 100.0, prefix="b"), {"throughput": 0.03, "energy.per_token": 0.05}
    )
    found = {(row.test[-9:], row.metric): row.reason for row in rows}
    assert found["test_gone", "throughput"] == "it was measured before only"
    assert "could not be measured before" in next(
        why for (_, name), why in found.items() if name == "energy.per_token"
    )


def test_side_by_side_shows_what_was_kept_with_a_run():
    """Its pairs and rule B's own verdict."""
    kept = {
        "outcome": "FAIL",
        "limit": 0.03,
        "unit": "tok/s",
        "reason": "",
        "pairs": [[100, 90]] * 6,
        "ratio": [0.9, 0.89, 0.91],
    }
    run = record("a", extra={"against": {"value": "main", "metrics": {"throughput": kept}}})
    row = only(side_by_side([run, record("b")], {}))
    assert (row.outcome, row.before, row.after, row.ratio, row.how) == (
        "FAIL",
        100,
        90,
        0.9,
        "6 pairs, interleaved",
    )
    assert side_by_side([run], {"ttft.p50": 0.03}) == []
