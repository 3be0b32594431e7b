"""The HTML report as text: what is in it, and from which record."""

from __future__ import annotations

import json
import math
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import history_records
from support.history_records import RECORDS, metric, record
from support.html_pages import (
    BF16,
    ELSEWHERE,
    FP32,
    WORST,
    Parsed,
    agreement,
    content,
    panels,
    run,
    session_value,
)

from pytest_llmperf.core import record_json
from pytest_llmperf.core.advice import dominates
from pytest_llmperf.core.effective import Effective, TensorGroup
from pytest_llmperf.core.record import ClaimRecord
from pytest_llmperf.report.html import (
    build,
    effect,
    groups,
    history,
    latency,
    listing,
    overview,
    sides,
)
from pytest_llmperf.report.html.content import History, Level, Step, Unmeasured

# What stands in it


def test_a_failed_claim_the_fastest_strategy_and_its_ratio_stand_at_the_top():
    """The panels have the claim with its test, and the fastest of those whose rule holds.

    That one stands there with its ratio to the reference.
    """
    claim = ClaimRecord(
        text="throughput of bf16 is 0.9x", outcome="FAIL", margin=-0.1, detail="on this machine"
    )
    wild = run("nf4", 30.0, 1e8, agreement=agreement(ok=False, top1=0.5))
    bf16 = run("bf16", 15.0, 2.5e8, claims=(claim,), outcome="FAIL", agreement=agreement())
    failed, fastest, _ = panels(content(run("fp32", 10.0, 5e8), bf16, wild))[:3]
    assert [(item.title, item.text) for item in failed.items] == [(wild.test, claim.text)]
    (best,) = fastest.items
    assert best.text == "bf16: 15.0 tok/s ±1.0 %"
    assert "1.50x of fp32" in best.more
    assert "faster, but without an agreement rule that holds: nf4" in best.more
    assert "top-1 99.0 %" in best.more


def test_without_an_agreement_the_fastest_is_said_to_be_unproven():
    """Speed alone is no acceptable agreement; the reference itself always is."""
    bf16 = run("bf16", 15.0, 1e8)
    unproven = panels(content(bf16, run("nf4", 20.0, 1e8)))[1].items[0]
    assert "agreement was not measured" in unproven.more
    reference = panels(content(run("fp32", 9.0, 1e8), bf16))[1].items[0]
    assert reference.text.startswith("fp32")


def test_a_ratio_of_runs_in_turn_is_of_their_pairs():
    """Paired records give the paired interval, others Welch's.

    Both are 1.5 here, the paired one narrower.
    """
    apart = [record("a", **FP32), record("b", **BF16)]
    in_turn = [record("a", paired_with="p", **FP32), record("b", paired_with="p", **BF16)]
    (wide_group,), (narrow_group,) = groups.group_views(apart), groups.group_views(in_turn)
    # The fastest first, which is bf16.
    wide, narrow = wide_group.standings[0].ratio, narrow_group.standings[0].ratio
    assert (wide.paired, narrow.paired) == (False, True)
    assert wide.ratio == pytest.approx(1.5, rel=0.001) == narrow.ratio
    assert narrow.low > wide.low
    assert narrow.high < wide.high


