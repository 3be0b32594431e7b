"""Quantization as values: schemes, bytes from shapes, promises, and what is refused before anything loads."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from pytest_llmperf.core.effective import Effective, LeftOut, LinearGroup, Quantized, TensorGroup
from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.core.quantization import (
    METHODS,
    Packed,
    Scheme,
    layer_bytes,
    packed_layer_bytes,
    scheme_of,
)
from pytest_llmperf.engines.capabilities import TRANSFORMERS
from pytest_llmperf.engines.models.names import predict
from pytest_llmperf.engines.models.quantized_checkpoint import stored_as
from pytest_llmperf.engines.refusals import quantized as refusals
from pytest_llmperf.errors import NotInEffect, UsageError
from pytest_llmperf.strategies import check_engine_can, parse, require_in_effect
from pytest_llmperf.strategies.quantized import located

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
    """By its shapes: int8 to at most 55 %, nf4 to at most 33 % of bfloat16, its embedding included."""
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


# Promises


def quantized(converted=8, left_out=(), **other):
    facts = {
        "part": "int8",
        "bits": 8,
        "layers": converted + sum(each.layers for each in left_out),
        "converted": converted,
        "elements": 1000,
        "converted_elements": 900,
        "formats": ("llm.int8",) if converted else (),
        "held": {"int8": 900, "float32": 100},
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
            quantized(held={"int8": 1800, "float32": 100}),
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
    check("bf16+int8", loaded(quantized(held={"int8": 930, "float32": 100})))


# Refusals


@pytest.mark.parametrize(
    ("strategy", "device", "reason"),
    [
        ("fp8", "cpu", "float8 products need a GPU of compute capability 8.9"),
        ("bf16-mixed+nf4", "cpu", "autocast gives them another"),
        ("fp32+int4wo", "cuda", r"bfloat16 only, the precision is float32. Write 'bf16\+int4wo'"),
        # The checkpoint's own.
        ("int4wo", "cuda", r"bfloat16 only, the precision is float32. Write 'bf16\+int4wo'"),
        ("fp16+fp8", "cuda", "bfloat16 only"),
        ("int8+static-cache+compile", "cuda", "Leave out 'compile', or the outliers: 'int8:0'"),
        ("int4wo:256", "cpu", "group sizes on a CPU: 32, 64, 128"),
    ],
)
def test_what_cannot_be_loaded_is_refused_before_loading(strategy, device, reason, monkeypatch):
    """With part, engine, device and model."""
    monkeypatch.setattr(refusals, "compute_capability", lambda: (9, 0))
    asked = plan(strategy, device=device)
    with pytest.raises(UsageError, match=reason) as caught:
        check_engine_can(asked, TRANSFORMERS, "transformers")
    assert all(
        text in str(caught.value)
        for text in (asked.quantization, "transformers", device, MODEL.name)
    )


@pytest.mark.parametrize(("part", "needed"), [("fp8", "8.9"), ("int4wo", "8.0")])
def test_a_gpu_that_is_too_old_is_named_with_what_is_needed(part, needed, monkeypatch):
    """Compute capability 7.5 has neither; 8.9 has both."""
    monkeypatch.setattr(refusals, "compute_capability", lambda: (7, 5))
    assert f"compute capability 7.5, {needed} or newer" in str(
        TRANSFORMERS.refusal(plan(f"bf16+{part}", device="cuda"))
    )
    monkeypatch.setattr(refusals, "compute_capability", lambda: (8, 9))
    assert TRANSFORMERS.refusal(plan(f"bf16+{part}", device="cuda")) is None


@pytest.mark.parametrize(
    "strategy",
    [
        "int8",
        "nf4:double",
        "bf16+int8:0+static-cache+compile",
        "fp8:wo",
        "int4wo",
        "int8wo+compile",
    ],
)
def test_what_can_be_loaded_on_a_cpu_is_not_refused(strategy):
    """The other parts are."""
    check_engine_can(plan(strategy), TRANSFORMERS, "transformers")


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_library_that_is_not_installed_is_named_with_its_extra(method, monkeypatch):
    """Nothing is imported to find out."""
    monkeypatch.setattr(refusals.importlib.util, "find_spec", lambda _: None)
    text = f"{method.name}:q" if method.extra == "compressed-tensors" else method.name
    assert f"pip install 'pytest-llmperf[{method.extra}]'" in str(
        TRANSFORMERS.missing_library(plan(text))
    )
    monkeypatch.setattr(refusals.importlib.util, "find_spec", lambda _: object())
    assert TRANSFORMERS.missing_library(plan(text)) is None
    assert TRANSFORMERS.missing_library(plan("bf16")) is None


# Checkpoints


def checkpoint(folder, **quantization):
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "llama"} | (
        {"quantization_config": quantization} if quantization else {}
    )
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def four_bit(**weights):
    stored = {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": True} | weights
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": stored}},
    }


def test_a_checkpoint_is_looked_up_from_the_root_and_shown_by_its_relative_path(tmp_path):
    """The plan gets the absolute folder, the strategy's text is the same on every machine."""
    folder = checkpoint(tmp_path / "models" / "q", **four_bit())
    found = located(plan("bf16+gptq:models/q+static-cache"), tmp_path)
    assert (found.quantization, found.strategy) == (
        f"gptq:{folder}",
        "bf16+gptq:models/q+static-cache",
    )
    assert TRANSFORMERS.refusal(found) is None
    assert located(plan("nf4"), tmp_path) == plan("nf4")


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    """With the places that were looked at."""
    with pytest.raises(
        UsageError, match=rf"'awq:nowhere': there is no config.json in {tmp_path}/nowhere"
    ):
        located(plan("awq:nowhere"), tmp_path)


