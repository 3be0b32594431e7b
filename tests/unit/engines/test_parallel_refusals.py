"""Parallel plans that cannot be loaded are refused beforehand, with what is possible."""

from __future__ import annotations

import json

import pytest
from msgspec import structs

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.capabilities import TRANSFORMERS
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.errors import UsageError
from pytest_llmperf.strategies import check_engine_can, parse


def check(strategy: str, model: str = "arch:llama-7b", device: str = "cuda") -> None:
    plan = parse(strategy).apply(LoadPlan(model=model_ref(model), device=device))
    check_engine_can(plan, TRANSFORMERS, "transformers")


@pytest.mark.parametrize(
    ("strategy", "model", "said"),
    [
        (
            "tp2",
            "smollm2-135m",
            r"tp2 does not divide 9 heads and 3 KV heads of 'smollm2-135m'. N that do: 3\.",
        ),
        (
            "tp3",
            "arch:llama-30b",
            r"tp3 does not divide 52 heads and 52 KV heads and 17920 columns .* N that do: 2, 4\.",
        ),
        ("own-tp16", "arch:falcon-40b", r"does not divide 8 KV heads .* N that do: 2, 4, 8\."),
        (
            "own-tp2",
            "arch:falcon-7b",
            r"own-tp2 does not divide 71 heads and 1 KV heads .* No N does; 'fsdpN' and 'own-ppN'",
        ),
        (
            "own-pp3",
            "arch:tiny-llama",
            "own-pp3 has more devices than .* layers: 2. Take at most own-pp2",
        ),
        (
            "tp2",
            "arch:tiny-falcon",
            "no tensor-parallel plan for arch:tiny-falcon, .* Take 'own-tp2', .* or 'fsdp2'",
        ),
        (
            "bf16+tp2",
            "arch:llama-7b",
            r"'arch:llama-7b' has none, and its 13\.5 GB are not written out .* Take 'own-tp2'",
        ),
        ("tp2+fsdp2", "arch:small-llama", "takes all the ranks .* Take 'own-tp2', which goes with"),
        ("tp2+own-pp2", "arch:small-llama", "takes all the ranks .* Take 'own-tp2'"),
        ("tp2+dp2", "arch:small-llama", "takes all the ranks .* Take 'own-tp2'"),
        (
            "tp2+nf4",
            "arch:llama-7b",
            r"quantization \(nf4\) works on whole layers, and tp2 leaves parts.* 'dpN' keeps whole",
        ),
        ("fsdp2+wanda:0.5", "arch:llama-7b", r"pruning \(wanda:0.5\) works on whole layers"),
        ("own-pp2+prompt-lookup", "arch:llama-7b", "assisted decoding works on whole layers"),
        ("tp2+kv-int8", "arch:llama-7b", "the int8 cache is not divided"),
        ("fsdp2+compile", "arch:llama-7b", "fsdp2 gathers or sends between layers in Python"),
        ("own-pp2+static-cache+compile", "arch:llama-7b", "own-pp2 gathers or sends"),
        (
            "own-pp2+bf16-mixed",
            "arch:llama-7b",
            "under autocast the dtype between the stages of own-pp2 is not fixed",
        ),
        ("offload-disk+compile", "arch:llama-7b", "a compiled graph does not follow"),
        ("offload-disk+int8", "arch:llama-7b", "quantization .int8. does not follow"),
        ("tp2", "tests.models:build", "a model of kind 'factory' is loaded whole"),
    ],
)
def test_a_plan_that_cannot_be_loaded_says_why_and_what_can(strategy, model, said):
    """The numbers, and the way out."""
    with pytest.raises(UsageError, match=said):
        check(strategy, model)


@pytest.mark.parametrize(
    ("strategy", "model"),
    [
        ("tp3", "smollm2-135m"),
        ("bf16+own-tp2", "arch:llama-30b"),
        ("bf16+own-tp2+static-cache+compile", "arch:llama-30b"),
        ("tp2+static-cache+compile", "arch:small-llama"),
        ("bf16+own-tp8", "arch:falcon-40b"),
        ("bf16+fsdp7", "arch:falcon-7b"),
        ("dp2+nf4", "arch:llama-7b"),
        ("own-tp2+own-pp2+dp2", "arch:llama-7b"),
        ("offload-cpu", "arch:llama-7b"),
        ("tp2", "org/unknown-model"),
    ],
)
def test_a_plan_that_can_be_loaded_is_taken(strategy, model):
    """The negative control of the refusals.

    What only the config of a hub model tells is told when it is loaded.
    """
    check(strategy, model)


def test_offloading_to_the_host_needs_another_device():
    """On a CPU the weights are there already."""
    with pytest.raises(
        UsageError, match=r"in the host's memory already\. Take 'offload-disk' here, or a GPU"
    ):
        check("offload-cpu", device="cpu")
    check("offload-disk", device="cpu")


def test_a_folders_own_config_decides(tmp_path):
    """Heads are read from config.json."""
    (tmp_path / "config.json").write_text(
        json.dumps({"num_attention_heads": 6, "num_hidden_layers": 2, "intermediate_size": 12})
    )
    with pytest.raises(
        UsageError, match=r"tp4 does not divide 6 heads and 6 KV heads .* N that do: 2, 3, 6"
    ):
        check("tp4", str(tmp_path))
    check("tp3", str(tmp_path))


def test_ranks_are_the_product_of_the_parts():
    """And stay what they were where no part is parallel."""
    plan = LoadPlan(model=model_ref("arch:llama-7b"))
    assert parse("dp2+own-tp2+own-pp3").apply(plan).ranks == 12
    assert parse("bf16").apply(structs.replace(plan, ranks=3)).ranks == 3
