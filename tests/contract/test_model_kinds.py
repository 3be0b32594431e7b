"""The kinds of models that people run: each loads, decodes, and has its cost counted."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", exc_type=ModuleNotFoundError)

from model_kinds import by_hand
from support.kinds import tiny
from support.quantizing import plan_of

from pytest_llmperf.engines.loading import arch
from pytest_llmperf.engines.models.architectures import ARCHITECTURES
from pytest_llmperf.engines.models.names import parameter_count, predict
from pytest_llmperf.engines.transformers.load import load
from pytest_llmperf.engines.transformers.loaded import TransformersModel
from pytest_llmperf.strategies import parse, require_in_effect
from pytest_llmperf.workloads import Decode

TINY = ("tiny-mixtral", "tiny-window", "tiny-mamba2", "tiny-hybrid")
TRUE_SIZE = ("mixtral-8x7b", "mistral-7b-window", "gemma-3-12b", "mamba2-2.7b", "falcon-h1-7b")
WORK = Decode(batch=1, prompt_tokens=40, new_tokens=5)
BF16_BYTES = 2
H200_BYTES = 139 * 2**30


@pytest.mark.parametrize("name", [*TINY, *TRUE_SIZE])
def test_an_architecture_has_the_parameters_that_its_row_says(name):
    """Counted on a model without values; tied ones once."""
    model = arch.on_meta(arch.config_of(name), torch.bfloat16, None)
    assert parameter_count(ARCHITECTURES[name]) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", TRUE_SIZE)
def test_those_of_true_size_fit_one_gpu(name):
    assert parameter_count(ARCHITECTURES[name]) * BF16_BYTES < 0.8 * H200_BYTES


def assert_by_hand(name, step, request):
    """The hand calculation of the benchmark, from the row's dimensions alone, says the same."""
    row = ARCHITECTURES[name]
    hand = by_hand(row.model_type, row.config, WORK.prompt_tokens + WORK.new_tokens / 2)
    assert step.weight_bytes_read == hand.step_weights
    assert step.cache_bytes(request) == hand.cache
    assert step.step_flops(request) == hand.flops


@pytest.mark.parametrize("strategy", ["fp32", "bf16", "fp32+static-cache"])
@pytest.mark.parametrize("name", TINY)
def test_a_kind_decodes_and_its_step_is_counted(name, strategy):
    plan = plan_of(strategy, f"arch:{name}")
    loaded = load(plan)
    assert sum(p.nbytes for p in loaded.model.parameters()) == predict(plan)
    model = TransformersModel(loaded)
    ran = model.run(WORK, 0)
    step = ran.step
    if strategy == "bf16":
        assert_by_hand(name, step, ran.trace.requests[0])
    assert 0 < step.weight_bytes_read < predict(plan)
    assert bool(step.windows) == (name == "tiny-window")
    assert bool(step.state_bytes) == (name in {"tiny-mamba2", "tiny-hybrid"})
    assert model.read_memory(WORK, 1).kv_cache > 0


def test_a_value_that_the_whole_model_sets_in_its_layers_is_set():
    """Falcon-H1 scales its projections by a vector that no layer computes by itself."""
    model = load(plan_of("fp32", "arch:tiny-hybrid")).model
    expected = transformers.AutoModelForCausalLM.from_config(model.config)
    for ours, theirs in zip(model.model.layers, expected.model.layers, strict=True):
        assert torch.equal(ours.mamba.mup_vector, theirs.mamba.mup_vector)


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory):
    """The folder of a small llama without a tokenizer, whose head is its own."""
    folder = tmp_path_factory.mktemp("plain")
    tiny("llama").save_pretrained(folder)
    return str(folder)


ADAPTERS = {
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 6]},
}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings(
    "ignore:Setting `save_embedding_layers`:UserWarning"
)  # peft's words about saving embeddings
@pytest.mark.parametrize("where", list(ADAPTERS))
def test_an_adapter_off_the_beaten_track_is_in_effect_and_counted_once(
    plain_folder, tmp_path, where
):
    """peft wraps the layer: it is multiplied with once, whatever wraps it."""
    peft = pytest.importorskip("peft")
    plain = load(plan_of("fp32", plain_folder))
    before = TransformersModel(plain).run(WORK, 0).step
    model = transformers.AutoModelForCausalLM.from_pretrained(plain_folder)
    config = peft.LoraConfig(r=4, init_lora_weights=False, **ADAPTERS[where])
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    strategy = f"fp32+lora:{tmp_path / 'adapter'}"
    loaded = load(plan_of(strategy, plain_folder))
    adapted = TransformersModel(loaded)
    step = adapted.run(WORK, 0).step
    require_in_effect(adapted.describe().effective, parse(strategy).promises(loaded.plan), "loaded")
    added = step.flops_per_token - before.flops_per_token
    assert added == 2 * loaded.adapters.elements()
    assert 0 < step.weight_bytes_read - before.weight_bytes_read < 0.05 * before.weight_bytes_read


@pytest.fixture(scope="module")
def with_vision(tmp_path_factory):
    """The folder of a model for texts and images."""
    folder = tmp_path_factory.mktemp("vision")
    tiny("gemma3-vision").save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("strategy", ["fp32", "bf16", "bf16+int8wo"])
def test_a_model_for_images_is_measured_on_texts(with_vision, strategy):
    pytest.importorskip("torchao")
    loaded = load(plan_of(strategy, with_vision))
    step = TransformersModel(loaded).run(WORK, 0).step
    tower = sum(
        parameter.nbytes
        for name, parameter in loaded.model.named_parameters()
        if "vision_tower" in name
    )
    assert tower > 0
    assert step.weight_bytes_read < sum(p.nbytes for p in loaded.model.parameters()) - tower
