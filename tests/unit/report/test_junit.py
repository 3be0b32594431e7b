"""Metrics as properties of JUnit XML, read by junitparser from the file that pytest writes."""

from __future__ import annotations

import pytest
from junitparser import JUnitXml, Properties, TestCase
from support.hostile import HOSTILE
from support.reporting import metric, record

from pytest_llmperf.report.junit import properties

PROJECT = """
import pytest
from pytest_llmperf import Decode

pytestmark = pytest.mark.llmperf(model="scripted:ttft=50ms,tpot=10ms", engine="scripted")
WORK = Decode(batch=1, prompt_tokens=8, new_tokens=11)

def test_one(llm, record_property):
    record_property("mine", "kept")
    llm.run(WORK)

def test_two(llm, baseline):
    assert llm.compare(baseline, WORK)[0].throughput >= 1e6

@pytest.mark.parametrize("name", {names!r})
def test_named(llm, name):
    llm.run(WORK)
"""


def test_a_metric_has_its_value_unit_and_interval():
    """Numbers in the unit; what was not measurable has a reason and no number."""
    found = dict(properties([record()]))
    assert found["llmperf.throughput"] == "14.2"
    assert found["llmperf.throughput.unit"] == "tok/s"
    assert (found["llmperf.throughput.low"], found["llmperf.throughput.high"]) == ("14.05", "14.35")
    assert "llmperf.energy.per_token" not in found
    assert found["llmperf.energy.per_token.reason"].startswith("this machine has no energy counter")
    assert found["llmperf.strategy"] == "bf16"


def test_several_runs_are_numbered():
    """In their order."""
    found = dict(properties([record(1), record(2, strategy="fp32")]))
    assert (found["llmperf[1].strategy"], found["llmperf[2].strategy"]) == ("bf16", "fp32")
    assert properties([]) == []


def test_a_run_that_is_measured_again_keeps_its_name():
    """Else a dashboard loses the series in the very build that is red."""
    again = [record(n + 2, extra={"attempt": n + 1}) for n in (1, 2)]
    first = dict(properties([record(1)]))
    repeated = dict(properties([record(1), *again]))
    assert first.items() <= repeated.items()
    assert "llmperf.again[1].throughput" in repeated
    assert "llmperf.again[2].throughput" in repeated
    two = [record(1), record(2, strategy="fp32")]
    of_second = record(3, strategy="fp32", extra={"attempt": 2})
    repeated = dict(properties([*two, of_second]))
    assert dict(properties(two)).items() <= repeated.items()
    assert repeated["llmperf[2].again[1].strategy"] == "fp32"


def test_no_name_is_there_twice():
    """A metric called like a part of another one does not make a reader take the wrong value."""
    found = properties([record(metrics=(metric("mbu", 0.4, "1"), metric("mbu.unit", 3.0, "x")))])
    assert len({name for name, _ in found}) == len(found)


@pytest.fixture(params=["plain", pytest.param("xdist", marks=pytest.mark.nightly)])
def parsed(request, pytester, monkeypatch):
    """The file that pytest writes of PROJECT, read back: test name -> its case."""
    monkeypatch.setenv("LLMPERF_CACHE", str(pytester.path / "cache"))
    names = [name for name in HOSTILE if "\ud800" not in name and len(name) < 1000]
    pytester.makepyfile(test_it=PROJECT.replace("{names!r}", ascii(names)))
    pytester.makepyfile(test_plain="def test_plain(): pass")
    workers = ["-n", "2"] if request.param == "xdist" else []
    pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "--junitxml=junit.xml", "--llmperf-store=none", *workers
    )
    suites = JUnitXml.fromfile(str(pytester.path / "junit.xml"))
    return {case.name: case for suite in suites for case in suite}


def values(case: TestCase):
    return [(each.name, each.value) for found in case.iterchildren(Properties) for each in found]


def test_pytest_writes_them_and_a_reader_of_junit_finds_them(parsed):
    """Each once, with a test's own properties beside them; a plain test has none."""
    one = values(parsed["test_one"])
    assert ("mine", "kept") in one
    assert dict(one)["llmperf.throughput.unit"] == "tok/s"
    assert float(dict(one)["llmperf.throughput"]) == pytest.approx(100.0, rel=0.5)
    assert len({name for name, _ in one}) == len(one)
    two = dict(values(parsed["test_two"]))
    assert {two["llmperf[1].strategy"], two["llmperf[2].strategy"]} == {"auto", "fp32"}
    assert values(parsed["test_plain"]) == []
    named = [case for name, case in parsed.items() if name.startswith("test_named")]
    assert len(named) >= 15
    assert all(dict(values(case))["llmperf.outcome"] == "RECORDED" for case in named)
