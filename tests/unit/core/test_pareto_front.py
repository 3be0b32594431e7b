"""Advice: the Pareto front of readings, the fastest that fits, and amounts as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.core import amounts
from pytest_llmperf.core.advice import AXES, Choice, Reading, advise, dominates
from pytest_llmperf.errors import UsageError

GB = 1e9


def choice(name, speed=None, memory=None, top1=None, **more):
    given = {"speed": speed, "memory": memory, "top1": top1, **more}
    return Choice(
        name=name,
        readings={axis: Reading(value=value) for axis, value in given.items() if value is not None},
    )


FP32 = choice("fp32", 10, 4 * GB, 1.0, ttft=0.2, perplexity=1.0)
BF16 = choice("bf16", 18, 2 * GB, 0.99, ttft=0.1, perplexity=1.002)
SLOW = choice("bf16-mixed", 8, 4.5 * GB, 0.99, ttft=0.3, perplexity=1.002)
INT8 = choice("int8", 12, 1.1 * GB, 0.97, ttft=0.15, perplexity=1.02)
NF4 = choice("nf4", 20, 0.7 * GB, 0.91, ttft=0.12, perplexity=1.1)
ALL = (FP32, BF16, SLOW, INT8, NF4)


def test_the_front_and_what_is_dominated_by_what():
    """Autocast is slower and larger than both bf16 and fp32, and agrees no better than either."""
    found = advise(ALL, {})
    assert found.front == ("nf4", "bf16", "int8", "fp32")
    assert [(d.name, d.by) for d in found.dominated] == [("bf16-mixed", ("bf16", "fp32"))]
    assert found.fastest == "nf4"
    assert found.axes == ("speed", "memory", "top1")


@pytest.mark.parametrize(
    ("limits", "fastest", "fits"),
    [
        ({"memory": 8 * GB, "top1": 0.98}, "bf16", ("bf16", "fp32", "bf16-mixed")),
        ({"memory": 1.5 * GB}, "nf4", ("nf4", "int8")),
        ({"memory": 1.5 * GB, "top1": 0.95}, "int8", ("int8",)),
        ({"memory": 1.5 * GB, "top1": 0.98}, None, ()),
        ({"perplexity": 1.01}, "bf16", ("bf16", "fp32", "bf16-mixed")),
        ({"ttft": 0.11}, "bf16", ("bf16",)),
        ({"top1": 0.99}, "bf16", ("bf16", "fp32", "bf16-mixed")),
    ],
)
def test_the_fastest_that_meets_every_limit(limits, fastest, fits):
    """A limit itself is met."""
    found = advise(ALL, limits)
    assert (found.fastest, found.fits) == (fastest, fits)


def test_what_lacks_a_reading_is_named_and_never_guessed():
    """It is neither on the front nor dominated, whatever else it has."""
    unmeasured = Choice(
        name="fp8",
        readings={"speed": Reading(value=99)},
        reasons={"memory": "the pid is not visible"},
    )
    found = advise((*ALL, unmeasured), {})
    assert found.front == advise(ALL, {}).front
    assert found.incomplete[0].name == "fp8"
    assert found.incomplete[0].lacks == {
        "memory": "the pid is not visible",
        "top1": "not in the history",
    }


def test_quality_that_nobody_measured_is_left_out_but_not_where_it_is_limited():
    """Random weights have none; a limit on it can then be met by nobody."""
    two = (choice("a", 10, 2 * GB), choice("b", 9, 3 * GB))
    assert advise(two, {}).left_out == ("top1",)
    assert advise(two, {}).front == ("a",)
    limited = advise(two, {"top1": 0.9})
    assert (limited.fastest, limited.left_out, len(limited.incomplete)) == (None, (), 2)


def test_a_limit_that_the_interval_crosses_is_met_but_not_for_certain():
    """The fastest for certain is then another."""
    near = Choice(
        name="near",
        readings={
            "speed": Reading(value=30),
            "memory": Reading(value=GB),
            "top1": Reading(value=0.981, low=0.97, high=0.99),
        },
    )
    found = advise((*ALL, near), {"top1": 0.98})
    assert (found.fastest, found.certain) == ("near", "bf16")


NUMBERS = st.integers(1, 4).map(float)
CHOICES = st.lists(
    st.fixed_dictionaries(
        {"speed": NUMBERS, "memory": NUMBERS, "top1": NUMBERS}, optional={"ttft": NUMBERS}
    ),
    max_size=9,
).map(lambda rows: [choice(f"s{i}", **row) for i, row in enumerate(rows)])


@given(
    CHOICES,
    st.dictionaries(st.sampled_from(["speed", "memory", "top1", "ttft"]), NUMBERS, max_size=3),
)
def test_nothing_on_the_front_is_dominated_and_all_others_are_by_a_member_of_it(choices, limits):
    """And the fastest that fits is on the front, whatever the limits: none that fits is faster."""
    found = advise(choices, limits)
    by_name = {c.name: c for c in choices}
    complete = [by_name[name] for name in (*found.front, *(d.name for d in found.dominated))]
    for name in found.front:
        assert not any(dominates(other, by_name[name], found.axes) for other in complete)
    for each in found.dominated:
        assert each.by
        assert set(each.by) <= set(found.front)
        assert all(dominates(by_name[other], by_name[each.name], found.axes) for other in each.by)
    named = [*found.front, *(d.name for d in found.dominated), *(i.name for i in found.incomplete)]
    assert sorted(named) == sorted(by_name)
    assert all(i.lacks for i in found.incomplete)
    if found.fits:
        assert found.fastest in found.front
        assert all(
            by_name[name].readings["speed"].value <= by_name[found.fastest].readings["speed"].value
            for name in found.fits
        )
        assert found.certain == found.fastest, (
            "readings without intervals are as certain as they are"
        )


@given(CHOICES.filter(bool), st.randoms())
def test_the_order_of_the_choices_changes_nothing(choices, draw):
    """Nor does a copy of the advice's losers."""
    shuffled = draw.sample(choices, len(choices))
    one, other = advise(choices, {}), advise(shuffled, {})
    assert (one.front, one.fastest, set(one.dominated)) == (
        other.front,
        other.fastest,
        set(other.dominated),
    )


