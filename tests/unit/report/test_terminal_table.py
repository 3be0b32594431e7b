"""Columns, wrapping and what a terminal can show."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.report.table import (
    Column,
    display_width,
    lay_out,
    pad,
    shorten,
    showable,
    take,
    telling_width,
    wrap,
)

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40)


def _columns(*specs: tuple[str, tuple[str, ...], int | None, int | None]) -> list[Column]:
    return [Column(header=h, cells=c, rank=r, floor=f) for h, c, r, f in specs]


def test_the_least_important_column_goes_first_and_is_told():
    columns = _columns(
        ("test", ("test_a",), None, None),
        ("MBU", ("41 %",), 1, None),
        ("peak", ("612 MB",), 2, None),
    )
    assert [len(lay_out(columns, w).dropped) for w in (20, 19, 14, 13)] == [0, 1, 1, 2]
    assert [c.header for c in lay_out(columns, 19).dropped] == ["MBU"]


def test_names_are_shortened_before_a_column_is_dropped():
    columns = _columns(
        ("test", ("test_with_a_long_name[bf16]",), None, 10), ("peak", ("612 MB",), 2, None)
    )
    table = lay_out(columns, 20)
    assert table.dropped == ()
    assert table.rows == (("test_w…bf16]  ", "612 MB"),)


def test_brief_cells_are_taken_only_where_the_full_ones_have_no_room():
    column = Column(
        header="test", cells=("test_speed[bf16]",), brief=("speed",), rank=None, floor=5
    )
    assert lay_out([column], 16).rows == (("test_speed[bf16]",),)
    assert lay_out([column], 15).rows == (("speed",),)


@given(
    st.lists(
        st.tuples(TEXT, TEXT, st.integers(1, 9), st.booleans(), st.booleans()),
        min_size=1,
        max_size=8,
    ),
    st.integers(24, 200),
)
def test_a_table_is_never_wider_than_the_terminal(specs, width):
    columns = [
        Column(header=h, cells=(c, h), rank=r, right=right, floor=4 if f else None)
        for h, c, r, right, f in specs
    ]
    table = lay_out([Column(header="test", cells=("a", "b"), rank=None), *columns], width)
    for line in (table.header, *table.rows):
        assert display_width("".join(line)) <= width


@given(TEXT, st.integers(0, 50))
def test_a_shortened_text_fits_and_a_short_text_is_untouched(text, width):
    assert display_width(shorten(text, width)) <= width
    if display_width(text) <= width:
        assert shorten(text, width) == text


def test_names_that_differ_stay_different_as_far_as_there_is_room():
    cells = ("bf16+static-cache", "bf16+dynamic-cache", "bf16+static-cache")
    assert shorten(cells[0], 8) == shorten(cells[1], 8)
    assert telling_width(cells, 8, 40) == 12
    assert shorten(cells[0], 12) != shorten(cells[1], 12)
    assert telling_width(cells, 8, 9) == 9


@given(TEXT, st.integers(0, 50), st.booleans())
def test_padding_fills_exactly(text, width, right):
    assert display_width(pad(take(text, width), width, right=right)) == width


def test_wide_and_combining_characters_are_counted_as_the_terminal_shows_them():
    assert display_width("测试") == 4
    assert display_width("e\u0301") == 1
    assert take("测试", 3) == "测"


@given(st.text(max_size=200), st.integers(10, 60))
def test_wrapped_lines_fit_and_lose_no_word(text, width):
    text = showable(text, "utf-8")
    lines = wrap(text, width)
    assert all(display_width(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_a_number_stays_with_its_unit():
    lines = wrap("the peak was 612 MB and >= 14.2 tok/s", 20, indent="")
    assert lines == ["the peak was 612 MB", "and >= 14.2 tok/s"]
    assert wrap("the peak was 612 MB", 18, indent="") == ["the peak was", "612 MB"]


def test_signs_are_spelt_in_ascii_only_where_the_terminal_lacks_them():
    assert showable("14.2 ±1.1 % – é", "utf-8") == "14.2 ±1.1 % – é"  # noqa: RUF001
    assert showable("14.2 ±1.1 % – é", "ascii") == "14.2 +-1.1 % - \\xe9"  # noqa: RUF001
    assert showable("±", "no-such-encoding") == "+-"


@given(st.text(), st.sampled_from(["utf-8", "ascii", "latin-1", "cp1252"]))
def test_what_is_shown_is_one_line_the_terminal_can_encode_without_control_codes(text, encoding):
    shown = showable(text, encoding)
    assert shown.encode(encoding).decode(encoding) == shown
    assert shown.isprintable()
    assert showable(shown, encoding) == shown
