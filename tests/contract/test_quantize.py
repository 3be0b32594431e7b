"""Quantized models as they are loaded: which layers, in how many bytes, with which answers.

And what goes wrong.
"""

from __future__ import annotations

import os
import sys

import pytest
from msgspec import structs

from pytest_llmperf.core.quantization import scheme_of
from pytest_llmperf.engines.models.names import predict
from pytest_llmperf.errors import LoadError, NotInEffect
from pytest_llmperf.strategies import parse, require_in_effect
from pytest_llmperf.testing import check_engine

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", exc_type=ModuleNotFoundError)
bitsandbytes = pytest.importorskip("bitsandbytes")
pytest.importorskip("torchao")

from support.quantizing import (
    LLAMA_SHAPES,
    plain_from_pretrained,
    plan_of,
    quantized,
    save_llama,
)
from torch import nn

from pytest_llmperf.engines.transformers import TransformersEngine
from pytest_llmperf.engines.transformers.accounting.cost import weight_bytes_read
from pytest_llmperf.engines.transformers.effective import describe
from pytest_llmperf.engines.transformers.load import load

STRATEGIES = [
    "int8",
    "bf16+int8",
    "bf16+int8:0",
    "nf4",
    "bf16+nf4",
    "fp16+fp4",
    "nf4:double",
    "bf16+int8wo",
    "int4wo:32",
    "bf16+fp8:wo",
]
FALCON_SHAPES = [(96, 64), (64, 64), (256, 64), (64, 256)] * 2


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder with a small llama."""
    return str(save_llama(tmp_path_factory.mktemp("llama")))


@pytest.fixture(params=["folder", "arch"])
def model(request):
    """A llama read by from_pretrained, and a falcon built module by module.

    Each comes with its name and the shapes that are converted.
    """
    return (
        (request.getfixturevalue("llama"), LLAMA_SHAPES)
        if request.param == "folder"
        else ("arch:tiny-falcon", FALCON_SHAPES)
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_linear_layer_but_the_head_is_quantized_in_exactly_the_bytes_of_its_shape(
    strategy, model
):
    """By count, by bytes of each storage dtype, and as predicted before loading."""
    name, shapes = model
    loaded, effective = quantized(strategy, name)
    found, head = effective.quantized, loaded.model.lm_head
    assert (found.converted, found.layers) == (len(shapes), len(shapes) + 1)
    assert found.stored_bytes == found.analytic
    assert found.converted_elements == sum(outputs * inputs for outputs, inputs in shapes)
    assert [(left.example, left.declared, left.elements) for left in found.left_out] == [
        ("lm_head", True, head.weight.numel())
    ]
    parameters = sum(group.bytes for group in effective.tensors if group.kind == "parameter")
    packed_again = (
        "bfloat16" in found.stored_bytes
        and scheme_of(loaded.plan.quantization).row.library == "bitsandbytes"
    )
    assert parameters == predict(loaded.plan) or (
        packed_again and 0.9 * predict(loaded.plan) < parameters < predict(loaded.plan)
    )
    assert (
        parameters + sum(g.bytes for g in effective.tensors if g.kind == "buffer")
        == effective.weights_bytes
    )
    assert 0 < weight_bytes_read(loaded.model, 1) <= parameters


@pytest.mark.real_model
@pytest.mark.skipif(not os.environ.get("LLMPERF_NIGHTLY"), reason="up to a minute each: nightly")
@pytest.mark.parametrize("strategy", ["int8", "bf16+nf4", "bf16+fp4", "int8wo", "int4wo", "fp8:wo"])
def test_the_real_model_is_quantized_in_exactly_the_bytes_of_its_shapes_and_still_writes_english(
    strategy,
):
    """210 of its 211 linear layers, 79 % of their weights; the head is tied to the embedding."""
    loaded, effective = quantized(strategy, "smollm2-135m")
    found = effective.quantized
    assert (found.converted, found.layers, found.converted_elements) == (210, 211, 106_168_320)
    assert found.stored_bytes == found.analytic
    out = loaded.model.generate(
        **loaded.tokenizer("The capital of France is", return_tensors="pt"), max_new_tokens=4
    )
    assert "Paris" in loaded.tokenizer.decode(out[0])


@pytest.mark.skipif(
    not os.environ.get("LLMPERF_NIGHTLY"),
    reason="a minute each: nightly, and on every engine change",
)
@pytest.mark.parametrize("strategy", ["bf16+int8", "nf4:double", "bf16+int8wo", "int4wo:32"])
def test_a_quantized_model_passes_the_checks_of_every_engine(strategy, tmp_path):
    """Determinism, memory, cost and agreement with itself; runs change nothing in the report."""
    check_engine(TransformersEngine(), plan_of(strategy), directory=tmp_path)


@pytest.mark.parametrize("strategy", ["int8", "bf16+nf4", "int8wo"])
def test_a_quantized_model_answers_nearly_as_the_full_one(strategy):
    """Logits correlate; they are not equal, or nothing was quantized."""
    full = load(plan_of("fp32")).model
    ids = torch.arange(8).reshape(1, 8)
    reference = full(ids).logits.flatten()
    logits = quantized(strategy)[0].model(ids).logits.float().flatten()
    assert not torch.equal(logits, reference)
    assert torch.corrcoef(torch.stack([logits, reference]))[0, 1] > 0.95


@pytest.mark.parametrize(
    ("strategy", "quantization"),
    [
        ("bf16+int8", {"load_in_8bit": True}),
        (
            "bf16+nf4",
            {
                "load_in_4bit": True,
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_compute_dtype": "bfloat16",
            },
        ),
        (
            "bf16+fp4:double",
            {
                "load_in_4bit": True,
                "bnb_4bit_quant_type": "fp4",
                "bnb_4bit_compute_dtype": "bfloat16",
                "bnb_4bit_use_double_quant": True,
            },
        ),
    ],
)
def test_the_layers_are_those_that_transformers_makes(strategy, quantization, llama):
    """Equal bytes, layer for layer, and equal logits.

    This engine quantizes one by one the layers that transformers quantizes while loading.
    """
    ours = quantized(strategy, llama)[0].model
    theirs = plain_from_pretrained(
        llama, quantization_config=transformers.BitsAndBytesConfig(**quantization)
    )
    ids = torch.arange(8).reshape(1, 8)
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)
    for name, weight in theirs.named_parameters():
        assert torch.equal(ours.get_parameter(name).data, weight.data), name


# What goes wrong


def test_one_layer_left_in_16_bit_is_an_error_with_its_count_and_name():
    """The negative control of 'every layer'."""
    plan = plan_of("bf16+nf4")
    loaded = load(plan)
    loaded.model.transformer.h[1].mlp.dense_h_to_4h = nn.Linear(
        64, 256, bias=False, dtype=torch.bfloat16
    )
    left = r"1 Linear: its weights are bfloat16, like transformer.h.1.mlp.dense_h_to_4h"
    message = rf"'nf4' is not in effect: 7 of 8 linear layers are 4-bit \({left}\)"
    with pytest.raises(NotInEffect, match=message):
        require_in_effect(describe(loaded), parse(plan.strategy).promises(plan), "loaded")


def test_layers_that_the_group_size_does_not_divide_are_an_error_that_says_so():
    """torchao passes over them without an error: 64 inputs, groups of 128."""
    plan = plan_of("int4wo:128")
    with pytest.raises(
        NotInEffect,
        match=r"2 of 8 linear layers are 4-bit \(6 FalconLinear: "
        r"64 inputs are no multiple of the group size 128",
    ):
        require_in_effect(describe(load(plan)), parse(plan.strategy).promises(plan), "loaded")


def test_another_format_than_asked_for_is_an_error():
    """fp4 where nf4 was promised."""
    effective = quantized("fp4")[1]
    plan = plan_of("nf4")
    with pytest.raises(NotInEffect, match="stored as fp4, asked for nf4"):
        require_in_effect(effective, parse("nf4").promises(plan), "loaded")


def test_shapes_that_bitsandbytes_cannot_run_on_this_cpu_are_an_error_that_says_so(monkeypatch):
    """160 inputs on a CPU with AVX512-BF16: the first forward pass would fail in the library."""
    monkeypatch.setattr(
        "pytest_llmperf.engines.transformers.quantize.with_bitsandbytes.has_avx512bf16",
        lambda: True,
    )
    plan = plan_of("nf4", "arch:tiny-llama")
    message = r"12 of 14 linear layers are 4-bit \(2 Linear: 64 x 160 is not a multiple of 32 x 64"
    with pytest.raises(NotInEffect, match=message):
        require_in_effect(describe(load(plan)), parse(plan.strategy).promises(plan), "loaded")


def test_scales_that_went_missing_show_in_the_bytes():
    """absmax dropped to half: the bytes do not follow from the shapes any more."""
    plan = plan_of("bf16+nf4")
    effective = describe(load(plan))
    held = {"uint8": effective.quantized.stored_bytes["uint8"]}
    wrong = structs.replace(
        effective, quantized=structs.replace(effective.quantized, stored_bytes=held)
    )
    with pytest.raises(NotInEffect, match="follow from their shapes"):
        require_in_effect(wrong, parse(plan.strategy).promises(plan), "loaded")


@pytest.mark.parametrize(
    ("part", "module"), [("int8", "with_bitsandbytes"), ("int8wo", "with_torchao")]
)
def test_a_library_that_the_worker_lacks_is_named_before_the_weights_are_read(
    part, module, monkeypatch
):
    """Where the pytest process has it and the worker's interpreter has not."""
    name = f"pytest_llmperf.engines.transformers.quantize.{module}"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        LoadError, match=rf"strategy part '{part}' needs .* pip install 'pytest-llmperf\["
    ):
        load(plan_of(part))


@pytest.mark.nightly
def test_compiled_decoding_reads_quantized_weights():
    """One graph, the same first token as eager decoding."""
    from pytest_llmperf.workloads import Decode

    session = TransformersEngine().open(plan_of("bf16+int8wo+static-cache+compile"))
    ran = session.run(Decode(batch=1, prompt_tokens=8, new_tokens=4), 0)
    eager = (
        TransformersEngine()
        .open(plan_of("bf16+int8wo"))
        .run(Decode(batch=1, prompt_tokens=8, new_tokens=4), 0)
    )
    assert session.describe().effective.compiled_graphs >= 1
    assert ran.step.weight_bytes_read == eager.step.weight_bytes_read
    assert ran.outputs_hash == eager.outputs_hash
