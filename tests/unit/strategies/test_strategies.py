"""Strategies: the grammar, conflicts, what parts set and what they promise."""

from __future__ import annotations

import re
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.engines.base import Capabilities
from pytest_llmperf.engines.capabilities import TRANSFORMERS
from pytest_llmperf.errors import UsageError
from pytest_llmperf.names import STRATEGY_FIXTURES, STRATEGY_MEANINGS
from pytest_llmperf.strategies import (
    KINDS,
    TABLE,
    Strategy,
    check_engine_can,
    parse,
)

PLAN = LoadPlan(model=ModelRef(name="m", kind="arch", location="tiny-llama"))
COMPILE_TEXTS = ("compile", "compile:reduce-overhead", "compile:max-autotune")


def texts_of(kind: str) -> list[str]:
    return (
        list(COMPILE_TEXTS)
        if kind == "compile"
        else [text_of(p) for p in TABLE.values() if p.kind == kind]
    )


def text_of(part) -> str:
    """The part alone, or with its example where it needs an argument."""
    if part.argument is None or part.fields:
        return part.name
    return f"{part.name}{'' if part.numbered else ':'}{part.example}"


@st.composite
def part_lists(draw) -> list[str]:
    """At most one part of each kind, at least one altogether, in any order."""
    chosen = [draw(st.none() | st.sampled_from(texts_of(kind))) for kind in KINDS if texts_of(kind)]
    parts = [part for part in chosen if part] or ["bf16"]
    return draw(st.permutations(parts))


@given(part_lists(), st.randoms(use_true_random=False))
def test_the_order_of_parts_does_not_matter(parts, random):
    """Any order gives the same canonical text and the same load plan."""
    shuffled = list(parts)
    random.shuffle(shuffled)
    assert parse("+".join(parts)).canonical == parse("+".join(shuffled)).canonical
    assert parse(parts).apply(PLAN) == parse(shuffled).apply(PLAN)


@given(part_lists())
def test_the_canonical_text_parses_to_the_same_strategy(parts):
    """Canonical text is a fixed point."""
    strategy = parse(parts)
    assert parse(strategy.canonical) == strategy
    assert parse(strategy.canonical).canonical == strategy.canonical
    assert hash(parse(strategy.canonical)) == hash(strategy)


@given(part_lists())
def test_a_strategy_sets_the_fields_of_its_parts_and_no_others(parts):
    """Fields that no part sets keep the plan's values."""
    strategy = parse(parts)
    plan = strategy.apply(PLAN)
    named = {field for chosen in strategy.parts for field in chosen.fields} | {"strategy", "ranks"}
    assert plan.ranks == plan.tp * plan.fsdp * plan.pp * plan.dp
    for field in structs.fields(LoadPlan):
        if field.name not in named:
            assert getattr(plan, field.name) == getattr(PLAN, field.name)
    for chosen in strategy.parts:
        assert all(getattr(plan, name) == value for name, value in chosen.fields.items())


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("compile+static-cache+bf16", "bf16+static-cache+compile"),
        (" bf16 + eager ", "bf16+eager"),
        ("auto", "auto"),
        ("auto+static-cache", "static-cache"),
        ("compile:default", "compile"),
        ("compile:max-autotune+fp16", "fp16+compile:max-autotune"),
    ],
)
def test_canonical_texts(text, canonical):
    """Kinds come in one order; what changes nothing is left out."""
    assert parse(text).canonical == canonical


def test_typed_values_mean_the_same_as_text():
    """A Strategy, a list of texts and a list of parts are all taken."""
    expected = parse("bf16+static-cache")
    assert isinstance(expected, Strategy)
    assert parse(expected) is expected
    assert parse(["static-cache", "bf16"]) == expected
    assert parse([TABLE["bf16"], TABLE["static-cache"]]) == expected
    assert parse(list(expected.parts)) == expected


