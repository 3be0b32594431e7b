"""The file of waivers: what it may say, what it may not, and when an entry ends."""

from __future__ import annotations

from datetime import date

import pytest
from support.history_records import record

from pytest_llmperf.core.record import Environment
from pytest_llmperf.errors import UsageError
from pytest_llmperf.gate.waivers import Waiver, is_test, read_waivers

TODAY = date(2026, 11, 23)
WHOLE = {
    "test": '"t.py::test_a"',
    "metric": '"throughput"',
    "owner": '"ana@example.org"',
    "reason": '"driver 580 bug"',
    "expires": "2026-12-31",
}


def written(folder, *entries, head=""):
    path = folder / "llmperf-waivers.toml"
    texts = [
        "[[waiver]]\n" + "".join(f"{name} = {value}\n" for name, value in entry.items())
        for entry in entries
    ]
    path.write_text(head + "\n".join(texts), encoding="utf-8")
    return path


def read(path, today=TODAY):
    return read_waivers(path, today=lambda: today)


def of(test="t.py::test_a", device="NVIDIA H200"):
    return record(
        "r", test=test, environment=Environment(facts={"device": "cuda", "device_name": device})
    )


def test_a_waiver_covers_its_metric_of_its_test_with_any_parameter(tmp_path):
    """And neither another metric nor another test whose name begins the same."""
    found = read(written(tmp_path, WHOLE))
    assert found.of(of(), "throughput").owner == "ana@example.org"
    assert found.of(of("t.py::test_a[bf16]"), "throughput") is not None
    assert found.of(of(), "ttft.p50") is None
    assert found.of(of("t.py::test_ab"), "throughput") is None


def test_a_waiver_with_parameters_covers_only_those(tmp_path):
    """test_a[fp16] is another test then."""
    found = read(written(tmp_path, WHOLE | {"test": '"t.py::test_a[bf16]"'}))
    assert found.of(of("t.py::test_a[bf16]"), "throughput") is not None
    assert found.of(of("t.py::test_a[fp16]"), "throughput") is None
    assert not is_test("t.py::test_a[bf16]", "t.py::test_a[bf16][x]")


@pytest.mark.parametrize(
    ("device", "covered"), [("NVIDIA H200", True), ("cuda", True), ("NVIDIA L4", False)]
)
def test_a_waiver_for_a_device_covers_only_that(tmp_path, device, covered):
    """By its name, or its kind."""
    found = read(written(tmp_path, WHOLE | {"device": f'"{device}"'}))
    assert (found.of(of(), "throughput") is not None) is covered


@pytest.mark.parametrize(
    ("today", "active"), [(date(2026, 12, 31), True), (date(2027, 1, 1), False)]
)
def test_a_waiver_holds_through_its_last_day(tmp_path, today, active):
    """The day after, it waives nothing and is named as expired."""
    found = read(written(tmp_path, WHOLE), today)
    assert (len(found.active), len(found.expired)) == ((1, 0) if active else (0, 1))
    assert (found.of(of(), "throughput") is not None) is active


def test_no_file_waives_nothing(tmp_path):
    """The usual name need not exist; another name was asked for."""
    assert read(tmp_path / "llmperf-waivers.toml").active == ()
    with pytest.raises(UsageError, match=r"waived\.toml: there is no such file"):
        read(tmp_path / "waived.toml")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"owner": None}, "waiver 1 (t.py::test_a): Object missing required field `owner`"),
        ({"reason": None}, "missing required field `reason`"),
        ({"expires": None}, "missing required field `expires`"),
        ({"owner": '" "'}, "'owner' is empty. A waiver needs somebody who answers for it"),
        ({"reason": '""'}, "'reason' is empty"),
        ({"expires": '"next year"'}, "expires"),
        ({"expries": "2026-12-31"}, "contains unknown field `expries`"),
        ({"metric": '"thruput"'}, "metric 'thruput' is not known. Did you mean 'throughput'?"),
        (
            {"metric": '"agreement.top1"'},
            "'agreement.top1' cannot be waived. Performance metrics can",
        ),
    ],
)
def test_an_entry_that_is_not_whole_is_an_error_that_names_it(tmp_path, change, said):
    """File, number, test and field; nothing is waived by half."""
    entry = {name: value for name, value in (WHOLE | change).items() if value is not None}
    with pytest.raises(UsageError) as caught:
        read(written(tmp_path, entry))
    assert said in str(caught.value)
    assert "llmperf-waivers.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("waivers = 1\n", "'waivers' is not known"),
        ("[[waiver\n", "cannot be read"),
        ("waiver = 3", "not a list of tables"),
    ],
)
def test_a_file_that_is_none_is_an_error(tmp_path, head, said):
    """A misspelt table waives nothing, silently, if it is let through."""
    with pytest.raises(UsageError, match=said):
        read(written(tmp_path, head=head))


def test_waivers_for_tests_that_do_not_exist_are_found_where_their_file_was_looked_into(tmp_path):
    """A partial run accuses nobody."""
    found = read(written(tmp_path, WHOLE, WHOLE | {"test": '"t.py::test_gone"'}))
    tests = ["t.py::test_a[1]"]
    assert [w.test for w in found.unknown(tests, lambda _file: True)] == ["t.py::test_gone"]
    assert found.unknown(tests, lambda _file: False) == []
    assert isinstance(found.active[0], Waiver)
