"""Promises of strategy parts: what holds passes, and what is not in effect is named."""

from __future__ import annotations

import pytest
from msgspec import structs

from pytest_llmperf.core.effective import Effective, LinearGroup, TensorGroup
from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.errors import NotInEffect
from pytest_llmperf.strategies import (
    parse,
    require_in_effect,
)

PLAN = LoadPlan(model=ModelRef(name="m", kind="arch", location="tiny-llama"))


def loaded(dtype: str = "bfloat16", **other) -> Effective:
    """A model of 210 linear layers in `dtype`, in effect as full precision promises."""
    facts = {
        "engine": "transformers",
        "model_class": "LlamaForCausalLM",
        "tensors": (
            TensorGroup(
                kind="parameter", dtype=dtype, device="cpu", tensors=272, elements=1000, bytes=2000
            ),
        ),
        "linears": (LinearGroup(cls="Linear", dtype=dtype, layers=210, elements=900, bytes=1800),),
        "compute_dtype": dtype,
        "autocast_dtype": None,
        "checkpoint_dtype": "bfloat16",
        "attention": "sdpa",
        "cache": "",
        "compile_mode": None,
        "compiled_graphs": 0,
        "decode_loop": "",
        "padding_side": "left",
        "device": "cpu",
    }
    return Effective(**facts | other)


def check(strategy: str, effective: Effective, when: str = "loaded") -> None:
    parsed = parse(strategy)
    require_in_effect(effective, parsed.promises(parsed.apply(PLAN)), when)


@pytest.mark.parametrize(
    ("strategy", "dtype"),
    [
        ("fp32", "float32"),
        ("fp16", "float16"),
        ("bf16", "bfloat16"),
        ("auto", "bfloat16"),
        ("sdpa", "bfloat16"),
    ],
)
def test_kept_promises_pass(strategy, dtype):
    """A model that is what was asked for is let through."""
    check(strategy, loaded(dtype))


def test_a_bf16_that_loads_fp32_is_refused_with_the_counts():
    """The negative control of the whole idea."""
    with pytest.raises(NotInEffect) as caught:
        check("bf16", loaded("float32"))
    assert "strategy 'bf16' is not in effect" in str(caught.value)
    assert (
        "210 of 210 linear layers hold float32 weights (LlamaForCausalLM), asked for bfloat16"
        in str(caught.value)
    )
    assert "compute is float32, asked for bfloat16" in str(caught.value)


def test_some_layers_left_behind_are_counted():
    """One group of two in the wrong dtype is enough."""
    linears = (
        LinearGroup(cls="Linear", dtype="bfloat16", layers=200, elements=1, bytes=2),
        LinearGroup(cls="Linear", dtype="float32", layers=10, elements=1, bytes=4),
    )
    with pytest.raises(NotInEffect, match="10 of 210 linear layers hold float32"):
        check("bf16", loaded(linears=linears))


def test_float32_norms_are_tolerated_only_if_the_architecture_declares_them():
    """The same tensors pass as `kept` and fail without."""
    group = TensorGroup(
        kind="parameter", dtype="float32", device="cpu", tensors=61, elements=1, bytes=4
    )
    weights = loaded().tensors
    check("bf16", loaded(tensors=(*weights, structs.replace(group, fixed_dtype=True))))
    check("bf16", loaded(tensors=(*weights, structs.replace(group, kind="buffer"))))
    with pytest.raises(NotInEffect, match="61 of 333 parameters hold float32"):
        check("bf16", loaded(tensors=(*weights, group)))


def test_a_model_without_any_weights_keeps_no_promise():
    """Nothing found is never a pass."""
    with pytest.raises(NotInEffect, match="no weights were found"):
        check("bf16", loaded(linears=(), tensors=()))


def test_auto_promises_the_dtype_of_the_checkpoint():
    """Another dtype, or an engine that does not say, is refused."""
    with pytest.raises(NotInEffect, match="210 of 210 linear layers hold float32"):
        check("static-cache", loaded("float32"))
    with pytest.raises(NotInEffect, match="did not report the dtype of the checkpoint"):
        check("auto", loaded(checkpoint_dtype=None))


def test_mixed_promises_float32_weights_and_sixteen_bit_compute():
    """Each half of it can be broken."""
    good = loaded("float32", compute_dtype="float16", autocast_dtype="float16")
    check("fp16-mixed", good)
    with pytest.raises(NotInEffect, match="hold bfloat16 weights"):
        check("bf16-mixed", loaded("bfloat16", autocast_dtype="bfloat16"))
    with pytest.raises(
        NotInEffect,
        match="compute is float32, asked for float16; autocast is none, asked for float16",
    ):
        check("fp16-mixed", loaded("float32"))
    with pytest.raises(NotInEffect, match="autocast is float16, asked for none"):
        check("fp32", good)


def test_attention_is_promised_when_it_is_named():
    """`eager` over sdpa is refused; without the part any attention will do."""
    with pytest.raises(
        NotInEffect, match="strategy 'eager' is not in effect: attention is sdpa, asked for eager"
    ):
        check("bf16+eager", loaded())
    check("bf16", loaded(attention="whatever"))


def test_cache_and_compilation_are_checked_after_warm_up_only():
    """Before a run nothing can be known of them; after it they must be there."""
    check("bf16+static-cache+compile", loaded())
    with pytest.raises(NotInEffect) as caught:
        check("bf16+static-cache+compile", loaded(cache="DynamicCache"), "warm")
    assert "strategy 'static-cache' is not in effect: the last run used DynamicCache" in str(
        caught.value
    )
    assert "strategy 'compile' is not in effect: 0 graphs were compiled" in str(caught.value)
    check(
        "bf16+static-cache+compile",
        loaded(cache="StaticCache", compiled_graphs=1, compile_mode="max-autotune"),
        "warm",
    )


def test_a_compile_mode_that_was_named_must_be_the_one_in_use():
    """Plain `compile` leaves the mode to the engine."""
    warm = loaded(compiled_graphs=2, compile_mode="default")
    check("bf16+compile", warm, "warm")
    with pytest.raises(NotInEffect, match="compile mode is default, asked for max-autotune"):
        check("bf16+compile:max-autotune", warm, "warm")
    with pytest.raises(NotInEffect, match="compile mode is none, asked for default"):
        check("bf16+compile", loaded(compiled_graphs=2), "warm")


def test_promises_of_loading_still_hold_when_warm():
    """A model that changes under the run is caught after warm-up too."""
    with pytest.raises(NotInEffect, match="210 of 210"):
        check("bf16", loaded("float32"), "warm")