def test_the_full_precisions_set_weights_and_the_mixed_ones_autocast():
    """fp16 stores fp16; fp16-mixed stores fp32 under autocast."""
    assert parse("fp16").apply(PLAN).weights_dtype == "float16"
    mixed = parse("fp16-mixed").apply(PLAN)
    assert (mixed.weights_dtype, mixed.autocast_dtype) == ("float32", "float16")
    assert parse("flash").apply(PLAN).attention == "flash_attention_2"
    assert parse("static-cache+compile:reduce-overhead").apply(PLAN).compile == "reduce-overhead"


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        (
            "zzzz",
            ["'zzzz' is not known", "precision: auto, fp32, fp16", "llmperf doctor"],
        ),
        ("BF16", ["'BF16' is not known", "Did you mean 'bf16'?"]),
        (
            "bf16+statc-cache",
            ["'statc-cache' in 'bf16+statc-cache'", "Did you mean 'static-cache'?"],
        ),
        ("int8+nf4", ["parts 'int8' and 'nf4' both set quantization"]),
        ("nf4:triple", ["'nf4': argument 'triple' is not known", "'double'"]),
        ("int4wo:48", ["'int4wo': argument '48' is not known", "32, 64, 128, 256"]),
        ("int8:-1", ["'int8': argument '-1' is not known", "a number of at least 0"]),
        ("gptq", ["'gptq' needs an argument", "'gptq:./model-gptq'"]),
        ("tp", ["'tp' needs an argument, for example 'tp2'"]),
        (
            "bf16+tp1",
            [
                "'tp1': the number of devices is a whole number of at least 2",
                "On one device leave the part out",
            ],
        ),
        ("fsdp02", ["'fsdp02'", "'fsdp2'"]),
        ("tp:2", ["'tp:2': the number of devices follows the name, for example 'tp2'"]),
        ("tp2+tp4", ["'tp2' and 'tp4' both set tp"]),
        ("lora", ["'lora' needs an argument", "'lora:adapters/mine'"]),
        ("lora::merged", ["'lora' needs the folder of an adapter"]),
        (
            "lora:a:merged+lora:b:merged",
            ["'lora:a:merged' and 'lora:b:merged' both set merge_adapters"],
        ),
        ("assisted", ["'assisted' needs an argument", "'assisted:smollm2-135m'"]),
        ("assisted:m+prompt-lookup", ["'assisted:m' and 'prompt-lookup' both set assist"]),
        ("kv-int8+static-cache", ["both set cache"]),
        ("wanda", ["'wanda' needs an argument"]),
        ("bf16+fp16", ["'bf16' and 'fp16' both set autocast_dtype, weights_dtype", "Keep one"]),
        ("auto+fp16", ["'auto' and 'fp16' both set"]),
        ("bf16+bf16", ["'bf16' and 'bf16' both set"]),
        ("sdpa+eager", ["'sdpa' and 'eager' both set attention"]),
        ("compile+compile:max-autotune", ["both set compile"]),
        (
            "compile:max-autotun",
            [
                "argument 'max-autotun' is not known",
                "Did you mean 'max-autotune'?",
            ],
        ),
        ("compile:zz", ["argument 'zz' is not known", "default, reduce-overhead"]),
        ("compile:", ["argument '' is not known"]),
        ("bf16:1", ["'bf16' takes no argument", "'1' was given"]),
        ("", ["strategy '' has an empty part"]),
        ("bf16+", ["strategy 'bf16+' has an empty part"]),
        (["bf16", 3], ["3 is a int"]),
    ],
)
def test_a_text_that_cannot_be_used_says_why_and_what_could_be(text, fragments):
    """Each error names the value, the choices and the next step."""
    with pytest.raises(UsageError) as caught:
        parse(text)
    for fragment in fragments:
        assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("bf61", "bf16"),
        ("stati-cache", "static-cache"),
        ("FP16", "fp16"),
        ("float16", "fp16"),
        ("half", "fp16"),
        ("bfloat16", "bf16"),
        ("float32", "fp32"),
        ("4bit", "nf4"),
        ("load_in_8bit", "int8"),
        ("int4", "int4wo"),
        ("torch.compile", "compile"),
        ("flash_attention_2", "flash"),
        ("flash-attn", "flash"),
    ],
)
def test_a_suggestion_is_what_was_meant_and_no_list_follows(text, meant):
    """What a thing is called elsewhere comes before what is spelt alike."""
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert str(caught.value) == f"strategy part {text!r} is not known. Did you mean {meant!r}?"


@pytest.mark.parametrize("meant", sorted(set(STRATEGY_MEANINGS.values())))
def test_what_is_suggested_can_be_used(meant):
    """No suggestion is itself unknown."""
    assert parse(meant).canonical == meant


