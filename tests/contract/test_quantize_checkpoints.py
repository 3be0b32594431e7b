"""Quantized checkpoints: kept as they are stored, and told apart from what their config says."""

from __future__ import annotations

import json
import os

import pytest

from pytest_llmperf.core.quantization import packed_layer_bytes
from pytest_llmperf.engines.models.names import predict
from pytest_llmperf.engines.models.quantized_checkpoint import stored_as
from pytest_llmperf.errors import LoadError
from pytest_llmperf.strategies import parse, require_in_effect
from pytest_llmperf.testing import check_engine

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", exc_type=ModuleNotFoundError)
pytest.importorskip("compressed_tensors")

from safetensors.torch import load_file, save_file
from support.quantizing import (
    from_awq,
    plain_from_pretrained,
    plan_of,
    quantized,
    rounded,
    save_awq,
    save_quantized,
)

from pytest_llmperf.engines.transformers import TransformersEngine
from pytest_llmperf.engines.transformers.effective import describe
from pytest_llmperf.engines.transformers.load import load
from pytest_llmperf.workloads import Decode

CHECKPOINTS = {
    "w4a16": {"bits": 4},
    "gptq": {"bits": 4, "symmetric": False},
    "w8a8": {"bits": 8, "group": 0, "inputs": True},
}


@pytest.mark.parametrize(("part", "how"), CHECKPOINTS.items(), ids=CHECKPOINTS)
def test_a_checkpoint_stays_packed_after_forward_passes(part, how, tmp_path):
    """Counted after the probe and again after a run; with the bytes of its format."""
    folder = save_quantized(tmp_path, **how)
    loaded, effective = quantized(f"bf16+{part}:{folder}", "arch:tiny-llama")
    found = effective.quantized
    assert (found.converted, found.layers) == (14, 15)
    assert found.stored_bytes == found.analytic
    packed = stored_as(folder)
    assert packed_layer_bytes(packed, 160, 64, "bfloat16").total() * 2 < 160 * 64 * 3
    assert [left.reason for left in found.left_out] == ["the output head keeps its precision"]
    assert predict(loaded.plan) >= sum(found.stored_bytes.values())
    session = TransformersEngine().open(loaded.plan)
    session.run(Decode(batch=1, prompt_tokens=4, new_tokens=2), 0)
    assert session.describe().effective.quantized == found


@pytest.mark.parametrize(("part", "how"), CHECKPOINTS.items(), ids=CHECKPOINTS)
def test_a_packed_checkpoint_answers_as_the_unpacked_one(part, how, tmp_path):
    """Transformers and compressed-tensors by themselves.

    They unpack all weights at the first forward pass.
    """
    folder = save_quantized(tmp_path, **how)
    ours = quantized(f"bf16+{part}:{folder}", "arch:tiny-llama")[0].model
    theirs = plain_from_pretrained(folder) if how.get("symmetric", True) else unpacked(folder)
    ids = torch.arange(8).reshape(1, 8)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits)
    assert {p.dtype for p in theirs.model.layers[0].mlp.up_proj.parameters()} >= {torch.bfloat16}
    # They are in full there.
    assert theirs.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16


def test_a_converted_awq_checkpoint_answers_with_the_weights_that_autoawq_stored(tmp_path):
    """Worked out by hand: (integer - zero point) x scale, in groups of 32."""
    folder = from_awq(save_awq(tmp_path / "published"), tmp_path / "converted")
    loaded, effective = quantized(f"fp32+awq:{folder}", "arch:tiny-llama")
    assert (effective.quantized.converted, effective.quantized.stored_bytes) == (
        14,
        effective.quantized.analytic,
    )
    by_hand = load(plan_of("fp32", "arch:tiny-llama")).model
    for path, layer in by_hand.named_modules():
        if isinstance(layer, torch.nn.Linear) and path != "lm_head":
            q, zero, scale = (
                t.repeat_interleave(n, -1)
                for t, n in zip(rounded(layer.weight, 32), (1, 32, 32), strict=True)
            )
            layer.weight = torch.nn.Parameter((q - zero) * scale)
    ids = torch.arange(8).reshape(1, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.model(ids).logits, by_hand(ids).logits, rtol=1e-3, atol=1e-4
        )