def test_what_cannot_be_compared_is_an_error():
    with pytest.raises(UsageError, match=r"'speeed' is not known\. Limits: speed"):
        advise(ALL, {"speeed": 3})
    with pytest.raises(UsageError, match=r"'fp32' is given twice"):
        advise((FP32, FP32), {})
    assert all(AXES[name].name == name for name in AXES)


# Amounts


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (amounts.size_bytes, "8GB", 8e9),
        (amounts.size_bytes, "8 GiB", 8 * 2**30),
        (amounts.size_bytes, "1.5gb", 1.5e9),
        (amounts.duration_s, "200ms", 0.2),
        (amounts.duration_s, "1.5 s", 1.5),
        (amounts.share, "0.98", 0.98),
        (amounts.share, "98%", 0.98),
        (amounts.ratio, "+1%", 1.01),
        (amounts.ratio, "-2 %", 0.98),
        (amounts.ratio, "1.01x", 1.01),
    ],
)
def test_amounts_are_read_with_their_units(read, text, value):
    assert read(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (
            amounts.size_bytes,
            "8",
            r"'8' is not a size above 0 with a unit, such as 8GB\. Units: B, KB",
        ),
        (amounts.size_bytes, "8G", "not a size above 0 with a unit"),
        (amounts.size_bytes, "0GB", "not a size above 0"),
        (amounts.size_bytes, "much", "'much' is not a size"),
        (amounts.duration_s, "200", "not a time above 0 with a unit, such as 200ms"),
        (amounts.share, "98", "not a share between 0 and 1, such as 0.98 or 98%"),
        (amounts.share, "-0.1", "not a share"),
        (amounts.share, "nan", "not a share"),
        (amounts.ratio, "1%", r"not a ratio, such as \+1%"),
        (amounts.ratio, "-100%", "not a ratio above 0"),
        (amounts.ratio, "", "not a ratio"),
    ],
)
def test_an_amount_that_cannot_be_read_says_how_to_write_it(read, text, message):
    with pytest.raises(UsageError, match=message):
        read(text)


@given(st.floats(1e-3, 1e3), st.sampled_from(["KB", "MB", "GB", "TB", "KiB", "MiB"]))
def test_a_size_scales_with_its_number(number, unit):
    assert amounts.size_bytes(f"{number!r}{unit}") == pytest.approx(
        number * amounts.size_bytes(f"1{unit}")
    )
