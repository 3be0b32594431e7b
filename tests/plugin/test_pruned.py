"""A pruned model in a test session: what is said of its zeros.

One that is not as sparse as it claims is an ERROR.
"""

from __future__ import annotations

BODY = """
@pytest.mark.llmperf(strategy="fp32+wanda:0.5")
def test_pruned(llm):
    llm.run(WORK)
    assert llm.effective.sparsity == 0.5
"""


def test_the_summary_says_that_zeros_buy_nothing(project, run):
    """Once, however many runs there are; not of a model that is not pruned."""
    project(
        BODY
        + (
            "\ndef test_again(llm_factory):\n    llm_factory('fp32+wanda:0.5').run(WORK)\n"
            "\ndef test_plain(llm): llm.run(WORK)"
        ),
    )
    result = run()
    result.assert_outcomes(passed=3)
    assert result.stdout.str().count("wanda:0.5 saves no memory and no time") == 1


def test_what_pruning_did_is_stored_with_the_run(project, run, pytester):
    """Method, calibration and counts are in the record's description of what is in effect."""
    project(BODY)
    run("--llmperf-json=records.jsonl").assert_outcomes(passed=1)
    text = (pytester.path / "records.jsonl").read_text(encoding="utf-8")
    assert '"asked":"wanda:0.5"' in text.replace(" ", "")
    assert '"calibration":"none"' in text.replace(" ", "")


def test_a_model_that_claims_half_and_lacks_forty_per_cent_is_an_error(project, run):
    """With the figures; nothing is sampled, and no run is recorded."""
    project(BODY, script="lie=pruning:wanda:0.4")
    result = run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*NotInEffect*'wanda:0.5' is not in effect*(40.0%), asked for 50.0%*"]
    )
