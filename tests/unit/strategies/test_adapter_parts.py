"""`lora:PATH`, assisted decoding and 8-bit caches as strategy parts.

What they set, where folders are found, and what breaks their promises.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import structs

from pytest_llmperf.core.effective import AdapterGroup, Effective
from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.engines.capabilities import TRANSFORMERS
from pytest_llmperf.engines.refusals import decode
from pytest_llmperf.errors import NotInEffect, UsageError
from pytest_llmperf.strategies import check_engine_can, parse, require_in_effect
from pytest_llmperf.strategies.adapters import located

PLAN = LoadPlan(model=ModelRef(name="m", kind="arch", location="tiny-llama"))
MINE = AdapterGroup(
    name="mine",
    rank=8,
    layers=14,
    elements=100,
    tensors=28,
    tensors_equal=28,
    content_hash="a" * 64,
    active=True,
)


def adapter(root: Path, name: str) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / file).write_bytes(b"{}")
    return folder


def effective(**facts) -> Effective:
    common = {
        "engine": "transformers",
        "model_class": "LlamaForCausalLM",
        "tensors": (),
        "linears": (),
        "compute_dtype": "float32",
        "autocast_dtype": None,
        "checkpoint_dtype": "float32",
        "attention": "sdpa",
        "cache": "",
        "compile_mode": None,
        "compiled_graphs": 0,
        "decode_loop": "",
        "padding_side": "left",
        "device": "cpu",
    }
    return Effective(**common | facts)


def check(strategy: str, found: Effective, when: str = "loaded") -> None:
    """The promises of all parts but the precision's."""
    parsed = parse(strategy)
    promises = [p for p in parsed.promises(parsed.apply(PLAN)) if p.part != "auto"]
    assert promises
    require_in_effect(found, promises, when)


def test_several_adapters_stay_in_the_order_they_were_named():
    """The first is in force, so that the order means something."""
    plan = parse("lora:zeta+bf16+lora:alpha").apply(PLAN)
    assert plan.adapters == ("zeta", "alpha")
    assert plan.strategy == "bf16+lora:zeta+lora:alpha"
    assert parse(plan.strategy).canonical == plan.strategy
    assert not plan.merge_adapters


def test_a_merged_adapter_sets_both_fields():
    plan = parse("lora:a/b:merged").apply(PLAN)
    assert (plan.adapters, plan.merge_adapters) == (("a/b",), True)


@pytest.mark.parametrize(
    ("strategy", "fragments"),
    [
        ("lora:a+lora:b:merged", ["merged", "Name one adapter"]),
        ("assisted:m+static-cache", ["static cache"]),
        ("prompt-lookup+compile", ["Leave out 'compile'"]),
        ("prompt-lookup+kv-fp8", ["fp8 cache"]),
        ("kv-int8+compile", ["int8 cache", "Leave out 'compile'"]),
    ],
)
def test_parts_that_exclude_each_other_are_refused_before_loading(strategy, fragments):
    with pytest.raises(UsageError) as caught:
        check_engine_can(parse(strategy).apply(PLAN), TRANSFORMERS, "transformers")
    for fragment in ["transformers", strategy.split("+")[0], "'cpu'", *fragments]:
        assert fragment in str(caught.value)


def test_merging_into_weights_that_are_quantized_already_is_refused():
    """Into full precision before quantizing it is not."""
    plan = structs.replace(parse("lora:a:merged").apply(PLAN), quantization="gptq:/models/q")
    assert "gptq:/models/q" in (TRANSFORMERS.refusal(plan) or "")
    assert decode.adapters(structs.replace(plan, merge_adapters=False)) is None
    assert decode.adapters(structs.replace(plan, quantization="nf4")) is None


def test_a_folder_below_the_root_is_named_by_its_relative_path(tmp_path):
    """The same text on every machine; the plan has the absolute folder."""
    folder = adapter(tmp_path, "adapters/mine")
    for given in ("adapters/mine", str(folder)):
        plan = located(parse(f"bf16+lora:{given}:merged").apply(PLAN), tmp_path)
        assert plan.adapters == (str(folder),)
        assert plan.strategy == "bf16+lora:adapters/mine:merged"
        assert plan.adapter_names == ("mine",)


