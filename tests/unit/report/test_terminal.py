"""The summary at the end of a session, as text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.reporting import METRICS, Terminal, metric, record

from pytest_llmperf.core.change import Change
from pytest_llmperf.core.record import ClaimRecord
from pytest_llmperf.report.run_names import short_names
from pytest_llmperf.report.terminal import write_summary

GOLDEN = Path(__file__).parents[1] / "golden"
STORED = "stored in sqlite:///.llmperf/history.db"
TEST = "tests/test_precision.py::test_reduced_precision_pays"

UNDECIDED = ClaimRecord(
    text="throughput of int8 is 1.08x fp32 [1.06, 1.11], claimed >= 1.10x  (26 pairs, interleaved)",
    outcome="UNDECIDED",
    margin=-0.018,
    detail="decode b1 p128 n128 on NVIDIA H200; smallest visible difference 1.5 %",
)
RECORDS = (
    record(1, paired_with="p", agreement={"top1": {"value": 0.987}}, outcome="PASS"),
    record(
        2,
        paired_with="p",
        strategy="fp32",
        agreement={"itself": True},
        metrics=(metric("throughput", 11.3, "tok/s", 11.1, 11.9), *METRICS[1:]),
        outcome="PASS",
    ),
    record(
        3,
        test=f"{TEST}[int8+static-cache]",
        strategy="int8+static-cache",
        outcome="UNDECIDED",
        claims=(UNDECIDED,),
    ),
    record(
        4,
        test="tests/test_speed.py::test_prefill",
        workload={"type": "prefill"},
        workload_text="prefill b1 p512",
        metrics=(
            metric("prefill_throughput", 18348, "tok/s", 18000, 18700),
            metric("memory.peak", None, "B", reason="this machine cannot tell"),
            *METRICS[1:4],
        ),
    ),
)
SKIPPED = [("tests/test_gpu.py::test_two_gpus[bf16+tp2]", "needs 2 GPUs, 0 are here")]
INVALID = [
    (
        "tests/test_falcon.py::test_int8",
        "strategy 'int8' is not in effect: 0 of 128 linear layers are 8-bit",
    )
]


def _summary(width=80, records=RECORDS, skipped=(), invalid=(), notes=(), verbosity=0, **terminal):
    tr = Terminal(width, **terminal)
    write_summary(tr, records, skipped, invalid, notes, verbosity)
    return tr


def _table(tr, n):
    return tr.lines[2 : 2 + n]


@pytest.mark.parametrize(
    ("width", "verbosity"), [(60, 0), (80, 0), (120, 0), (200, 0), (80, 1), (200, 1)]
)
def test_the_whole_summary_reads_as_agreed(width, verbosity):
    """The files in golden/ are what a person looked at.

    A change of wording changes them in the same commit.
    """
    tr = _summary(width, skipped=SKIPPED, invalid=INVALID, notes=[STORED], verbosity=verbosity)
    assert tr.text == (GOLDEN / f"summary-{width}{'-v' * verbosity}.txt").read_text(
        encoding="utf-8"
    )


def test_at_80_columns_a_run_shows_what_is_asserted_under_a_name_that_k_takes():
    """The ratio is claimed here: it stays, and what nobody asserts gives way."""
    tr = _summary(80)
    assert tr.lines[1].split() == ["test", "strategy", "tok/s", "ratio", "peak", "verdict"]
    assert re.fullmatch(
        r"test_reduced_precision_pays +bf16 +14\.2 ±1\.1 % +1\.26x +612 MB +PASS", tr.lines[2]
    )


def test_asserted_metrics_come_first_and_the_others_give_way():
    """Also those that have no column else, and those that only -v shows."""
    claims = tuple(
        ClaimRecord(text=f"{text}, claimed <= 1", outcome="PASS", margin=1.0, detail="")
        for text in ("tpot.p50 of bf16 is 70.4 ms [70, 71]", "latency.p95 of bf16 is 1.2 s")
    )
    late = metric("latency.p95", 1.2, "s")
    run = {"test": "test_it.py::test_x", "metrics": (*METRICS, late)}
    tr = _summary(70, records=(record(1, **run, claims=claims),))
    header = tr.lines[1].split()
    assert header[header.index("tok/s") + 1 :][:3] == ["TPOT", "p50", "latency.p95"]
    assert "MBU" not in header
    without = _summary(70, records=(record(1, **run),)).lines[1]
    assert "TPOT" not in without
    assert "latency.p95" not in without


def change(**fields):
    named = {name: getattr(CHANGED, name) for name in ("test", "label", "strategy")}
    base = {
        "workload_text": CHANGED.workload_text,
        "test_outcome": "FAIL",
        "metric": "throughput",
        "unit": "tok/s",
        "direction": "higher",
        "before": 80.0,
        "after": 69.6,
        "ratio": 0.87,
        "outcome": "FAIL",
        "limit": 0.03,
    }
    return Change(**(named | base | fields))


CHANGED = record(1, test="test_it.py::test_speed", outcome="FAIL")


def _gated(changes, width=100):
    tr = Terminal(width)
    write_summary(tr, (CHANGED,), (), (), (), 0, changes=changes)
    return tr.lines


def test_a_gated_run_shows_before_and_after():
    """The speed, unless another metric is worse; nothing where nothing was before."""
    assert "before → after (change)" in _gated([change()])[1]
    assert "80.0 → 69.6 tok/s (-13 %)" in _gated([change()])[2]
    ttft = {"metric": "ttft.p50", "unit": "s", "before": 0.08, "after": 1.2, "ratio": 15.0}
    passed = change(outcome="PASS", after=80.4, ratio=1.005)
    assert "80.0 → 80.4 tok/s (+0.50 %)" in _gated([passed, change(**ttft, outcome="PASS")])[2]
    assert "ttft.p50 0.0800 → 1.20 s (+1400 %)" in _gated([passed, change(**ttft)])[2]
    for others in ([], [change(before=None)], [change(strategy="other")]):
        assert "before" not in _gated(others)[1]


def test_without_a_terminal_the_table_is_whole(monkeypatch):
    """In the log of a CI job nobody makes the window wider."""
    monkeypatch.delenv("COLUMNS", raising=False)
    tr = _summary(80, tty=False)
    assert "workload" in tr.lines[1]
    assert "hidden" not in tr.text
    assert len(tr.lines[1]) > 80
    monkeypatch.setenv("COLUMNS", "80")
    assert "hidden (80 columns)" in _summary(80, tty=False).text


def test_what_explains_is_dim_and_what_matters_is_not():
    """The legend and what is hidden."""
    lines = _summary(80, colour="yes").lines
    dim = [line for line in lines if line.startswith("\x1b[2m")]
    assert [line[4:9] for line in dim if "hidden" in line or "tok/s:" in line] == ["tok/s", "hidde"]
    assert not any("UNDECIDED" in line for line in dim)


def test_quiet_is_one_line_worst_news_first():
    tr = _summary(200, skipped=SKIPPED, invalid=INVALID, notes=[STORED], verbosity=-1)
    assert tr.lines == [
        f"llmperf: 4 runs, 1 INVALID, 1 UNDECIDED, 1 skipped, 2 PASS, 1 recorded, {STORED}"
    ]


def test_a_test_is_counted_once():
    """By its run, or where there is none by itself."""
    ran = record(0, test="test_it.py::test_ran", outcome="ERROR")
    errors = [
        ("test_it.py::test_ran", "StoreError: no"),
        ("test_it.py::test_other", "UsageError: no"),
    ]
    tr = Terminal(200)
    write_summary(tr, (ran,), (), (), (), -1, errors=errors)
    assert tr.lines == ["llmperf: 1 run, 2 ERROR"]


def test_nothing_is_printed_when_there_is_nothing_to_say():
    assert _summary(records=()).text == ""


def test_tests_skipped_for_one_reason_are_counted_and_named_under_it():
    skipped = [
        ("test_a.py::test_one", "no GPU"),
        ("test_a.py::test_two", "no GPU"),
        ("test_b.py::test_it", "no model"),
    ]
    lines = _summary(120, records=(), skipped=skipped).lines
    assert lines[1:] == [
        "no run was recorded",
        "SKIPPED 2 tests: no GPU",
        "- test_a.py::test_one",
        "- test_a.py::test_two",
        "SKIPPED test_b.py::test_it: no model",
    ]


def test_without_runs_the_invalid_and_skipped_are_still_named():
    tr = _summary(120, records=(), skipped=SKIPPED, invalid=INVALID)
    assert tr.lines[1:] == [
        "no run was recorded",
        (
            "INVALID tests/test_falcon.py::test_int8: strategy 'int8' is not in effect: "
            "0 of 128 linear layers are 8-bit"
        ),
        "SKIPPED tests/test_gpu.py::test_two_gpus[bf16+tp2]: needs 2 GPUs, 0 are here",
    ]


def test_the_ratio_is_to_the_paired_run_and_to_no_other():
    others = (record(8, paired_with="q"), record(9, paired_with="q", strategy="fp32"), record(10))
    lines = _table(_summary(200, records=(*RECORDS[:2], *others)), 5)
    ratios = [line.split()[-2] for line in lines]
    assert ratios == ["1.26x", "ref", "1.00x", "ref", "–"]  # noqa: RUF001


def test_a_ratio_is_that_of_the_pairs_and_not_that_of_the_medians():
    """Both runs drift together: pair by pair the first is 1.1 times as fast."""
    theirs = (10.0, 12.0, 14.0, 16.0, 18.0, 20.0)
    ours = tuple(1.1 * x for x in theirs)
    runs = [
        record(
            1,
            paired_with="p",
            samples={"throughput": ours},
            metrics=(metric("throughput", 20.0, "tok/s"),),
        ),
        record(
            2,
            paired_with="p",
            samples={"throughput": theirs},
            metrics=(metric("throughput", 10.0, "tok/s"),),
        ),
    ]
    assert "  1.10x  " in _summary(200, records=runs).lines[2]
    assert "  1.10x [1.10, 1.10]  " in _summary(200, records=runs, verbosity=1).lines[2]
    unlike = [
        runs[0],
        record(2, paired_with="p", samples={"throughput": theirs[1:]}, metrics=runs[1].metrics),
    ]
    assert "  2.00x  " in _summary(200, records=unlike).lines[2]


def test_a_run_whose_partner_left_no_record_has_no_ratio():
    assert "ratio" not in _summary(200, records=[RECORDS[0]]).lines[1]


def test_an_interval_without_an_end_says_so():
    assert (
        "14.2 [14.0, inf]"
        in _summary(
            80,
            records=[record(1, metrics=(metric("throughput", 14.2, "tok/s", 14.0, float("inf")),))],
        ).text
    )


def test_a_ratio_of_what_was_not_measured_is_not_a_number():
    blind = record(
        2, paired_with="p", metrics=(metric("throughput", None, "tok/s", reason="no tokens came"),)
    )
    tr = _summary(200, records=(RECORDS[0], blind))
    assert tr.lines[2].split()[-2] == "n/m"
    assert "n/m tok/s in 1 of 2 runs: no tokens came" in tr.lines


def test_an_agreement_with_itself_is_said_to_be_one():
    lines = _table(_summary(120), 2)
    assert "98.7 %" in lines[0]
    assert "itself" in lines[1]


def test_each_reason_of_what_could_not_be_measured_is_given_once():
    runs = [record(i) for i in range(3)]
    tr = _summary(200, records=runs, verbosity=1)
    assert all("n/m" in line for line in _table(tr, 3))
    assert tr.text.count("this machine has no energy counter") == 1
    assert "n/m J/token: this machine has no energy counter (no RAPL, no NVML)" in tr.lines


def test_a_claim_is_listed_once_though_every_run_of_its_test_keeps_it():
    runs = [record(i, claims=(UNDECIDED,), outcome="UNDECIDED") for i in range(2)]
    tr = _summary(120, records=runs)
    at = tr.lines.index(f"UNDECIDED {TEST}[bf16]")
    assert (
        tr.lines[at + 1] == "  throughput of int8 is 1.08x fp32 [1.06, 1.11], claimed >= 1.10x "
        "(26 pairs, interleaved)"
    )
    assert (
        tr.lines[at + 2]
        == "  decode b1 p128 n128 on NVIDIA H200; smallest visible difference 1.5 %"
    )
    assert tr.text.count(UNDECIDED.detail) == 1


def test_a_claim_that_was_decided_is_not_listed():
    passed = ClaimRecord(text="throughput is fine", outcome="PASS", margin=1.0, detail="")
    assert (
        "throughput is fine"
        not in _summary(200, records=[record(1, claims=(passed,), outcome="PASS")]).text
    )


def test_runs_that_look_the_same_are_told_apart_by_their_label():
    runs = [record(i, label=f"batch {i}") for i in (1, 2)]
    lines = _table(_summary(200, records=runs), 2)
    assert [line.split("  ")[0] for line in lines] == [
        f"test_reduced_precision_pays[bf16] batch {i}" for i in (1, 2)
    ]


def test_tests_of_one_name_in_two_files_keep_what_tells_them_apart():
    assert short_names(["a/test_x.py::test_a", "a/test_y.py::test_b[x::y]"]) == [
        "test_a",
        "test_b[x::y]",
    ]
    assert short_names(["a/test_x.py::test_a", "a/test_y.py::test_a"]) == [
        "test_x.py::test_a",
        "test_y.py::test_a",
    ]
    assert short_names(["a/test_x.py::test_a", "b/test_x.py::test_a"]) == [
        "a/test_x.py::test_a",
        "b/test_x.py::test_a",
    ]


@pytest.mark.parametrize(
    ("outcome", "shown", "code"),
    [
        ("passed", "PASS", 32),
        ("FAIL", "FAIL", 31),
        ("UNDECIDED", "UNDECIDED", 33),
        ("invalid", "INVALID", 33),
    ],
)
def test_the_verdict_alone_is_coloured(outcome, shown, code):
    tr = _summary(120, records=[record(1, outcome=outcome)], colour="yes")
    assert re.fullmatch(rf"[^\x1b]+  \x1b\[{code}m{shown}\x1b\[0m", tr.lines[2])


def test_without_colour_there_is_no_escape_code():
    assert "\x1b" not in _summary(120, skipped=SKIPPED, invalid=INVALID).text


def test_a_terminal_without_our_signs_gets_ascii():
    tr = _summary(
        80,
        records=(*RECORDS, record(5, test="t.py::test_größe")),
        notes=["größe"],
        encoding="ascii",
    )
    assert "14.2 +-1.1 %" in tr.text
    assert "gr\\xf6\\xdfe" in tr.lines[-1]
    assert all(len(line) <= 80 for line in tr.lines)


def test_of_a_long_reason_the_first_line_is_shown():
    tr = _summary(
        120, records=(), invalid=[("t.py::test_a", "the worker died\nlog line 1\nlog line 2")]
    )
    assert tr.lines[-1] == "INVALID t.py::test_a: the worker died …"


def test_a_column_that_has_no_room_is_named_and_what_all_share_is_said():
    assert "workload (decode b1 p128 n128 in every run)" in " ".join(
        line.strip() for line in _summary(60, records=RECORDS[:3]).lines
    )


@pytest.mark.parametrize(("width", "name"), [(60, "test_speed"), (200, "test_speed[bf16]")])
def test_a_second_measurement_of_the_gate_says_so(width, name):
    """Two lines of one test would look like a mistake."""
    once = record(0, test="test_it.py::test_speed[bf16]")
    lines = _summary(width, records=(once, record(1, test=once.test, extra={"attempt": 2}))).lines
    assert [line.split("  ")[0] for line in lines[2:4]] == [name, f"{name}, again"]
