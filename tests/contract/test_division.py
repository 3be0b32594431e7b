"""What a tensor-parallel plan divides, from models without weights."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", exc_type=ModuleNotFoundError)

from msgspec import structs

from pytest_llmperf.core.effective import Effective, Shard
from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.engines.transformers.parallel.library import _division, _require_plan
from pytest_llmperf.errors import LoadError
from pytest_llmperf.strategies import parse

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
}
PLAN = LoadPlan(model=ModelRef(name="m", kind="folder", location="m"), tp=2, tp_by="library")
OTHERS = {"deepseek_v3": {"num_key_value_heads": 4}}


def without_weights(kind):
    config = transformers.AutoConfig.for_model(kind, **SHAPE | OTHERS.get(kind, {}))
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("kind", ["diffllama", "gpt_oss", "lfm2"])
def test_a_plan_that_leaves_the_blocks_whole_is_refused(kind):
    """Before weights are read, with what it names and what it leaves."""
    bare = without_weights(kind)
    assert _division(bare).share_of_blocks() < 0.3
    with pytest.raises(
        LoadError, match=r"divides \d+% of the matrices of its blocks .*every rank of tp2 .*fsdpN"
    ):
        _division(bare).require_blocks_divided("tp2")


@pytest.mark.parametrize("kind", ["llama", "mixtral", "qwen3_moe"])
def test_a_plan_that_divides_the_blocks_is_taken(kind):
    """Whatever the layers are called."""
    bare = without_weights(kind)
    assert _division(bare).share_of_blocks() > 0.95
    _require_plan(PLAN, bare)


def test_what_a_plan_leaves_whole_is_named_with_its_bytes():
    """A llama's plan divides all but what is no matrix, until it lacks a line."""
    bare = without_weights("llama")
    assert set(_division(bare).left_whole()) <= {"model.embed_tokens.weight"}
    division = _division(bare)
    less = type(division)(bare, division.divided - {"model.layers.*.mlp.down_proj"})
    assert less.left_whole()["model.layers.*.mlp.down_proj.weight"] == 2 * 64 * 128 * 4
    assert less.share_of_blocks() == pytest.approx(1 - 64 * 128 / (2 * 64 * 96 + 3 * 64 * 128))


def _rank_of_two(bare, whole=()):
    """What rank 0 of two holds of a llama, but for the layers that it keeps `whole`."""
    held = copy.deepcopy(bare)
    division = _division(bare)
    for path, parameter in list(held.named_parameters()):
        if division._divides(path) and parameter.dim() > 1 and not path.startswith(whole or "-"):
            part = torch.empty((parameter.shape[0] // 2, parameter.shape[1]), device="meta")
            held.get_submodule(path.rpartition(".")[0]).weight = torch.nn.Parameter(part)
    return held


def test_a_matrix_that_a_rank_holds_whole_against_the_plan_breaks_the_promise():
    """It is named, and the sum of bytes alone would not show a small one."""
    bare = without_weights("llama")
    division = _division(bare)
    assert division.larger_than_planned(_rank_of_two(bare), 2) == []
    larger = division.larger_than_planned(_rank_of_two(bare, "model.layers.1.mlp.up_proj"), 2)
    assert larger == ["model.layers.1.mlp.up_proj.weight holds 32768 B, 16384 B are its share"]
    shard = Shard(
        rank=0,
        device="cpu",
        backend="gloo",
        bytes=50,
        whole_bytes=100,
        stage_bytes=100,
        kept_bytes=0,
        holds="tp 1 of 2",
    )
    parsed = parse("fp32+tp2")
    promise = next(p for p in parsed.promises(parsed.apply(PLAN)) if "its share" in p.text)
    shards = (shard, structs.replace(shard, rank=1))
    assert promise.broken(effective(shards)) is None
    broken = promise.broken(effective((structs.replace(shard, larger=tuple(larger)), shards[1])))
    assert "rank 0: model.layers.1.mlp.up_proj.weight holds 32768 B" in broken


def effective(shards):
    return Effective(
        engine="transformers",
        model_class="M",
        tensors=(),
        linears=(),
        compute_dtype="float32",
        autocast_dtype=None,
        checkpoint_dtype="float32",
        attention="sdpa",
        cache="",
        compile_mode=None,
        compiled_graphs=0,
        decode_loop="",
        padding_side="left",
        device="cpu",
        ranks=2,
        shards=shards,
    )
