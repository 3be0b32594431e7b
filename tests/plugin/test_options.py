"""Options, their ini twins, fixtures and help."""

from __future__ import annotations

import re

import pytest

from pytest_llmperf.names import STRATEGY_FIXTURES
from pytest_llmperf.settings.options import OPTIONS
from pytest_llmperf.strategies import parse

BOTH = """
def test_speed(llm):
    llm.run(WORK)
"""


@pytest.fixture
def mixed(project, pytester):
    """One llmperf test and one plain test."""
    project(BOTH)
    pytester.makepyfile(test_plain="def test_plain(): pass")


def test_only_deselects_the_others(mixed, run_both):
    """--llmperf-only."""
    run_both("--llmperf-only").assert_outcomes(passed=1)


def test_skip_skips_ours_by_name(mixed, run_both):
    """--llmperf-skip; the summary names them."""
    result = run_both("--llmperf-skip")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*test_speed*--llmperf-skip*"])


def test_disable_runs_once_and_judges_nothing(project, run_both, lines, pytester):
    """A claim that would fail passes unjudged, and nothing is recorded."""
    project("""
def test_speed(llm):
    assert llm.run(WORK).tpot.p50 <= 1 * ms
""")
    run_both("--llmperf-disable", "--llmperf-json=out.jsonl").assert_outcomes(passed=1)
    assert not (pytester.path / "out.jsonl").exists()
    run_both().assert_outcomes(failed=1)


def test_plan_prints_and_runs_nothing(project, run, pytester):
    """--llmperf-plan shows the tests, what is wrong with them, and stops."""
    project(BOTH + "\n@pytest.mark.llmperf(strategy='bf17')\ndef test_bad(llm): pass\n")
    result = run("--llmperf-plan")
    result.stdout.fnmatch_lines(["*test_speed*"])
    result.stdout.fnmatch_lines(["*test_bad*bf17*"])
    assert not (pytester.path / ".llmperf").exists()


def test_strict_makes_a_skip_a_failure(project, run_both):
    """Selected but skipped is not green: an error, since nothing was measured."""
    project("@pytest.mark.skip(reason='no reason')\ndef test_speed(llm): pass")
    run_both().assert_outcomes(skipped=1)
    run_both("--llmperf-strict").assert_outcomes(errors=1)


def test_the_strategy_option_applies_where_a_test_names_none(project, run, lines):
    """Two strategies make two tests."""
    project(BOTH)
    run("--llmperf-strategy=fp32,bf16", "--llmperf-json=out.jsonl").assert_outcomes(passed=2)
    assert sorted(r["strategy"] for r in lines()) == ["bf16", "fp32"]


def test_the_marker_parametrises(project, run, lines):
    """strategies=[…] on the marker."""
    project("@pytest.mark.llmperf(strategies=['fp32', 'bf16+sdpa'])\n" + BOTH.strip())
    run("--llmperf-json=out.jsonl").assert_outcomes(passed=2)
    assert sorted(r["strategy"] for r in lines()) == ["bf16+sdpa", "fp32"]


def test_without_a_strategy_the_checkpoint_decides(project, run, lines):
    """'auto'."""
    project(BOTH)
    run("--llmperf-json=out.jsonl").assert_outcomes(passed=1)
    assert [r["strategy"] for r in lines()] == ["auto"]


@pytest.mark.parametrize(
    "option", [o for o in OPTIONS if not o.flag and not o.many], ids=lambda o: o.name
)
def test_each_option_has_an_ini_twin(project, pytester, run, option):
    """A value in the ini file is read: a wrong one is refused with the option's name or used."""
    from pytest_llmperf.settings.settings import read

    values = {o.name: [] if o.many else False if o.flag else o.default for o in OPTIONS}
    pytester.mkdir("some")
    number = option.default.replace(".", "").isdigit()
    texts = {
        "device": "cpu",
        "gate": "mbu:5%",
        "against-limits": "mbu:5%",
        "reference": "bf16",
        "strategy": "bf16",
        "cluster": "auto",
        "processes": "7",
        "record": "7",
        "start-method": "spawn",
        "server": "http://127.0.0.1:9",
    }
    good = texts.get(
        option.name,
        "7" if number else str(pytester.path / "some") if option.path == "file" else "some",
    )
    config = pytester.parseconfig("-o", f"{option.ini_name}={good}")
    from pytest_llmperf.plugin.options import option_value

    values[option.name] = option_value(config, option)
    assert values[option.name] == good
    assert read(lambda o: values[o.name], pytester.path)