@pytest.mark.parametrize("other_name", STRATEGY_MEANINGS)
def test_a_name_from_elsewhere_is_no_strategy(other_name):
    """Else its row would never be looked at."""
    with pytest.raises(UsageError, match="is not known"):
        parse(other_name)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("int8,bf16", "Parts are joined by '+': 'int8+bf16'."),
        ("int8, bf16", "Parts are joined by '+': 'int8+bf16'."),
        ("q4_k_m", "A .gguf file is quantized already: name the file as the model"),
        ("IQ3_XS", "A .gguf file is quantized already: name the file as the model"),
    ],
)
def test_what_no_part_stands_for_is_explained(text, advice):
    """There is no near name, and something to do."""
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert advice in str(caught.value)
    assert "Parts by kind" not in str(caught.value)


def test_every_pair_of_parts_conflicts_exactly_if_they_share_a_field():
    """No pair is silently merged, and no compatible pair refused."""
    for one, other in combinations(TABLE.values(), 2):
        pair = [text_of(one), text_of(other)]
        fields = [parse(text)._in_force()[-1].fields.keys() for text in pair]
        if fields[0] & fields[1]:
            with pytest.raises(UsageError, match="both set"):
                parse(pair)
        else:
            assert len(parse(pair)._in_force()) >= 2


def test_every_part_has_a_fixture_whose_name_is_an_identifier():
    """`llm_<suffix>` can be requested for each part."""
    assert STRATEGY_FIXTURES["llm_fp16_mixed"] == "fp16-mixed"
    alone = {
        text_of(part) for name, part in TABLE.items() if text_of(part) == name or part.numbered
    }
    assert set(STRATEGY_FIXTURES.values()) == alone
    assert all(suffix.isidentifier() for suffix in STRATEGY_FIXTURES)


@pytest.mark.parametrize("part", TABLE.values(), ids=TABLE)
def test_the_transformers_engine_can_do_every_part(part):
    """No part by itself is refused by the engine that this version has.

    Float8 products want the weights in bf16.
    """
    # Float8 products; weights that leave a device for the host.
    device = "cuda" if part.name in {"fp8", "offload-cpu"} else "cpu"
    text = f"bf16+{text_of(part)}" if part.name == "fp8" else text_of(part)
    check_engine_can(
        parse(text).apply(structs.replace(PLAN, device=device)), TRANSFORMERS, "transformers"
    )


@given(part_lists())
def test_the_transformers_engine_refuses_together_only_what_it_gives_a_reason_for(parts):
    """Parts that exclude each other are refused with the strategy and the reason.

    All others are taken.
    """
    plan = parse(parts).apply(PLAN)
    reason = TRANSFORMERS.refusal(plan)
    if reason is None:
        check_engine_can(plan, TRANSFORMERS, "transformers")
    else:
        with pytest.raises(UsageError, match=re.escape(f"{plan.strategy!r} on 'cpu': {reason}")):
            check_engine_can(plan, TRANSFORMERS, "transformers")


def test_a_part_that_the_engine_cannot_honour_is_refused_with_the_choices():
    """The part, the engine, the field and what the engine takes are named."""
    plan = parse("bf16+static-cache").apply(PLAN)
    abilities = Capabilities(
        plan_fields={
            "weights_dtype": frozenset({"auto", "bfloat16"}),
            "autocast_dtype": frozenset({None}),
        }
    )
    with pytest.raises(
        UsageError,
        match=r"'static-cache' cannot be honoured by engine 'other'.*"
        r"cache = 'static'.*cache: dynamic",
    ):
        check_engine_can(plan, abilities, "other")
    check_engine_can(parse("bf16").apply(PLAN), abilities, "other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "tpu"}, "does not run on device 'tpu'. Devices: cpu, cuda"),
        ({"ranks": 2}, "at most 1 rank.*2 were asked"),
    ],
)
def test_a_device_or_rank_count_that_the_engine_lacks_is_refused(change, message):
    """Before anything is loaded."""
    one_rank = Capabilities(plan_fields=TRANSFORMERS.plan_fields)
    check_engine_can(structs.replace(PLAN, device="cuda:1"), one_rank, "transformers")
    with pytest.raises(UsageError, match=message):
        check_engine_can(structs.replace(PLAN, **change), one_rank, "transformers")
