"""A strategy over several ranks: workers for each, one record, speed-up against one device."""

from __future__ import annotations

import pytest


def test_a_model_over_two_ranks_is_compared_with_one_device(project, run, lines):
    """Speed-up and efficiency are in the first side's record, each rank's memory too.

    The second side has neither.
    """
    project(
        """
def test_scaling(llm_tp2, baseline):
    ours, one = llm_tp2.compare(baseline, WORK)
    assert len(llm_tp2.effective.shards) == llm_tp2.effective.ranks == 2
    assert ours.memory.weights == one.memory.weights
    assert ours.memory.imbalance <= 1.01
    assert ours.speed_up >= 0.95
    assert 0.45 <= ours.efficiency.value <= 0.55
    assert len(ours.memory.ranks) == 2
""",
    )
    run("--llmperf-json=out.jsonl").assert_outcomes(passed=1)
    ours, one = sorted(lines(), key=lambda record: record["strategy"] != "tp2")
    assert (ours["strategy"], one["strategy"]) == ("tp2", "fp32")
    value, missing = ({m["name"]: m for m in record["metrics"]} for record in (ours, one))
    assert value["efficiency"]["value"] == pytest.approx(value["speed_up"]["value"] / 2)
    assert "not compared" in missing["speed_up"]["reason"]
    assert "does not tell" in value["collectives"]["reason"]
    assert "one device" in missing["collectives"]["reason"]
    assert [each["weights"] for each in ours["extra"]["memory_ranks"]] == [50_000_000, 50_000_000]


def test_another_dtype_is_no_speed_up(project, run):
    """What differs in more than the devices is compared, and not called scaling."""
    project(
        """
from pytest_llmperf.errors import NotMeasured

def test_scaling(llm_factory, baseline):
    ours, one = llm_factory("bf16+tp2").compare(baseline, WORK)
    with pytest.raises(NotMeasured, match="not compared with the same model on fewer devices"):
        assert ours.speed_up >= 1
""",
    )
    run().assert_outcomes(passed=1)
