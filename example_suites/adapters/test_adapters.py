"""The cost of an adapter and its gain: speed beside the base model, a task before and after."""

from pathlib import Path

import pytest

from pytest_llmperf import Decode, TaskSet

pytestmark = pytest.mark.llmperf(model="smollm2-135m", budget=15)

TASKS = TaskSet.from_jsonl(Path(__file__).parent / "data" / "test.jsonl")
WORK = Decode(batch=1, prompt_tokens=32, new_tokens=16)


def test_an_adapter_teaches_the_task(llm_factory, trained):
    """The base model names the right one of five departments little more often than chance."""
    base = llm_factory("fp32").accuracy(TASKS)
    tuned = llm_factory(f"fp32+lora:{trained('lora')}").accuracy(TASKS)
    assert tuned.accuracy >= 0.6
    assert tuned.accuracy >= 1.2 * base.accuracy


def test_fine_tuned_and_quantized_beats_quantized_alone(llm_factory, trained):
    """The same 4-bit weights with and without an adapter that was trained on them (QLoRA)."""
    alone = llm_factory("nf4").accuracy(TASKS)
    tuned = llm_factory(f"nf4+lora:{trained('qlora')}").accuracy(TASKS)
    assert tuned.accuracy >= 1.2 * alone.accuracy
    assert tuned.recovery(alone) >= 1.2


def test_an_adapter_trained_in_full_precision_keeps_its_task_on_quantized_weights(
    llm_factory, trained
):
    """Recovery of the fp32 adapter's accuracy when the weights below it are 4 bit."""
    full = llm_factory(f"fp32+lora:{trained('lora')}").accuracy(TASKS)
    quantized = llm_factory(f"nf4+lora:{trained('lora')}").accuracy(TASKS)
    assert quantized.recovery(full) >= 0.85


def test_training_under_fake_quantization_is_no_worse_than_quantizing_afterwards(
    llm_factory, trained
):
    """All weights are fine-tuned, then rounded to int4 in groups of 64.

    One model was trained plainly, the other for the rounding (QAT).
    """
    if llm_factory("fp32").device != "cuda":
        pytest.skip(
            "torchao's int4 product takes a second a token on a CPU: run with --llmperf-device cuda"
        )
    afterwards = llm_factory("bf16+int4wo", model=trained("full")).accuracy(TASKS)
    aware = llm_factory("bf16+int4wo", model=trained("qat")).accuracy(TASKS)
    assert aware.recovery(afterwards) >= 0.9


def test_merged_gives_what_unmerged_gives(llm_factory, trained):
    """In fp32 the two differ by rounding alone."""
    unmerged, merged = (llm_factory(f"fp32+lora:{trained('lora')}{how}") for how in ("", ":merged"))
    assert merged.agreement(unmerged).ok


def test_what_an_adapter_costs_beside_the_weights(llm_factory, trained):
    """The ratio is recorded: two small products a layer. Merged, it costs nothing."""
    unmerged = llm_factory(f"fp32+lora:{trained('lora')}")
    candidate, base = unmerged.compare(unmerged.using("base"), WORK)
    assert candidate.throughput >= 0.4 * base.throughput
    assert candidate.memory.weights <= 1.01 * base.memory.weights
