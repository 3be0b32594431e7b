"""Promises of quantization parts: formats, bytes and layers that were left out."""

from __future__ import annotations

import pytest
from msgspec import structs

from pytest_llmperf.core.effective import Effective, LeftOut, LinearGroup, Quantized, TensorGroup
from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.errors import NotInEffect
from pytest_llmperf.strategies import parse, require_in_effect

MODEL = ModelRef(name="arch:tiny-llama", kind="arch", location="tiny-llama")


def plan(strategy, **fields):
    return parse(strategy).apply(LoadPlan(model=MODEL, **fields))


def quantized(converted=8, left_out=(), **other):
    facts = {
        "part": "int8",
        "bits": 8,
        "layers": converted + sum(each.layers for each in left_out),
        "converted": converted,
        "elements": 1000,
        "converted_elements": 900,
        "formats": ("llm.int8",) if converted else (),
        "stored_bytes": {"int8": 900, "float32": 100},
        "analytic": {"int8": 900, "float32": 100},
        "left_out": left_out,
    }
    return Quantized(**facts | other)


def loaded(found, dtype="bfloat16"):
    low = LinearGroup(
        cls="Linear8bitLt", dtype="int8", layers=8, elements=900, bytes=1000, quantized=True
    )
    head = LinearGroup(cls="Linear", dtype=dtype, layers=1, elements=100, bytes=200)
    tensors = tuple(
        TensorGroup(
            kind="parameter",
            dtype=kind,
            device="cpu",
            tensors=8,
            elements=900,
            bytes=900,
            quantized=kind != dtype,
        )
        for kind in ("int8", "float32", dtype)
    )
    return Effective(
        engine="transformers",
        model_class="FalconForCausalLM",
        tensors=tensors,
        linears=(low, head),
        compute_dtype=dtype,
        autocast_dtype=None,
        checkpoint_dtype="bfloat16",
        attention="sdpa",
        cache="",
        compile_mode=None,
        compiled_graphs=0,
        decode_loop="",
        padding_side="left",
        device="cpu",
        quantized=found,
    )


def check(strategy, effective):
    parsed = parse(strategy)
    require_in_effect(effective, parsed.promises(parsed.apply(LoadPlan(model=MODEL))), "loaded")


HEAD = LeftOut(
    cls="Linear", layers=1, elements=100, reason="the output head", declared=True, example="lm_head"
)


@pytest.mark.parametrize("strategy", ["int8", "bf16+int8"])
def test_quantized_layers_keep_the_promise_and_the_precision_is_that_of_the_rest(strategy):
    """int8 weights and their float32 scales beside a bfloat16 head."""
    check(strategy, loaded(quantized(left_out=(HEAD,))))


def test_the_rest_of_a_quantized_model_must_be_in_the_precision_asked_for():
    """The head in float32 under bf16 is named."""
    with pytest.raises(
        NotInEffect, match=r"'bf16' is not in effect: 1 of 1 linear layers hold float32 weights"
    ):
        check(
            "bf16+int8",
            structs.replace(loaded(quantized(), dtype="float32"), compute_dtype="bfloat16"),
        )


def test_quantized_layers_are_no_bfloat16_where_nobody_asked_for_them():
    """A checkpoint that is quantized already, under 'bf16' alone."""
    with pytest.raises(NotInEffect, match=r"8 of 9 linear layers hold int8 weights"):
        check("bf16", loaded(quantized()))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            quantized(
                0,
                (
                    LeftOut(
                        cls="FalconLinear",
                        layers=8,
                        elements=9,
                        reason="not",
                        declared=False,
                        example="h.0",
                    ),
                    HEAD,
                ),
            ),
            r"0 of 8 linear layers are 8-bit \(8 FalconLinear: not, like h.0\)",
        ),
        (
            quantized(
                7,
                (
                    LeftOut(
                        cls="Linear",
                        layers=1,
                        elements=9,
                        reason="bfloat16",
                        declared=False,
                        example="h.3",
                    ),
                    HEAD,
                ),
            ),
            r"7 of 8 linear layers are 8-bit \(1 Linear: bfloat16, like h.3\)",
        ),
        (quantized(0, (HEAD,)), r"0 of 0 linear layers are 8-bit \(1 Linear: the output head"),
        (quantized(formats=("nf4",)), "stored as nf4, asked for llm.int8"),
        (
            quantized(stored_bytes={"int8": 1800, "float32": 100}),
            r"hold 1900 B .*1000 B follow from their shapes",
        ),
        (None, "did not report quantized layers"),
    ],
)
def test_a_quantization_that_is_not_in_effect_is_named_with_counts(found, message):
    """Nothing converted, one layer missing, another format, too many bytes, nothing reported."""
    with pytest.raises(NotInEffect, match=message):
        check("bf16+int8", loaded(found))


def test_bytes_within_three_percent_of_the_shapes_are_taken():
    """As far as a library's own padding may go."""
    check("bf16+int8", loaded(quantized(stored_bytes={"int8": 930, "float32": 100})))
