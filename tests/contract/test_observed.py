"""What a model holds and does is counted from its tensors and calls, wherever they are."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", exc_type=ModuleNotFoundError)

from support import odd_models
from support.odd_models import (
    ALL_ELEMENTS,
    ATTENTION_ELEMENTS,
    LINEAR_ELEMENTS,
    MLP_ELEMENTS,
    TABLES_BYTES,
    effective_of,
    loaded_under,
)

from pytest_llmperf.engines.transformers.effective import parameter_tensors, tensor_groups
from pytest_llmperf.engines.transformers.observed.holdings import distinct_spans, storage_key
from pytest_llmperf.engines.transformers.quantize.storage import inner_tensors
from pytest_llmperf.errors import NotInEffect

MLPS = 4 * MLP_ELEMENTS
ELSEWHERE = ("in_lists", "in_closures", "in_partials", "in_hidden_modules")


def bytes_of(effective, kind):
    return sum(group.bytes for group in effective.tensors if group.kind == kind)


@pytest.mark.parametrize("strategy", ["fp32", "bf16"])
def test_an_ordinary_model_holds_what_its_parameters_and_tables_are(strategy):
    """The control of all that follows: nothing else, and nothing to say."""
    effective = effective_of(strategy, "plain")
    size = 4 if strategy == "fp32" else 2
    assert effective.weights_bytes == ALL_ELEMENTS * size + TABLES_BYTES
    assert effective.also_read_bytes == 0
    assert (effective.notes, effective.other_matrices) == ((), ())
    (computes,) = effective.computes
    assert (computes.modules, computes.share, computes.linear) == (29, 1.0, True)
    assert effective.attention == "sdpa"


@pytest.mark.parametrize("name", ["in_buffers", *ELSEWHERE])
def test_a_dtype_is_promised_of_matrices_that_no_parameter_holds(name):
    """The MLPs are in float32 wherever they are: bf16 is not in effect, fp32 is."""
    with pytest.raises(NotInEffect, match=r"12 \w+\.\w+, 60 % of .* in float32.* are not bfloat16"):
        effective_of("bf16", name)
    effective = effective_of("fp32", name)
    assert effective.weights_bytes == ALL_ELEMENTS * 4 + TABLES_BYTES
    assert effective.also_read_bytes == MLPS * 4
    assert sum(group.elements for group in effective.other_matrices) == MLPS


@pytest.mark.parametrize("name", ELSEWHERE)
def test_memory_in_attributes_is_named(name):
    """With its bytes and the path of the first."""
    effective = effective_of("fp32", name)
    assert bytes_of(effective, "attribute") == MLPS * 4
    (note,) = effective.notes
    assert "0.393 MB of float32 lie in attributes" in note
    assert "model.layers.0.mlp.gate_proj" in note


@pytest.mark.parametrize("name", ["copies_beside", "copies_in_a_class", "gradients"])
def test_copies_that_nothing_uses_are_memory_and_break_no_promise(name):
    """The blocks are in bfloat16; what lies beside them is named."""
    effective = effective_of("bf16", name)
    assert effective.weights_bytes == ALL_ELEMENTS * (2 + 4) + TABLES_BYTES
    assert effective.also_read_bytes == 0
    assert len(effective.notes) == 1


def test_a_slice_holds_all_of_its_storage():
    """Three quarters are held that nothing reads."""
    loaded, effective, _ = loaded_under("fp32", "sliced")
    assert bytes_of(effective, "rest of a storage") == 3 * LINEAR_ELEMENTS * 4
    assert effective.weights_bytes == (ALL_ELEMENTS + 3 * LINEAR_ELEMENTS) * 4 + TABLES_BYTES
    assert sum(t.nbytes for t in parameter_tensors(loaded.model)) == ALL_ELEMENTS * 4
    assert "lie around tensors that are parts of larger storages" in effective.notes[0]


@pytest.mark.parametrize(("name", "more"), [("expanded", 4), ("views", 0)])
def test_views_and_expanded_tensors_are_no_memory(name, more):
    """One element of 400 million; q, k and v once, in memory and in what a step reads."""
    loaded, effective, promises = loaded_under("fp32", name)
    assert effective.weights_bytes == ALL_ELEMENTS * 4 + TABLES_BYTES + more
    assert sum(t.nbytes for t in parameter_tensors(loaded.model)) == ALL_ELEMENTS * 4
    assert effective.other_matrices == ()
    assert all(promise.broken(effective) is None for promise in promises)


def test_packed_layers_of_another_library_are_measured_as_they_are():
    """Four bits a weight and a scale a row: under 'auto' in effect, under fp32 not."""
    loaded, effective, promises = loaded_under("auto", "packed")
    assert [promise.broken(effective) for promise in promises] == [None, None]
    assert effective.stored_quantized == "the model's factory"
    rows = 4 * (2 * 128 + 64)
    stored = MLPS // 2 + rows * 2 + 12 * 8 * 4
    rest = (ALL_ELEMENTS - MLPS) * 4
    assert effective.weights_bytes == rest + stored + TABLES_BYTES
    assert sum(t.nbytes for t in parameter_tensors(loaded.model)) == rest + stored
    with pytest.raises(NotInEffect, match="12 of 29 linear layers hold int32 weights"):
        effective_of("fp32", "packed")


def test_packed_layers_that_do_not_say_their_shape_are_seen_by_their_use():
    """They have no in_features, and are found because they take part in a product."""
    effective = effective_of("auto", "packed_without_shape")
    (group,) = effective.other_matrices
    assert (group.cls, group.dtype, group.holder) == ("Packed.qweight", "int32", "buffer")
    assert (group.tensors, group.bytes) == (12, MLPS // 2)
    assert effective.also_read_bytes == MLPS // 2


def test_the_rest_of_a_mapped_file_is_not_held(tmp_path):
    """A rank maps whole files and uses its part; a part of plain memory holds the rest."""
    whole = torch.arange(4096.0)
    (tmp_path / "file").write_bytes(whole.numpy().tobytes())
    path = str(tmp_path / "file")
    mapped = torch.from_file(path, shared=False, size=4096, dtype=torch.float32)
    layer = torch.nn.Module()
    layer.register_buffer("part", mapped[:1024])
    assert [group.bytes for group in tensor_groups(layer)] == [4096]
    layer.register_buffer("part", whole[:1024])
    assert {group.kind: group.bytes for group in tensor_groups(layer)} == {
        "buffer": 4096,
        "rest of a storage": 3 * 4096,
    }


def test_a_wrapper_has_the_storage_of_what_is_inside():
    """Quantized weights and sharded tensors have none of their own."""
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    layer = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False))
    quantize_(layer, Int8WeightOnlyConfig())
    inner = next(inner_tensors(layer[0].weight))
    assert storage_key(layer[0].weight) == storage_key(inner)
    assert storage_key(inner) != storage_key(inner.clone())


def test_two_tensors_in_one_memory_are_one():
    """The control of the account itself: whole, part, part beside it, and the same again."""
    whole = torch.zeros(8, 4)
    assert sum(t.nbytes for t in distinct_spans([whole[:4], whole[4:], whole, whole.T])) == 128
    assert sum(t.nbytes for t in distinct_spans([whole[:4], whole[4:]])) == 128
    assert sum(t.nbytes for t in distinct_spans([whole[:4], whole[:4].T])) == 64
    assert sum(t.nbytes for t in distinct_spans([whole, whole.clone()])) == 256


def test_compute_is_looked_at_in_every_layer():
    """Eight layers give out float32, four compute in it without giving it out."""
    with pytest.raises(NotInEffect) as caught:
        effective_of("bf16", "wide_mlps")
    assert "8 linear layers compute in float32" in str(caught.value)
    assert "4 linear layers compute in float32 and give out bfloat16" in str(caught.value)
    assert effective_of("fp32", "wide_mlps").compute_dtype == "float32"


def test_one_layer_in_another_dtype_is_enough():
    """Of 29; it is named."""
    with pytest.raises(NotInEffect, match=r"1 linear layers .*model\.layers\.2\.mlp\.down_proj"):
        effective_of("bf16", "one_wide_layer")


def test_a_router_in_float32_is_none(monkeypatch):
    """Its weights are one in a hundred: as architectures have it. A large one is named."""
    effective = effective_of("bf16", "with_routers")
    assert effective.compute_dtype == "bfloat16"
    assert [group.modules for group in effective.computes if group.dtype == "float32"] == [4]
    real = odd_models.Routed.forward

    def twenty_times(self, x):
        for _ in range(20):
            out = real(self, x)
        return out

    monkeypatch.setattr(odd_models.Routed, "forward", twenty_times)
    monkeypatch.setattr(odd_models.Routed, "__init__", _with_a_large_router)
    with pytest.raises(NotInEffect, match="4 modules compute in float32"):
        effective_of("bf16", "with_routers")


def _with_a_large_router(self, mlp):
    torch.nn.Module.__init__(self)
    self.mlp = mlp
    self.router = torch.nn.Parameter(torch.ones(64, 64))


@pytest.mark.parametrize(
    ("asked", "name", "reason"),
    [
        ("sdpa", "three_written", r"eager in 3 of 4 blocks .*, sdpa in 1 of 4"),
        ("sdpa", "one_without_softmax", r"eager in 1 of 4 blocks \(like model\.layers\.2\)"),
        ("eager", "all_by_torch", "attention is sdpa, asked for eager"),
        (
            "eager",
            "three_written",
            r"sdpa in 1 of 4 blocks \(like model\.layers\.2\), asked for eager",
        ),
    ],
)
def test_attention_is_seen_block_by_block(asked, name, reason):
    """Calls decide, not the configuration, and each block counts."""
    with pytest.raises(NotInEffect, match=reason):
        effective_of(f"fp32+{asked}", name)


def test_the_elements_of_the_test_are_those_of_the_model():
    """The hand computation above holds."""
    model = odd_models.plain()
    assert sum(p.numel() for p in model.parameters()) == ALL_ELEMENTS
    attention = model.model.layers[0].self_attn
    assert sum(p.numel() for p in attention.parameters()) == ATTENTION_ELEMENTS
