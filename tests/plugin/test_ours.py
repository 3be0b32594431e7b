"""A project's fixtures that have the names of ours stay its own."""

from __future__ import annotations

import pytest

OWN_FIXTURES = """
import pytest

@pytest.fixture
def llm():
    return "own model"

@pytest.fixture
def baseline():
    return 0.5

@pytest.fixture
def llm_factory():
    return str

@pytest.fixture(params=[4, 8])
def llm_int8(request):
    return request.param
"""

OWN_TESTS = """
import pytest

def test_llm(llm):
    assert llm == "own model"

def test_baseline(baseline, llm_factory):
    assert llm_factory(baseline) == "0.5"

def test_int8(llm_int8):
    assert llm_int8 in (4, 8)

class TestOwn:
    @pytest.fixture
    def llm_vllm(self, llm):
        return llm.upper()

    def test_class(self, llm_vllm):
        assert llm_vllm == "OWN MODEL"

@pytest.mark.parametrize("llm", ["gpt", "claude"])
def test_parametrized(llm):
    assert llm in ("gpt", "claude")
"""

UNITTEST = """
import unittest
import pytest

class TestOld(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def _model(self, llm):
        self.model = llm

    def test_model(self):
        assert self.model == "own model"
"""


@pytest.fixture
def own(pytester):
    """A project that never heard of us."""
    pytester.makeconftest(OWN_FIXTURES)
    pytester.makepyfile(test_own=OWN_TESTS, test_old=UNITTEST)


def test_nothing_breaks_by_being_installed(own, run_both):
    """All pass, as they do without the plugin, and not a word is ours."""
    result = run_both("-q", "--strict-markers", "--llmperf-strategy=fp32,bf16")
    result.assert_outcomes(passed=8)
    result.stdout.no_fnmatch_line("*llmperf*")


def test_our_options_leave_them_alone(own, run):
    """They are neither selected, nor skipped, nor planned, nor gated."""
    run("--llmperf-only").assert_outcomes(deselected=8)
    run("--llmperf-skip").assert_outcomes(passed=8)
    run("--llmperf-strict").assert_outcomes(passed=8)
    run("--llmperf-plan").stdout.no_fnmatch_line("*test_own*")


def test_a_fixture_that_asks_for_ours_is_ours(project, pytester, run, lines):
    """A project may override `llm` and go through it: without a marker it is told of the marker."""
    pytester.makeconftest("""
        import pytest

        @pytest.fixture
        def llm(llm):
            return llm
    """)
    project("def test_speed(llm): llm.run(WORK)")
    run("--llmperf-json=out.jsonl").assert_outcomes(passed=1)
    assert len(lines()) == 1
    pytester.makepyfile(test_it="def test_speed(llm): pass")
    result = run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E   UsageError: no model is named. *"])


def test_a_marked_test_with_a_fixture_of_its_own_loads_nothing(project, pytester, run):
    """Neither is the project's `llm` parametrised, nor a load planned for it."""
    pytester.makeconftest(OWN_FIXTURES)
    project("@pytest.mark.llmperf(strategies=['fp32', 'bf17'])\ndef test_own(llm): assert llm\n")
    run().assert_outcomes(passed=1)
