"""Quantization as values: schemes, and bytes that follow from shapes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.core.quantization import (
    Packed,
    Scheme,
    layer_bytes,
    packed_layer_bytes,
    scheme_of,
)
from pytest_llmperf.errors import UsageError
from pytest_llmperf.strategies import parse

MODEL = ModelRef(name="arch:tiny-llama", kind="arch", location="tiny-llama")
features = st.integers(1, 40).map(lambda n: n * 128)


def plan(strategy, **fields):
    return parse(strategy).apply(LoadPlan(model=MODEL, **fields))


def test_the_bytes_of_one_layer_are_those_worked_out_by_hand():
    """A layer of 128 outputs and 256 inputs: 32768 weights, 512 blocks of 64, 128 rows."""
    expected = {
        "int8": {"int8": 32768, "float32": 512},
        "nf4": {"uint8": 16384, "float32": 2048 + 64},
        "nf4:double": {"uint8": 16384 + 512, "float32": 64 + 8 + 1024 + 4},
        "fp4": {"uint8": 16384, "float32": 2048 + 64},
        "int8wo": {"int8": 32768 + 128, "float32": 512},
        "fp8": {"float8_e4m3fn": 32768, "float32": 512},
    }
    assert {text: dict(layer_bytes(scheme_of(text), 128, 256)) for text in expected} == expected


def test_the_tile_packed_int4_layout_is_padded():
    """In torchao's layout for CUDA 256 inputs take the space of 1024.

    The layout for a CPU has no padding.
    """
    scheme = scheme_of("int4wo:128")
    assert layer_bytes(scheme, 128, 256) == {"int32": 128 * 1024 // 2, "bfloat16": 128 * 8 * 4}
    assert layer_bytes(scheme, 128, 256, layout="Int4OpaqueTensor") == {
        "uint8": 128 * 256 // 2,
        "bfloat16": 128 * 2 * 4,
    }


def test_the_bytes_of_packed_layers_are_those_worked_out_by_hand():
    """Groups of 64 in pack-quantized, rows in int-quantized.

    Zero points only where the weights are not symmetric.
    """
    four = Packed(format="pack-quantized", bits=4, group=64)
    assert packed_layer_bytes(four, 128, 256, "bfloat16") == {
        "int32": 16384,
        "bfloat16": 1024,
        "int64": 16,
    }
    assert (
        packed_layer_bytes(structs.replace(four, symmetric=False), 128, 256, "float32")["int32"]
        == 16384 + 4 * 16 * 4
    )
    eight = Packed(format="int-quantized", bits=8, inputs=True)
    assert packed_layer_bytes(eight, 128, 256, "float32") == {"int8": 32768, "float32": 512}


@given(features, features, st.sampled_from(["int8", "nf4", "nf4:double", "fp4", "int8wo", "fp8"]))
def test_a_quantized_layer_takes_its_bits_and_at_most_a_sixth_more(out_features, in_features, text):
    """Scales cost one float for 64 weights in 4 bit, one for a row in 8 bit.

    Double quantization costs a table a layer.
    """
    weights, scheme = out_features * in_features, scheme_of(text)
    plain, tables = weights * scheme.row.bits // 8, 2048
    assert plain < layer_bytes(scheme, out_features, in_features).total() <= plain * 7 / 6 + tables


def test_a_falcon_7b_shrinks_as_much_as_promised():
    """By shapes: int8 to at most 55 %, nf4 to 33 % of bfloat16, its embedding included."""
    hidden = 4544
    layers = [
        (hidden + 128, hidden),
        (hidden, hidden),
        (4 * hidden, hidden),
        (hidden, 4 * hidden),
    ] * 32
    rest = 2 * (65024 * hidden + 32 * 2 * hidden + 2 * hidden)
    full = rest + 2 * sum(out * inputs for out, inputs in layers)
    ratio = {
        text: (rest + sum(layer_bytes(scheme_of(text), *s).total() for s in layers)) / full
        for text in ("int8", "nf4")
    }
    assert ratio["int8"] <= 0.55
    assert ratio["nf4"] <= 0.33


@pytest.mark.parametrize("text", ["int8", "int8:0", "nf4:double", "int4wo:32", "fp8:wo", "gptq:q"])
def test_a_part_sets_its_own_text(text):
    """The plan carries the argument, and the scheme can be read from it again."""
    assert plan(text).quantization == text
    assert plan(f"bf16+{text}").weights_dtype == "bfloat16"


def test_schemes_are_read_with_their_options():
    """Threshold, double quantization, group size, weights only, path with a colon."""
    assert scheme_of("int8").threshold == 6.0
    assert scheme_of("int8:0").threshold == 0.0
    assert scheme_of("nf4:double") == Scheme(method="nf4", double=True, group=64)
    assert scheme_of("int4wo").group == 64
    assert scheme_of("fp8:wo").weight_only
    assert scheme_of("gptq:/a:b/c").path == "/a:b/c"
    with pytest.raises(UsageError, match=r"'nf5' is not known\. Did you mean 'nf4'"):
        scheme_of("nf5")
