"""Tests that measure nothing, and strategies that would not be measured."""

from __future__ import annotations

OTHER = """
def test_other(llm):
    llm.run(WORK)
"""


def test_a_green_test_that_measured_nothing_is_named(project, run):
    """Also where nothing was to be measured; not a test that measured."""
    project("def test_idle(llm): pass\n" + OTHER)
    result = run()
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["measured nothing: test_it.py::test_idle. A test measures with *"])
    result = run("--llmperf-disable")
    result.stdout.fnmatch_lines(["--llmperf-disable: 2 tests ran, and nothing was measured or *"])
    project(OTHER)
    run().stdout.no_fnmatch_line("*measured nothing*")


def test_strategies_are_said_once(project, run):
    """The marker's would be dropped without a word."""
    both = (
        "@pytest.mark.llmperf(strategies=['fp32', 'bf16'])\n"
        "@pytest.mark.parametrize('llm', ['fp16'], indirect=True)\n"
        "def test_bad(llm): llm.run(WORK)\n"
    )
    project(both + OTHER)
    result = run()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["E   UsageError: parametrize('llm', …) and *keep one of them."])
    of_module = both.replace("@pytest.mark.llmperf(strategies=['fp32', 'bf16'])\n", "")
    project(of_module + "pytestmark = [pytestmark, pytest.mark.llmperf(strategies=['fp32'])]\n")
    run().assert_outcomes(passed=1)
