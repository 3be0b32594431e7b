"""The sentence that says which engine was fastest at the same work."""

from __future__ import annotations

from msgspec.structs import replace
from support.reporting import METRICS, Terminal, metric, record

from pytest_llmperf.engines.scripted.loaded import ScriptedEngine
from pytest_llmperf.report.fastest import fastest
from pytest_llmperf.report.terminal import write_summary
from pytest_llmperf.testing import scripted_plan


def scripted_effective():
    return ScriptedEngine().open(scripted_plan()).opened().effective


def run(
    number: int, engine: str, tok_per_s: float, *, samples=(), pair=None, batching="static", **more
):
    made = record(
        number,
        engine=engine,
        strategy="fp32",
        workload_text="decode b4 p32 n32",
        workload_key="w",
        **more,
    )
    effective = replace(scripted_effective(), batching=batching)
    metrics = (metric("throughput", tok_per_s, "tok/s"), *METRICS[1:])
    return replace(
        made,
        metrics=metrics,
        samples={"throughput": tuple(samples)},
        paired_with=pair,
        effective=effective,
    )


OURS = run(1, "vllm", 38.0, samples=(38.0, 38.2, 37.8, 38.0, 38.1), pair="p", batching="continuous")
THEIRS = run(2, "transformers", 19.0, samples=(19.0, 19.1, 18.9, 19.0, 19.0), pair="p")


def test_the_fastest_engine_is_named_with_its_paired_ratio():
    """With the interval of the pairs, whatever the order of the runs."""
    for records in ([OURS, THEIRS], [THEIRS, OURS]):
        (line,) = fastest(records)
        assert line.startswith("fastest at decode b4 p32 n32: vllm fp32 38.0 tok/s, 2.00x [")
        assert line.endswith("] transformers fp32 19.0 tok/s")


def test_runs_that_were_not_measured_in_turn_say_so():
    """Their ratio has no interval."""
    (line,) = fastest([OURS, replace(THEIRS, paired_with="other")])
    assert "2.00x (not in turn) transformers fp32" in line


def test_agreement_stands_beside_the_speed():
    """Fast and wrong is not fastest without a word."""
    (line,) = fastest([replace(OURS, agreement={"top1": {"value": 0.5}}), THEIRS])
    assert "vllm fp32 38.0 tok/s (top-1 50.0 %)" in line


def test_one_engine_or_other_work_is_no_comparison():
    """Nothing is said of them; two ways of batching in one engine are compared."""
    assert fastest([THEIRS, run(3, "transformers", 20.0)]) == []
    assert fastest([OURS, replace(THEIRS, workload_key="v")]) == []
    assert fastest([OURS, replace(THEIRS, metrics=())]) == []
    (line,) = fastest(
        [
            THEIRS,
            replace(
                run(3, "transformers", 30.0, batching="continuous"), strategy="fp32+continuous"
            ),
        ]
    )
    assert "transformers fp32+continuous 30.0 tok/s" in line


def test_the_summary_has_a_column_of_engines_where_there_are_several():
    """And the sentence below the table."""
    for records, there in (([OURS, THEIRS], True), ([THEIRS], False)):
        terminal = Terminal(120)
        write_summary(terminal, records, (), (), (), 0)
        assert ("engine" in terminal.text) is there
        assert ("fastest at" in terminal.text) is there
