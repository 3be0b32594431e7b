"""Pruning parts: their text, their promises, and the plans that are refused before loading."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from pytest_llmperf.core.effective import Effective, Pruned
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.capabilities import TRANSFORMERS
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.engines.refusals.pruning import refusal
from pytest_llmperf.errors import NotInEffect, UsageError
from pytest_llmperf.strategies import TABLE, check_engine_can, parse, require_in_effect
from pytest_llmperf.strategies.pruned import METHODS, TOLERANCE, parse_pruning

PLAN = LoadPlan(model=model_ref("arch:tiny-llama"))


def pruned(zeros: int = 50_000, **other) -> Pruned:
    """14 linear layers of 100 000 weights in all, every one as sparse as all together."""
    share = zeros / 100_000
    facts = {
        "asked": "wanda:0.5",
        "layers": 14,
        "weights_before": 100_000,
        "weights": 100_000,
        "zeros": zeros,
    }
    places = {
        "lowest": share,
        "lowest_layer": "model.layers.0.mlp.up_proj",
        "highest": share,
        "highest_layer": "the same",
    }
    return Pruned(**facts | places | other)


def check(strategy: str, found: Pruned | None) -> None:
    """Hold `found` against the promises of `strategy`, those of its precision apart."""
    parsed = parse(strategy)
    promises = [p for p in parsed.promises(parsed.apply(PLAN)) if p.part not in TABLE]
    assert promises
    require_in_effect(effective(found), promises, "loaded")


def effective(found: Pruned | None) -> Effective:
    return Effective(
        engine="transformers",
        model_class="LlamaForCausalLM",
        tensors=(),
        linears=(),
        compute_dtype="float32",
        autocast_dtype=None,
        checkpoint_dtype="float32",
        attention="sdpa",
        cache="",
        compile_mode=None,
        compiled_graphs=0,
        decode_loop="",
        padding_side="left",
        device="cpu",
        pruned=found,
    )


@given(st.sampled_from(sorted(METHODS)), st.integers(1, 999))
def test_a_share_means_the_same_however_it_is_written(method, thousandths):
    """Further digits and the zero before the point do not matter; its text parses to itself."""
    asked = parse_pruning(f"{method}:{thousandths / 1000}")
    assert asked == parse_pruning(f"{method}:.{thousandths:03d}00") == parse_pruning(str(asked))
    assert asked.sparsity == thousandths / 1000
    assert parse(f"{method}:{thousandths / 1000}").apply(PLAN).pruning == str(asked)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_a_pattern_is_half_of_the_weights(method):
    """2:4 keeps two of four."""
    asked = parse_pruning(f"{method}:2:4")
    assert (asked.sparsity, asked.pattern, str(asked)) == (0.5, (2, 4), f"{method}:2:4")


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("wanda", ["'wanda' needs an argument", "'wanda:0.5'"]),
        ("wanda:half", ["sparsity 'half' is not understood", "a share like 0.5, or 2:4"]),
        ("wanda:", ["sparsity '' is not understood"]),
        ("wanda:-0.5", ["sparsity '-0.5' is not understood"]),
        ("wanda:nan", ["sparsity 'nan' is not understood"]),
        ("wanda:1e-1", ["sparsity '1e-1' is not understood"]),
        ("wanda:0", ["sparsity 0 is not between 0 and 1"]),
        ("wanda:1.0", ["sparsity 1.0 is not between 0 and 1"]),
        ("wanda:50", ["sparsity 50 is not between 0 and 1", "Did you mean 'wanda:0.5'?"]),
        ("wanda:4:8", ["sparsity '4:8' is not understood", "2:4"]),
        ("structured:2:4", ["sparsity '2:4' is not understood", "Write a share like 0.5: "]),
        ("wanda:0.5+magnitude:0.3", ["both set pruning"]),
    ],
)
def test_a_sparsity_that_cannot_be_used_says_why_and_what_could_be(text, fragments):
    """Out of range, unparsable, a pattern that no kernel has, and two prunings at once."""
    with pytest.raises(UsageError) as caught:
        parse(text)
    for fragment in fragments:
        assert fragment in str(caught.value)


@pytest.mark.parametrize("zeros", [50_000, 49_600, 50_400])
def test_a_sparsity_within_half_a_per_cent_is_in_effect(zeros):
    """Rounding to whole weights is no broken promise."""
    check("wanda:0.5", pruned(zeros))


def test_a_model_that_claims_half_and_lacks_forty_per_cent_is_refused_with_the_figures():
    """The negative control of the whole part."""
    with pytest.raises(NotInEffect) as caught:
        check("bf16+wanda:0.5", pruned(40_000))
    assert "strategy 'wanda:0.5' is not in effect" in str(caught.value)
    assert "40000 of 100000 weights of 14 linear layers are zero (40.0%), asked for 50.0%" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "reported no pruning .LlamaForCausalLM., asked for 50.0% sparsity"),
        (pruned(0, layers=0, weights=0, weights_before=0), "pruned 0 linear layers"),
        (pruned(60_000), "60000 of 100000 .* asked for 50.0%"),
        (
            pruned(lowest=0.4),
            "model.layers.0.mlp.up_proj lacks 40.0% of its weights, asked for 50.0%",
        ),
    ],
)
def test_a_sparsity_that_is_not_there_is_refused(found, message):
    """Nothing pruned, too much, and one dense layer among sparse ones."""
    with pytest.raises(NotInEffect, match=message):
        check("wanda:0.5", found)


@given(st.integers(0, 100_000))
def test_the_promise_breaks_exactly_outside_of_its_tolerance(zeros):
    """On both sides."""
    kept = abs(zeros / 100_000 - 0.5) <= TOLERANCE + 1e-12
    try:
        check("magnitude:0.5", pruned(zeros))
    except NotInEffect:
        assert not kept
    else:
        assert kept


def test_a_mask_that_is_not_two_of_four_is_refused_with_the_figures():
    """Half of the weights are zero, but not in the pattern."""
    check("wanda:2:4", pruned(pattern="2:4", groups=25_000))
    with pytest.raises(
        NotInEffect, match="7 of 25000 groups of 4 hold more than 2 weights, asked for 2:4"
    ):
        check("wanda:2:4", pruned(pattern="2:4", groups=25_000, broken_groups=7))
    with pytest.raises(NotInEffect, match="no 2:4 pattern was verified"):
        check("wanda:2:4", pruned())


def test_removed_weights_count_as_gone():
    """Of a structured pruning the share is of what was there before."""
    smaller = pruned(0, weights=75_000, stored="smaller", lowest=0.25, highest=0.25)
    assert smaller.sparsity == 0.25
    check("structured:0.25", smaller)
    with pytest.raises(
        NotInEffect,
        match=r"25000 of 100000 weights of 14 linear layers were removed .25.0%., asked for 50.0%",
    ):
        check("structured:0.5", smaller)


def write_config(folder, **config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)


def test_heads_are_removed_from_families_that_are_known(tmp_path):
    """Another family is refused before loading, with the known ones and what works instead."""
    other = write_config(tmp_path / "gpt2", model_type="gpt2")
    plan = parse("structured:0.25").apply(structs.replace(PLAN, model=model_ref(other)))
    with pytest.raises(
        UsageError, match=r"is of family 'gpt2'.*llama, falcon.*'wanda:0.25' works for any"
    ):
        check_engine_can(plan, TRANSFORMERS, "transformers")
    for name in (
        "arch:tiny-llama",
        "arch:falcon-40b",
        "smollm2-135m",
        write_config(tmp_path / "falcon", model_type="falcon"),
    ):
        check_engine_can(structs.replace(plan, model=model_ref(name)), TRANSFORMERS, "transformers")
    check_engine_can(
        structs.replace(plan, pruning="wanda:0.25", strategy="wanda:0.25"),
        TRANSFORMERS,
        "transformers",
    )


def test_packed_weights_are_not_pruned(tmp_path):
    """A checkpoint that is quantized already, named as the model or as a part."""
    packed = write_config(
        tmp_path / "q", model_type="llama", quantization_config={"quant_method": "gptq"}
    )
    plan = parse("wanda:0.5").apply(structs.replace(PLAN, model=model_ref(packed)))
    with pytest.raises(UsageError, match=r"holds packed weights, and wanda:0.5 needs plain ones"):
        check_engine_can(plan, TRANSFORMERS, "transformers")


def test_a_quantized_checkpoint_as_a_part_is_not_pruned():
    """Its layers are packed when the model is loaded."""
    plan = structs.replace(PLAN, strategy="wanda:0.5", pruning="wanda:0.5", quantization="gptq:/q")
    assert "needs plain ones" in (refusal(plan) or "")
    assert refusal(structs.replace(plan, quantization="nf4:double")) is None
    assert refusal(structs.replace(plan, quantization="gptq:/q", pruning=None)) is None


def test_a_model_that_is_not_whole_on_one_device_is_not_pruned():
    """The ranks are named."""
    plan = structs.replace(PLAN, pruning="wanda:0.5", ranks=2)
    assert "the model is spread over 2 ranks" in (refusal(plan) or "")
    assert refusal(structs.replace(plan, ranks=1)) is None


def test_a_merged_adapter_would_fill_the_zeros():
    """One that is not merged is added beside them."""
    plan = structs.replace(PLAN, pruning="wanda:0.5", adapters=("/a",))
    assert refusal(plan) is None
    assert "a merged adapter fills the zeros that wanda:0.5 makes" in (
        refusal(structs.replace(plan, merge_adapters=True)) or ""
    )


def test_an_adapter_does_not_fit_a_model_with_fewer_heads():
    """Its matrices were trained for the shapes that are gone."""
    plan = structs.replace(
        PLAN, strategy="structured:0.25", pruning="structured:0.25", adapters=("/a",)
    )
    with pytest.raises(
        UsageError, match="removes rows and columns that the adapter /a was trained for"
    ):
        check_engine_can(plan, TRANSFORMERS, "transformers")
