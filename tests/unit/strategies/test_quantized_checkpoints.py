"""Quantized checkpoints: where they are, what they hold, and how large they will be."""

from __future__ import annotations

import json
import math

import pytest
from msgspec import structs

from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.core.quantization import (
    Packed,
)
from pytest_llmperf.engines.capabilities import TRANSFORMERS
from pytest_llmperf.engines.models.names import predict
from pytest_llmperf.engines.models.quantized_checkpoint import stored_as
from pytest_llmperf.errors import UsageError
from pytest_llmperf.strategies import check_engine_can, parse
from pytest_llmperf.strategies.quantized import located

MODEL = ModelRef(name="arch:tiny-llama", kind="arch", location="tiny-llama")


def plan(strategy, **fields):
    return parse(strategy).apply(LoadPlan(model=MODEL, **fields))


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
            (
                "holds 4-bit weights in groups of 32, plain inputs .*"
                "'w8a8' means 8-bit weights and int8 inputs"
            ),
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