def test_a_folder_elsewhere_is_named_by_its_name_alone(tmp_path):
    folder = adapter(tmp_path, "elsewhere/mine")
    plan = located(parse(f"lora:{folder}").apply(PLAN), tmp_path / "project")
    assert plan.strategy == "lora:mine"
    assert plan.adapters == (str(folder),)


def test_the_root_comes_before_the_current_folder(tmp_path, monkeypatch):
    there, here = adapter(tmp_path / "root", "mine"), adapter(tmp_path / "cwd", "mine")
    monkeypatch.chdir(here.parent)
    assert located(parse("lora:mine").apply(PLAN), there.parent).adapters == (str(there),)
    assert located(parse("lora:mine").apply(PLAN), tmp_path).adapters == (str(here),)


def test_a_plan_without_adapters_is_left_as_it_is(tmp_path):
    plan = parse("bf16+prompt-lookup").apply(PLAN)
    assert located(plan, tmp_path) is plan


def test_what_is_no_adapter_is_an_error_that_names_the_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no folder .*root/gone or .*/gone.*save_pretrained"):
        located(parse("lora:gone").apply(PLAN), tmp_path / "root")
    with pytest.raises(
        UsageError, match=r"holds no adapter_config.json and no adapter_model.safetensors"
    ):
        located(parse("lora:empty").apply(PLAN), tmp_path)


@pytest.mark.parametrize(
    ("names", "reason"), [(("a/x", "b/x"), "two adapters are called 'x'"), (("base",), "'base'")]
)
def test_adapters_that_cannot_be_told_apart_are_refused(tmp_path, names, reason):
    text = "+".join(f"lora:{adapter(tmp_path, name)}" for name in names)
    with pytest.raises(UsageError, match=reason):
        located(parse(text).apply(PLAN), tmp_path)


def test_an_adapter_in_force_keeps_its_promise():
    check("lora:mine", effective(adapters=("mine",), resident_adapters=(MINE,)))
    merged = structs.replace(MINE, merged=True)
    check("lora:mine:merged", effective(adapters=("mine",), resident_adapters=(merged,)))


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({}, "'mine' is not there; the modules hold none"),
        ({"resident_adapters": (structs.replace(MINE, name="other"),)}, "the modules hold other"),
        (
            {
                "adapters": ("mine",),
                "resident_adapters": (structs.replace(MINE, tensors_equal=27),),
            },
            "27 of 28 tensors",
        ),
        (
            {"adapters": ("mine",), "resident_adapters": (structs.replace(MINE, tensors_equal=0),)},
            "another adapter",
        ),
        (
            {"adapters": ("mine",), "resident_adapters": (structs.replace(MINE, layers=0),)},
            "sits in 0 layers",
        ),
        (
            {"adapters": ("mine",), "resident_adapters": (structs.replace(MINE, merged=True),)},
            "merged, asked for the other",
        ),
        (
            {"adapters": (), "resident_adapters": (MINE,)},
            "in force are no adapters, asked for 'mine'",
        ),
        ({"adapters": ("mine", "more"), "resident_adapters": (MINE,)}, "in force are mine, more"),
    ],
)
def test_an_adapter_that_is_not_in_force_breaks_its_promise(facts, reason):
    with pytest.raises(NotInEffect, match=rf"strategy 'lora' is not in effect: .*{reason}"):
        check("lora:mine", effective(**facts))


@pytest.mark.parametrize(
    ("strategy", "kept", "broken"),
    [
        ("kv-int8", {"cache": "Cache of int8"}, {"cache": "DynamicCache"}),
        ("kv-fp8", {"cache": "QuantizedCache of float8_e4m3fn"}, {"cache": "Cache of int8"}),
        ("prompt-lookup", {"assistance": "prompt-lookup"}, {"assistance": ""}),
        ("assisted:m", {"assistance": "m"}, {"assistance": "other"}),
    ],
)
def test_what_shows_in_a_run_is_promised_for_after_the_warm_up(strategy, kept, broken):
    check(strategy, effective(**broken), "loaded")
    check(strategy, effective(**kept), "warm")
    with pytest.raises(NotInEffect, match="the last run"):
        check(strategy, effective(**broken), "warm")