@pytest.mark.parametrize(
    ("part", "quantization", "reason"),
    [
        ("w4a16", {}, "has no quantization_config: the checkpoint is not quantized"),
        (
            "gptq",
            {"quant_method": "gptq", "bits": 4},
            "is in 'gptq' format, and this engine reads the compressed-tensors format",
        ),
        (
            "w8a8",
            four_bit(),
            "holds 4-bit weights in groups of 32, plain inputs .*'w8a8' means 8-bit weights and int8 inputs",
        ),
        ("w4a16", four_bit(num_bits=8), "holds 8-bit weights"),
        (
            "w4a16",
            {"quant_method": "compressed-tensors", "config_groups": {}},
            "has 0 groups of quantized layers",
        ),
    ],
)
def test_a_checkpoint_that_is_not_what_the_part_says_is_refused(
    part, quantization, reason, tmp_path
):
    """From its config alone."""
    asked = located(plan(f"{part}:{checkpoint(tmp_path / 'q', **quantization)}"), tmp_path)
    with pytest.raises(UsageError, match=reason):
        check_engine_can(asked, TRANSFORMERS, "transformers")


def test_the_format_of_a_checkpoint_is_read_from_its_config(tmp_path):
    """Groups, symmetry, inputs."""
    assert stored_as(checkpoint(tmp_path, **four_bit(symmetric=False))) == Packed(
        format="pack-quantized",
        bits=4,
        group=32,
        symmetric=False,
    )


# Predictions


@pytest.mark.parametrize(
    ("strategy", "ratio"),
    [("bf16+int8", 0.55), ("bf16+nf4", 0.33), ("bf16+int4wo", 0.34), ("bf16+fp8", 0.55)],
)
def test_the_size_of_a_quantized_falcon_is_predicted_from_its_shapes(strategy, ratio):
    """Falcon-7B in at most this share of its bfloat16 bytes; int4wo is padded."""
    falcon = ModelRef(name="arch:falcon-7b", kind="arch", location="falcon-7b")
    asked = parse(strategy).apply(LoadPlan(model=falcon, device="cuda"))
    plain = predict(structs.replace(asked, quantization=None))
    assert ratio - 0.06 < predict(asked) / plain <= ratio


def test_the_size_of_a_folder_is_predicted_from_its_headers(tmp_path):
    """One linear layer of 128 x 256 beside an embedding and a norm, all in float16."""
    shapes = {
        "model.embed_tokens.weight": [512, 256],
        "model.layers.0.mlp.up_proj.weight": [128, 256],
        "model.norm.weight": [256],
    }
    folder = checkpoint(tmp_path)
    write_header(
        folder / "model.safetensors", {name: ("F16", shape) for name, shape in shapes.items()}
    )
    asked = plan("nf4", device="cpu")
    found = structs.replace(
        asked, model=ModelRef(name=str(folder), kind="folder", location=str(folder))
    )
    assert predict(found) == 2 * (512 * 256 + 256) + 16384 + 2048 + 64


def test_the_size_of_a_checkpoint_is_that_of_its_tensors(tmp_path):
    """int32 counts four bytes."""
    folder = checkpoint(tmp_path, **four_bit())
    write_header(
        folder / "model.safetensors",
        {"a.weight_packed": ("I32", [4, 8]), "a.weight_scale": ("F16", [4, 1])},
    )
    assert predict(plan(f"w4a16:{folder}")) == 4 * 32 + 2 * 4


def write_header(path, tensors):
    """A safetensors file of zeros."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * {"F16": 2, "I32": 4}[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(end))
