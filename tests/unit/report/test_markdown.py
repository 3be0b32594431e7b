"""The Markdown comment, read by a parser of CommonMark: rows stay rows, names stay text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from markdown_it import MarkdownIt
from msgspec.structs import replace
from support.hostile import ANY, HOSTILE
from support.reporting import record

from pytest_llmperf.core.change import Change
from pytest_llmperf.core.record import Environment
from pytest_llmperf.report.markdown import MARK, MAX_LENGTH, code, comment, origin, table
from pytest_llmperf.report.table import shorten, showable

TABLE = {
    f"{part}_{end}"
    for part in ("table", "thead", "tbody", "tr", "th", "td")
    for end in ("open", "close")
}
PARSER = MarkdownIt("gfm-like", {"linkify": False}).enable("table")


def row(**changes):
    values = {
        "test": "tests/test_it.py::test_pays[bf16]",
        "label": "",
        "strategy": "bf16",
        "workload_text": "decode b1 p128 n128",
        "test_outcome": "FAIL",
        "metric": "throughput",
        "unit": "tok/s",
        "direction": "higher",
        "before": 14.2,
        "after": 13.1,
        "ratio": 0.923,
        "low": 0.901,
        "high": 0.945,
        "outcome": "FAIL",
        "limit": 0.03,
    }
    return Change(**{**values, **changes})


def cells(text):
    """Texts of the tables' cells, row by row, as a reader sees them.

    And every kind of token that there is.
    """
    tokens = PARSER.parse(text)
    rows, kinds = [], set()
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        if token.type == "inline":
            kinds |= {child.type for child in token.children}
            if tokens[tokens.index(token) - 1].type in ("td_open", "th_open"):
                rows[-1].append(seen(token.children))
        else:
            kinds.add(token.type)
    return rows, kinds


def seen(children):
    return "".join(child.content for child in children if child.type in ("text", "text_special"))


def html(text):
    """The tags that are left in the HTML."""
    return [
        child.content
        for token in PARSER.parse(text)
        if token.children
        for child in token.children
        if child.type == "html_inline"
    ]


def as_shown(text, length=160):
    return shorten(showable(text, "utf-8"), length)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_one_cell_and_nothing_but_text(name):
    """No row more, no cell more, no tag but our own; the text is what the name is, in one line."""
    rows, kinds = cells(comment([row(test=name, strategy=name, outcome="PASS", reason=name)]))
    assert [len(each) for each in rows] == [9, 9]
    assert rows[1][0].strip() == as_shown(name).strip()
    assert kinds.isdisjoint(
        {
            "link_open",
            "image",
            "em_open",
            "strong_open",
            "s_open",
            "code_inline",
            "code_block",
            "fence",
            "hr",
        },
    )
    assert [
        token.content.strip()
        for token in PARSER.parse(comment([row(test=name)]))
        if token.type == "html_block"
    ] == [MARK]
    assert set(html(comment([row(test=name, strategy=name)]))) <= {"<code>", "</code>"}


@settings(max_examples=200, deadline=None)
@given(ANY, ANY)
def test_any_two_names_are_two_cells(one, other):
    """For any text at all."""
    rows, kinds = cells("\n".join(table(("a", "b"), [(code(one), code(other))])))
    assert [[text.strip() for text in each] for each in rows[1:]] == [
        [as_shown(one).strip(), as_shown(other).strip()]
    ]
    assert kinds <= TABLE | {"text", "text_special", "html_inline"}


@pytest.mark.parametrize(
    "name", ["a|b", "two\nlines", "<b>bold</b>", "[link](https://evil.example)"]
)
def test_the_same_name_as_it_is_breaks_the_table(name):
    """Negative control: what the parser makes of a table that escapes nothing."""
    rows, kinds = cells("\n".join(table(("a", "b"), [(name, "x")])))
    plain = rows[1:] == [[name, "x"]] and kinds.isdisjoint({"html_inline", "link_open"})
    assert not plain


def test_the_worst_come_first_and_each_verdict_is_counted():
    """The counts are the first line that is read."""
    outcomes = ("PASS", "UNDECIDED", "FAIL")
    found = [row(outcome=outcome, test=f"test_{i}") for i, outcome in enumerate(outcomes)]
    found += [row(outcome="FAIL", test_outcome="PASS", test="test_3")]
    found += [row(outcome="PASS", test="test_2", metric="ttft.p50", reason="3 sessions before")]
    body = comment(found)
    rows, _ = cells(body)
    assert [each[-1] for each in rows[1:]] == [
        "FAIL",
        "worse, test: PASS",
        "UNDECIDED",
        "PASS",
        "PASS",
    ]
    assert body.startswith(f"{MARK}\n### llmperf\n\n1 FAIL, 1 worse, 1 UNDECIDED, 1 PASS\n")
    assert (
        "- <code>test&#95;2</code> <code>ttft.p50</code>: <code>3 sessions before</code>"
        in body.replace(
            "test_2",
            "test&#95;2",
        )
    )
    assert rows[1][4:8] == ["14.2 tok/s", "13.1 tok/s", "-7.7 %", "-9.9 % to -5.5 %"]


def test_what_was_not_compared_has_a_dash_and_its_reason():
    """Never a ratio of 1, and never an empty cell."""
    rows, _ = cells(
        comment(
            [
                row(
                    before=None,
                    ratio=None,
                    low=None,
                    high=None,
                    outcome="recorded",
                    reason="no earlier session",
                )
            ]
        )
    )
    assert rows[1][4] == rows[1][6] == rows[1][7] == "–"  # noqa: RUF001


def test_without_runs_the_page_says_so():
    """With the problems of tests that left none."""
    body = comment([], notes=["ERROR tests/test_it.py::test_x: NotInEffect"])
    assert "No run was recorded." in body
    assert "NotInEffect" in body


def test_a_body_never_exceeds_what_github_takes():
    """2,000 rows of long names: as many as fit, the worst first, and the rest is counted."""
    found = [
        row(test=f"test_{i}" + "é|" * 80, outcome="PASS" if i else "FAIL", reason="r|" * 200)
        for i in range(2000)
    ]
    body = comment(found)
    assert len(body) <= MAX_LENGTH
    rows, _ = cells(body)
    assert rows[1][-1] == "FAIL"
    assert f"{2000 - (len(rows) - 1)} more rows had no room" in body


def test_the_head_names_machine_and_commit():
    """Each once, as text; nothing where nothing was measured."""
    facts = {"device_name": "NVIDIA H200", "git_commit": "a" * 40, "git_branch": "w|e"}
    records = [
        replace(record(n), environment=Environment(facts=facts | {"git_dirty": n == 3}))
        for n in (1, 2, 3)
    ]
    text = comment([row()], origin=origin(records))
    head = next(line for line in text.splitlines() if line.startswith("Measured on"))
    (inline,) = [token for token in PARSER.parse(head) if token.type == "inline"]
    assert seen(inline.children) == (
        "Measured on NVIDIA H200, commit aaaaaaaaaaaa of w|e, "
        "aaaaaaaaaaaa of w|e with uncommitted changes."
    )
    assert origin([]) == ""
    assert "Measured on" not in comment([row()])


def test_a_row_says_the_change_in_per_cent():
    """With its interval; a dash for what is not known."""
    _, first = cells(comment([row()]))[0]
    assert first[6:8] == ["-7.7 %", "-9.9 % to -5.5 %"]
    _, unknown = cells(comment([row(ratio=None, low=None, high=None)]))[0]
    assert unknown[6:8] == ["\u2013", "\u2013"]