def test_named_fixtures_are_the_registered_strategies(project, run, lines):
    """Each named fixture gives its strategy, or its test the error of an engine that refuses it."""
    project(
        "\n".join(
            f"def test_{name}({name}): {name}.run(Decode(batch=2, prompt_tokens=8))"
            for name in STRATEGY_FIXTURES
        )
    )
    result = run("--llmperf-json=out.jsonl")
    refused = re.findall(
        r"E .*strategy part '(\S+)' cannot be honoured by engine 'scripted'", result.stdout.str()
    )
    result.assert_outcomes(passed=len(STRATEGY_FIXTURES) - len(refused), errors=len(refused))
    gave = [parse(each["strategy"]).canonical for each in lines()] + [
        parse(text).canonical for text in refused
    ]
    assert sorted(gave) == sorted(parse(text).canonical for text in STRATEGY_FIXTURES.values())
    assert {"fp32", "fp16", "bf16"} <= set(gave) - set(refused)


def test_fixtures_and_markers_are_documented(project, run):
    """`pytest --fixtures` and `pytest --markers`."""
    project(BOTH)
    fixtures = run("--fixtures").stdout.str()
    for name in ("llm", "baseline", "llm_factory", "llmperf", *STRATEGY_FIXTURES):
        assert f"{name} --" in fixtures
    assert (
        "no docstring" not in fixtures.split("pytest_llmperf", 1)[1].split("fixtures defined", 1)[0]
    )
    assert "@pytest.mark.llmperf(model=None" in run("--markers").stdout.str()


def test_disabled_metrics_may_be_compared_in_any_way(project, run):
    """Nothing is judged, and nothing fails for it."""
    project("""
def test_speed(llm):
    found = llm.run(WORK)
    assert found.throughput == 1
    assert found.ttft.p95 != 2
    assert 3 * found.memory.peak / 2 < found.memory.weights
""")
    run("--llmperf-disable").assert_outcomes(passed=1)


def test_a_plan_that_cannot_be_written_is_a_usage_error(project, run, pytester):
    """Printed all the same."""
    project("def test_speed(llm): llm.run(WORK)")
    pytester.mkdir("taken")
    result = run("--llmperf-plan-json=taken")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["*1 test would run*"])
    result.stderr.fnmatch_lines(["ERROR: --llmperf-plan-json: *taken cannot be written: *"])


def test_a_cache_that_cannot_be_written_costs_time_and_no_speed(
    project, run, pytester, monkeypatch
):
    """The device's ceilings are measured in each session.

    An agreement, whose reference lies there, is an ERROR that says so.
    """
    agreeing = "def test_answers(llm, baseline): assert llm.agreement(baseline).top1 > 0.9"
    project(f"def test_speed(llm): assert llm.run(WORK).mbu > 0\n{agreeing}")
    monkeypatch.setenv("LLMPERF_CACHE", str(pytester.makefile(".txt", "no folder")))
    result = run()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["*UsageError: the cache cannot be written: *Set LLMPERF_CACHE to a folder that can."]
    )


def test_a_misspelt_reference_is_seen_before_anything_runs(project, run):
    """Also where no test uses the baseline: the message has the option and the nearest part."""
    project(BOTH)
    result = run("--llmperf-reference=pf32")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --llmperf-reference='pf32': *Did you mean 'fp32'?"])
