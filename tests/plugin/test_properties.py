"""Properties that hold for any prompt.

A true one passes, a false one fails with the smallest prompt that breaks it.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.own_process

IMPORTS = """
from hypothesis import strategies as st
from pytest_llmperf.testing import for_any, prompts, token_ids
"""
OF_TEXTS = """
@pytest.mark.parametrize("llm", ["fp16"], indirect=True)
@for_any(prompt=prompts(), max_examples=100)
def test_first_token(llm, baseline, prompt):
    ours = llm.top_tokens(prompt)
    assert ours.first in baseline.top_tokens(ours.prompt_ids, k=5)
"""
OF_IDS = """
@pytest.mark.parametrize("llm", ["fp16"], indirect=True)
@for_any(data=st.data(), max_examples=500)
def test_first_token(llm, baseline, data):
    ids = data.draw(token_ids(llm))
    assert llm.top_tokens(ids).first in baseline.top_tokens(ids)
"""


def test_a_true_property_passes_plainly_and_under_xdist(project, run_both):
    """100 examples of two models, without a deadline or a health check in the way."""
    project(IMPORTS + OF_TEXTS)
    run_both().assert_outcomes(passed=1)


def test_a_false_property_shows_the_smallest_prompt_that_breaks_it(project, run):
    """Prompts with an 'e' lead the model astray: of all of them the shortest is shown."""
    project(IMPORTS + OF_TEXTS, script="fp16/astray=101")
    done = run("--hypothesis-seed=1")
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*assert TopToken(*", "*prompt='e',*"])


@pytest.mark.nightly
def test_a_false_property_of_token_ids_shows_the_one_id_that_breaks_it(project, run):
    """A prompt of that id alone."""
    project(IMPORTS + OF_IDS, script="vocab=50,fp16/astray=7")
    done = run("--hypothesis-seed=1")
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*Draw 1: (7,)*"])


@pytest.mark.nightly
def test_special_ids_are_never_drawn(project, run):
    """The scripted model's id 0 is one."""
    project(IMPORTS + OF_IDS, script="vocab=5,fp16/astray=0")
    run().assert_outcomes(passed=1)


def test_the_workers_stay_loaded_from_example_to_example(project, run):
    """One load of each model, whatever the number of examples.

    And a mark of pytest still works on the test.
    """
    project(
        IMPORTS
        + """
seen = set()

@pytest.mark.parametrize("llm", ["fp16"], indirect=True)
@for_any(prompt=prompts())
def test_loaded(llm, prompt):
    llm.top_tokens(prompt)
    seen.add(id(llm.load()))

def test_once():
    assert len(seen) == 1
""",
    )
    run().assert_outcomes(passed=2)


@pytest.mark.nightly
def test_hypothesis_own_given_works_with_its_own_settings(project, run):
    """The strategies are ordinary ones."""
    project(
        IMPORTS
        + """
from hypothesis import HealthCheck, given, settings

FIXTURES = [HealthCheck.function_scoped_fixture]

@settings(suppress_health_check=FIXTURES, deadline=None, max_examples=5)
@given(prompt=prompts(), ids=token_ids(50))
def test_given(llm, prompt, ids):
    assert llm.top_tokens(prompt, 3).ids != llm.top_tokens(ids, 4).ids
""",
    )
    run().assert_outcomes(passed=1)


def test_a_worker_that_dies_is_an_error_at_once_and_no_counterexample(project, run):
    """The third question kills it: nothing is shrunk, nothing loaded again and again."""
    project(IMPORTS + OF_TEXTS, script="fp16/fault=die@tokens3")
    done = run()
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["*WorkerDied*"])
    done.stdout.no_fnmatch_line("*Falsifying*")
    done.stdout.no_fnmatch_line("*Failing test case*")


def test_what_cannot_be_asked_is_a_usage_error(project, run):
    """Before anything is drawn, or by the worker, which stays usable."""
    project(
        IMPORTS
        + """
from pytest_llmperf.errors import UsageError


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda llm: llm.top_tokens(""), "a text or a sequence of token ids is needed"),
        (lambda llm: llm.top_tokens([]), "a text or a sequence of token ids is needed"),
        (lambda llm: llm.top_tokens([1.5]), "a text or a sequence of token ids is needed"),
        (lambda llm: llm.top_tokens("a", k=0), r"top_tokens\\(k=0\\)"),
        (lambda llm: llm.top_tokens([5000]), "token id 5000 is not in the "
        "vocabulary: ids are 0 to 999"),
        (lambda llm: for_any(), r"for_any\\(\\) draws nothing"),
        (lambda llm: token_ids("smollm2-135m"), r"a model \\(inside of the test\\)"),
    ],
)
def test_it(llm, ask, message):
    with pytest.raises(UsageError, match=message):
        ask(llm)
    assert llm.top_tokens("a", k=2).tokens
""",
    )
    run().assert_outcomes(passed=7)


def test_hypothesis_is_imported_for_properties_alone():
    """The conformance checks work without it; what needs it says how to get it."""
    script = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "from pytest_llmperf.testing import check_engine\n"
        "try:\n    from pytest_llmperf.testing import prompts\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == (
        "pytest_llmperf.testing.prompts needs hypothesis: pip install 'pytest-llmperf[property]'.\n"
    )
