"""A prefill's throughput is the tok/s of its row, of prompt tokens."""

from __future__ import annotations


def test_a_prefill_is_claimed_by_what_its_row_shows(project, run, lines):
    """64 tokens in 50 ms are 1280 tok/s; of output tokens nothing is claimed by mistake."""
    project("""
def test_prompt(llm, llm_factory):
    run = llm.run(Prefill(batch=1, prompt_tokens=64))
    assert run.throughput >= 1200
    assert run.throughput.value == run.prefill_throughput.value
    assert run.output_throughput.reason.startswith("a prefill makes one output token")
    assert "throughput 1280 tok/s" in str(run)
    one, other = llm.compare(llm_factory("bf16"), Prefill(batch=1, prompt_tokens=64))
    assert one.throughput >= 0.9 * other.throughput
    decoded = llm.run(WORK)
    assert decoded.output_throughput.value == decoded.throughput.value < 100
""")
    result = run("--llmperf-json=out.jsonl")
    result.assert_outcomes(passed=1)
    prefill = next(row for row in lines() if row["workload"]["type"] == "prefill")
    values = {metric["name"]: metric["value"] for metric in prefill["metrics"]}
    assert round(values["throughput"]) == 20, "the record keeps its definition"
    assert round(values["prefill_throughput"]) == 1280
