"""Quantized checkpoints of the real model: in effect by count and bytes.

Their answers are compared with the fp32 model's.
"""

from __future__ import annotations

import json
import shutil
from functools import partial

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers", exc_type=ModuleNotFoundError)
pytest.importorskip("compressed_tensors")

from safetensors.torch import load_file, save_file
from support.quantizing import from_awq, save_awq, save_quantized
from support.real import MODEL, NIGHTLY, agreement, make_reference, opened, plan_of, say

from pytest_llmperf.core.quantization import scheme_of
from pytest_llmperf.engines.models.quantized_checkpoint import disagreement, stored_as
from pytest_llmperf.engines.transformers.load import load
from pytest_llmperf.errors import LoadError

pytestmark = NIGHTLY

WEIGHTS, ROWS, LAYERS = 106_168_320, 155_520, 210
"""Of the linear layers but the head: weights, rows of all of them together, and how many there are.
"""
REST = 134_515_008 - WEIGHTS
"""Parameters that stay as they are: the embedding, tied to the head, and the norms."""
TEXT = (
    "The harbour was quiet in the morning. A fisherman repaired his nets on the quay while his "
    "daughter counted the boats that had come back from the sea. When the sun rose over the hills, "
    "the market opened, and people came to buy bread and fish."
)
"""What the inputs of an int8 checkpoint are smoothed by; none of the prompts that are scored."""


def _awq(folder):
    return from_awq(save_awq(folder.with_name("awq-as-published"), MODEL, group=64), folder)


EIGHT_BIT = partial(save_quantized, name=MODEL, bits=8, group=0, inputs=True)
MAKERS = {
    "w8a8": EIGHT_BIT,
    "w4a16": partial(save_quantized, name=MODEL, bits=4, group=64),
    "gptq": partial(save_quantized, name=MODEL, bits=4, group=32, symmetric=False),
    "awq": _awq,
}
"""int8 rows; int4 in groups of 64; int4 in groups of 32 with zero points.

AutoAWQ's own layout, converted.
"""

HELD = {
    "w8a8": {"int8": WEIGHTS, "float32": 4 * ROWS},
    "w4a16": {"int32": WEIGHTS // 2, "float32": 4 * WEIGHTS // 64, "int64": 16 * LAYERS},
    "gptq": {
        "int32": WEIGHTS // 2 + WEIGHTS // 32 // 2,
        "float32": 4 * WEIGHTS // 32,
        "int64": 16 * LAYERS,
    },
    "awq": {
        "int32": WEIGHTS // 2 + WEIGHTS // 64 // 2,
        "float32": 4 * WEIGHTS // 64,
        "int64": 16 * LAYERS,
    },
}
"""Bytes that follow from the shapes, by hand.

They are integers with packed zero points, scales, and each packed layer's shape.
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """`checkpoints("w8a8")` is a folder with that checkpoint of the real model.

    It is made when it is first needed.
    """
    root, made = tmp_path_factory.mktemp("checkpoints"), {}

    def folder(part):
        if part not in made:
            made[part] = MAKERS[part](root / part)
        return made[part]

    return folder


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return make_reference(tmp_path_factory.mktemp("reference"))


def compared(strategy, reference):
    """What is in effect after the comparison, and the agreement with fp32."""
    session = opened(strategy)
    found = agreement(session, strategy, reference)
    effective = session.describe().effective
    session.close()
    return effective, found


@pytest.mark.parametrize("part", MAKERS)
def test_a_checkpoint_of_the_real_model_is_in_effect_and_near_the_full_model(
    part, checkpoints, reference, capsys
):
    """Its bytes are those of the shapes, also after it has answered.

    Of a model this small, 4 bits have a budget of 3.
    """
    effective, answers = compared(f"fp32+{part}:{checkpoints(part)}", reference)
    found = effective.quantized
    say(capsys, part, answers, f"{effective.weights_bytes / 1e6:.1f} MB, {found.stored_bytes}")
    assert (found.converted, found.layers, found.converted_elements) == (
        LAYERS,
        LAYERS + 1,
        WEIGHTS,
    )
    assert found.stored_bytes == found.analytic == HELD[part]
    assert effective.weights_bytes == pytest.approx(4 * REST + sum(HELD[part].values()), rel=0.03)
    assert answers.perplexity_ratio.high < (1.1 if part == "w8a8" else 3)


@pytest.fixture(scope="module")
def careful(tmp_path_factory):
    """An int8 checkpoint as they are published: smoothed, and without `down_proj`.

    The inputs of that layer are the hardest to round.
    """
    return EIGHT_BIT(tmp_path_factory.mktemp("careful"), ignore=["re:.*down_proj"], text=TEXT)


def test_a_smoothed_w8a8_checkpoint_keeps_the_8_bit_rule(careful, reference, capsys):
    """30 layers are left out because the config says so, and are named.

    All 210, plainly rounded, miss the rule by a little.
    """
    effective, answers = compared(f"fp32+w8a8:{careful}", reference)
    say(
        capsys,
        "w8a8, smoothed",
        answers,
        f"{effective.weights_bytes / 1e6:.1f} MB, {effective.quantized.stored_bytes}",
    )
    left = {(each.layers, each.reason, each.declared) for each in effective.quantized.left_out}
    assert effective.quantized.converted == LAYERS - 30
    assert (30, "the checkpoint's config leaves it out", True) in left
    assert answers.rule.kind == "8-bit"
    assert answers.rule.reasons(answers) == ()


def test_a_layer_whose_scales_are_zero_breaks_the_8_bit_rule(careful, reference, tmp_path):
    """The negative control: one layer of 180 gives nothing.

    It is loaded as it is stored, and its bytes are right.
    """
    folder = shutil.copytree(careful, tmp_path / "damaged")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.15.mlp.up_proj.weight_scale"].zero_()
    save_file(tensors, file, metadata={"format": "pt"})
    effective, answers = compared(f"fp32+w8a8:{folder}", reference)
    assert effective.quantized.stored_bytes == effective.quantized.analytic
    assert any(reason.startswith("sqnr") for reason in answers.rule.reasons(answers)), (
        answers.report()
    )


def test_a_config_of_the_real_model_that_disagrees_with_its_tensors_is_an_error(
    checkpoints, tmp_path
):
    """Groups of 32 in the config, of 64 in the file: all 210 layers are wrong.

    No model is made. As w8a8 it is refused.
    """
    folder = shutil.copytree(checkpoints("w4a16"), tmp_path / "wrong")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] = 32
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadError, match=r"4-bit weights in groups of 32, .*\(210 of 210 layers\)"):
        load(plan_of(f"w4a16:{folder}"))
    assert "'w8a8' means 8-bit weights and int8 inputs" in disagreement(
        scheme_of(f"w8a8:{folder}"), stored_as(folder)
    )