def test_a_checkpoint_in_autoawq_s_own_format_is_refused_with_the_converter(tmp_path):
    """It is there, and no loader for it."""
    folder = save_awq(tmp_path)
    with pytest.raises(LoadError, match=r"is in 'awq' format.*AutoAWQConverter"):
        load(llama_plan(f"awq:{folder}"))


@pytest.mark.skipif(not os.environ.get("LLMPERF_NIGHTLY"), reason="a minute: nightly")
def test_a_checkpoint_passes_the_checks_of_every_engine(tmp_path):
    """As any other model."""
    folder = save_quantized(tmp_path / "q")
    check_engine(TransformersEngine(), llama_plan(f"bf16+w4a16:{folder}"), directory=tmp_path)


def unpacked(folder):
    """The model with every layer's packed weight unpacked for good.

    transformers cannot load packed zero points itself.
    """
    model = quantized(f"bf16+w4a16:{folder}", "arch:tiny-llama")[0].model
    for path, layer in [
        (path, layer) for path, layer in model.named_modules() if hasattr(layer, "stored_format")
    ]:
        own = {name: tensor.data for name, tensor in layer.named_parameters()}
        plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
        plain.weight = torch.nn.Parameter(
            layer._compressor.decompress(own, layer.quantization_scheme)["weight"]
        )
        model.set_submodule(path, plain)
    return model


def llama_plan(strategy):
    return plan_of(strategy, "arch:tiny-llama")


def edit(folder, change):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config["quantization_config"])
    file.write_text(json.dumps(config))


def test_a_config_that_disagrees_with_its_tensors_is_a_load_error(tmp_path):
    """Groups of 64 in the config, of 32 in the file."""
    folder = save_quantized(tmp_path)
    edit(folder, lambda config: config["config_groups"]["group_0"]["weights"].update(group_size=64))
    with pytest.raises(
        LoadError,
        match=r"config says 4-bit weights in groups of 64, .*"
        r"weight_scale is \[64, 5\], 160 inputs need \[64, 3\]",
    ):
        load(llama_plan(f"w4a16:{folder}"))


def test_a_checkpoint_whose_tensors_are_missing_is_a_load_error(tmp_path):
    """Packed weights renamed away: the layer is named."""
    folder = save_quantized(tmp_path)
    file = next(folder.glob("*.safetensors"))
    tensors = load_file(file)
    tensors["elsewhere"] = tensors.pop("model.layers.0.mlp.up_proj.weight_packed")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(
        LoadError, match=r"model.layers.0.mlp.up_proj.weight_packed is missing \(1 of 14 layers\)"
    ):
        load(llama_plan(f"w4a16:{folder}"))


def test_a_checkpoint_that_its_config_calls_unpacked_is_a_load_error(tmp_path):
    """quantization_status 'frozen' means float weights that are rounded at each pass."""
    folder = save_quantized(tmp_path)
    edit(folder, lambda config: config.update(quantization_status="frozen"))
    with pytest.raises(
        LoadError,
        match=r"28 tensors of LlamaForCausalLM are missing: model\.layers\.0\.mlp\.down_proj",
    ):
        load(llama_plan(f"w4a16:{folder}"))


def test_a_checkpoint_is_judged_by_what_is_there(tmp_path):
    """As 'gptq' and as 'w4a16' it is the same format; neither promise is kept by a plain model."""
    folder = save_quantized(tmp_path)
    effective = describe(load(llama_plan(f"bf16+gptq:{folder}")))
    require_in_effect(
        effective,
        parse(f"bf16+gptq:{folder}").promises(llama_plan(f"bf16+gptq:{folder}")),
        "loaded",
    )