@given(st.lists(st.tuples(st.floats(1, 100), st.floats(1e6, 1e9)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats_in_both(points):
    """Against the definition, by every pair."""
    standings = [
        groups.Standing(run=record(str(n)), name=str(n), speed=speed, memory_bytes=n_bytes)
        for n, (speed, n_bytes) in enumerate(points)
    ]
    expected = {
        str(n)
        for n, (x, y) in enumerate(points)
        if not any(a >= x and b <= y and (a, b) != (x, y) for a, b in points)
    }
    assert groups.front(standings, "memory") == expected


def test_a_strategy_that_was_not_in_effect_is_named():
    """A record whose description breaks a promise of its strategy, and a test that ended for it."""
    floats = TensorGroup(
        kind="parameter", dtype="float32", device="cpu", tensors=1, elements=4, bytes=16
    )
    effective = Effective(
        engine="transformers",
        model_class="M",
        tensors=(floats,),
        linears=(),
        compute_dtype="float32",
        autocast_dtype=None,
        checkpoint_dtype=None,
        attention="sdpa",
        cache="dynamic",
        compile_mode=None,
        compiled_graphs=0,
        decode_loop="generate",
        padding_side="left",
        device="cpu",
    )
    ended = Unmeasured(
        test="t::int8",
        outcome="ERROR",
        kind="NotInEffect",
        reason="strategy 'int8' is not in effect: 0 of 128",
    )
    panel = panels(content(record("a", strategy="bf16", effective=effective), unmeasured=(ended,)))[
        1
    ]
    assert next(item.text for item in panel.items) == "strategy 'int8' is not in effect: 0 of 128"
    assert any("float32" in item.text for item in panel.items[1:])
    assert effect.broken(record("b", strategy="fp32", effective=effective)) == []


def test_what_could_not_be_measured_did_not_fail():
    """The head of the first answer counts both, apart."""
    invalid = Unmeasured(test="tests/test_x.py::test_y", outcome="INVALID", reason="foreign load")
    failed = panels(content(record("a", test="t1", outcome="FAIL"), unmeasured=(invalid,)))[0]
    assert failed.title == "1 test failed, 1 test could not be measured"


def test_counts_are_of_tests_by_what_wants_most_attention():
    """A test with a failed and a passed record counts once, as failed."""
    skipped = Unmeasured(test="t3", outcome="SKIPPED", reason="no GPU")
    records = (
        record("a", test="t1", outcome="PASS"),
        record("b", test="t1", outcome="FAIL"),
        record("c", test="t2", outcome="PASS"),
    )
    counts = overview.counts(content(*records, unmeasured=(skipped,)))
    assert [(count.outcome, count.n) for count in counts] == [
        ("FAIL", 1),
        ("SKIPPED", 1),
        ("PASS", 1),
    ]


def test_the_worst_prompts_stand_with_both_top_5():
    """Texts, each position with its KL, and the table of the worst one.

    A KL that is not finite is said to be none.
    """
    disagreement = agreement(ok=False, worst=[WORST], reasons=["two prompts part early"])
    text = build(
        content(
            record(
                "a",
                workload={"type": "agreement"},
                agreement=disagreement,
                metrics=(metric("agreement.top1", 0.9, "1"),),
            )
        ),
    )
    page = Parsed(text)
    titles = [a["title"] for tag, a in page.elements if tag == "li" and "title" in a]
    assert titles == [
        "token 1: KL 0",
        "token 2: KL 0.4, another top-1, texts part here",
        "token 3: KL not finite",
    ]
    assert "Because no." in page.text
    assert "two prompts part early" in page.text
    assert re.search(r" so\s+9\.00\s+no\s+8\.00", re.sub(r" +", " ", page.text))


def test_a_record_without_the_prompts_texts_says_so():
    """Records of an earlier version kept the positions only."""
    old = agreement(worst=[{"prompt": 0, "position": 1, "kl": 0.1, "first_divergence": None}])
    text = build(content(record("a", workload={"type": "agreement"}, agreement=old, metrics=())))
    assert "not recorded: an older version made this record" in text


def test_pairs_of_both_kinds_of_comparison_are_shown():
    """`llm.compare` by its two records, --llmperf-against by what its record keeps."""
    summary = {
        "outcome": "FAIL",
        "limit": 0.03,
        "unit": "tok/s",
        "ratio": [0.9, 0.88, 0.92],
        "pairs": [[10.0, 9.0], [10.0, 9.0]],
    }
    against = record("c", extra={"against": {"base": "main", "metrics": {"throughput": summary}}})
    section = sides.section(
        [
            record("a", paired_with="p", **BF16),
            record("b", paired_with="p", created="2026-11-24", **FP32),
            against,
        ],
    )
    table = section.parts[0].blocks[0]
    assert [row.cells[3].text for row in table.rows] == ["0.900x", "1.50x"]
    assert [row.cells[4].text for row in table.rows] == ["2", "6"]
    figure = section.parts[2].blocks[0]
    assert figure.data["ratios"] == [1.5, 1.5, 1.5, 1.495, 1.5, 1.5051]


def test_a_ratio_of_too_few_pairs_has_no_interval():
    """A stored summary whose interval is not bounded is shown without one."""
    summary = {
        "outcome": "UNDECIDED",
        "limit": 0.03,
        "unit": "tok/s",
        "ratio": [0.9, 0.0, math.inf],
        "pairs": [[10.0, 9.0]],
    }
    measured = record("c", extra={"against": {"base": "main", "metrics": {"throughput": summary}}})
    stored = record_json.decode(record_json.encode(measured))
    for against in (measured, stored):
        (row,) = sides.section([against]).parts[0].blocks[0].rows
        assert (row.cells[3].text, row.cells[3].sub) == ("0.900x", "")


def test_a_history_shows_changes_acceptances_and_moves():
    """The figure has a step, who accepted, and in what the environment differs."""
    sessions = tuple(
        session_value(
            f"2026-11-{day:02}T00:00:00+00:00",
            value=10.0 if day < 5 else 8.0,
            environment_key="e" if day < 3 else "f",
        )
        for day in range(1, 9)
    )
    series = History(
        key="k",
        test="f.py::t",
        label="",
        workload="w",
        strategy="s",
        model="m",
        metric="throughput",
        unit="tok/s",
        sessions=sessions,
        steps=(Step(at=sessions[4].created, before=10.0, after=8.0, accepted=False),),
        levels=(Level(at=sessions[6].created, who="ann", why="on purpose"),),
        drift=-0.2,
    )
    places = {
        "e": {"device": "cpu", "torch_threads": 2},
        "f": {"device": "cpu", "torch_threads": 4},
    }
    comparable = ("device", "torch_threads")
    report = content(histories=(series,), places=places, comparable=comparable)
    figure = history.section(report).parts[1].blocks[0]
    assert figure.data["steps"] == [[4, 10.0, 8.0, False]]
    assert figure.data["levels"] == [[6, "accepted by ann: on purpose"]]
    assert figure.data["places"] == [[2, "torch_threads 2 → 4"]]
    assert figure.data["gaps"] == [86400] * 7
    ((test, change),) = history.changed([series])
    assert test == "f.py::t"
    assert change.replace("\u2212", "-") == (
        "s: throughput 10.0 tok/s → 8.00 tok/s (-20 %) on 2026-11-05; "
        "drifted by -20 % from its first level"
    )


@pytest.mark.parametrize(("bandwidth", "intensity"), [({}, 2.0), ({"bytes_per_s": 2e12}, 1.0)])
def test_ranks_and_ceilings_are_shown_where_they_were_recorded(bandwidth, intensity):
    """Memory of each rank as bars and a table; the roofline from the shares and the ceilings."""
    ranks = [
        {"weights": 4 * 10**9, "peak": 5 * 10**9},
        {"weights": 3 * 10**9, "peak": None, "reasons": {"peak": "no allocator"}},
    ]
    ceilings = {"copy_bytes_per_s": 1e12, "flop_per_s": 1e14, "dtype": "bfloat16"} | bandwidth
    metrics = (metric(), metric("mbu", 0.5, "1"), metric("mfu", 0.01, "1"))
    text = build(
        content(record("a", metrics=metrics, extra={"memory_ranks": ranks, "ceilings": ceilings}))
    )
    data = [
        json.loads(body) for a, body in Parsed(text).scripts if a.get("type") and "points" in body
    ]
    intensities = {figure["points"][0]["x"] for figure in data}
    assert intensities == {intensity}  # 0.01 x 1e14 FLOP/s over 0.5 x 1e12 B/s, or x 2e12
    assert "no allocator" in text
    assert "not recorded with these runs" in build(content(record("a", metrics=metrics)))


# Little to show


SKIPPED = Unmeasured(test="t", outcome="SKIPPED", reason="no GPU")
LITTLE = {
    "empty": (content(), "There are no runs: a test"),
    "skipped": (content(unmeasured=(SKIPPED,)), "No test was measured"),
    "failed": (
        content(record("a", outcome="FAIL")),
        "Every run in this report failed or is not valid.",
    ),
    "mixed": (
        content(record("a"), record("b", environment_key="g", environment=ELSEWHERE)),
        "Runs of 2 environments",
    ),
}


@pytest.mark.parametrize(("report", "sentence"), LITTLE.values(), ids=LITTLE)
def test_a_report_with_little_to_show_says_so(report, sentence):
    """No run, only skipped ones, only failed ones, several environments."""
    assert sentence in Parsed(build(report)).text


def test_one_good_run_needs_no_excuse():
    """The control of the sentences above."""
    text = Parsed(build(content(record("a", outcome="PASS")))).text
    excuses = (
        "There are no runs",
        "No test was measured",
        "Every run in this",
        "environments are in",
    )
    assert not any(excuse in text for excuse in excuses)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(RECORDS, max_size=4))
def test_any_records_make_a_page(records):
    """Whatever a store holds, the page is whole: one document, each of its data blocks JSON."""
    text = build(content(*records))
    page = Parsed(text.encode("utf-8").decode("utf-8"))
    assert [tag for tag, _ in page.elements].count("html") == 1
    for attributes, body in page.scripts:
        if attributes.get("type") == "application/json":
            json.loads(body)


def test_dominance_of_the_command_and_of_the_pictures_is_one_function():
    """The picture's front is that of `llmperf advise`."""
    assert groups.advice.dominates is dominates


def test_raw_samples_are_in_the_page_and_stop_at_their_limit():
    """Newest first; what has no room is counted."""
    many = [
        record(str(at), created=f"2026-11-{at:02}", samples={"throughput": tuple(range(90_000))})
        for at in range(1, 5)
    ]
    downloads, n_left_out = listing.samples(many)
    assert ([download["id"] for download in downloads], n_left_out) == (["4", "3"], 2)
    assert downloads[0]["units"] == {"throughput": "tok/s"}
    assert history_records.record("x").samples  # what the other tests draw from


def test_of_thousands_of_samples_an_even_share_is_drawn():
    """400 of 10,000 requests, with their numbers; medians in words are of all."""
    loaded = record("a", samples={"ttft": tuple(at / 1000 for at in range(1, 10_001))})
    figure = latency.parts(groups.group_views([loaded])[0])[0].blocks[0]
    (row,) = figure.data["rows"]
    assert (len(row["values"]), row["at"][:3]) == (400, [1, 26, 51])
    assert row["values"][1] == pytest.approx(0.026)
    assert "5.00 s" in figure.alt


def test_where_no_rule_holds_the_fastest_is_not_called_acceptable():
    """It is named with what is wrong with it; one without a rule is taken before."""
    bad = run("nf4", 30.0, 1e8, agreement=agreement(ok=False, top1=0.5))
    worse = run("fp4", 20.0, 1e8, agreement=agreement(ok=False, top1=0.4))
    (only,) = panels(content(bad, worse))[1].items
    assert "no agreement is acceptable" in only.more
    (unruled,) = panels(content(bad, run("int8", 20.0, 1e8)))[1].items
    assert unruled.text.startswith("int8")


def test_a_failure_outside_of_the_claims_is_said_once():
    """A test with two records that failed by a plain assert."""
    two = (record("a", test="t1", outcome="FAIL"), record("b", test="t1", outcome="FAIL"))
    (item,) = panels(content(*two))[0].items
    assert (item.title, "none of its claims did" in item.text) == ("t1", True)
