"""Loading by the transformers engine: every kind of model, in the dtype that was asked for, or an error that helps."""

from __future__ import annotations

import json
import sys
import textwrap
from types import SimpleNamespace

import pytest

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.names import model_ref, predict
from pytest_llmperf.errors import LoadError, UsageError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", exc_type=ModuleNotFoundError)

from pytest_llmperf.engines.loading import arch
from pytest_llmperf.engines.models.content import file_sha256
from pytest_llmperf.engines.transformers import checkpoint, factory
from pytest_llmperf.engines.transformers.load import load
from pytest_llmperf.instruments.ranks import torch_device

ARCHS = ("arch:tiny-llama", "arch:tiny-falcon")
DTYPES = ("float32", "float16", "bfloat16")


def plan_for(name, **fields):
    return LoadPlan(model=model_ref(str(name)), **fields)


def dtypes(model):
    return {str(p.dtype).removeprefix("torch.") for p in model.parameters()}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads another's cache."""
    monkeypatch.setenv("LLMPERF_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """A tiny llama saved in bfloat16, without a tokenizer."""
    model = load(plan_for("arch:tiny-llama", weights_dtype="bfloat16")).model
    model.generation_config = transformers.GenerationConfig(
        do_sample=True,
        temperature=0.6,
        repetition_penalty=1.3,
        pad_token_id=0,
    )
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("name", ARCHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_architecture_is_made_in_the_dtype_asked_for(name, dtype):
    """Every parameter, and as many bytes as were predicted."""
    plan = plan_for(name, weights_dtype=dtype)
    loaded = load(plan)
    assert dtypes(loaded.model) == {dtype}
    assert sum(p.numel() * p.element_size() for p in loaded.model.parameters()) == predict(plan)
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())


@pytest.mark.parametrize("name", ARCHS)
def test_one_seed_is_one_model_in_every_dtype(name):
    """16-bit weights are the rounded 32-bit ones; another seed is another model."""
    full, half = (load(plan_for(name, weights_dtype=dtype)) for dtype in ("float32", "bfloat16"))
    other = load(plan_for(name, weights_dtype="float32", seed=1))
    for key, value in full.model.state_dict().items():
        assert torch.equal(value.to(torch.bfloat16), half.model.state_dict()[key])
    weight = "lm_head.weight"
    assert not torch.equal(full.model.state_dict()[weight], other.model.state_dict()[weight])
    assert full.content_hash == half.content_hash != other.content_hash


@pytest.mark.parametrize("name", ARCHS)
def test_an_architecture_is_what_transformers_would_build(name):
    """The same names, shapes, tied weights, rotary tables, ones in norms, and spread of the weights."""
    loaded = load(plan_for(name, weights_dtype="bfloat16"))
    model, config = loaded.model, loaded.model.config
    ours, theirs = (
        dict(m.named_parameters())
        for m in (model, transformers.AutoModelForCausalLM.from_config(config))
    )
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == config.tie_word_embeddings
    reference = transformers.AutoModelForCausalLM.from_config(config)
    for key, buffer in reference.named_buffers():
        assert torch.equal(dict(model.named_buffers())[key], buffer)
        assert buffer.dtype == torch.float32
    norms = [p for k, p in ours.items() if "norm" in k and k.endswith("weight")]
    assert norms
    assert all(torch.equal(p, torch.ones_like(p)) for p in norms)
    assert model.get_input_embeddings().weight.float().std().item() == pytest.approx(
        config.initializer_range, rel=0.05
    )


def test_loading_an_architecture_leaves_the_random_state_alone():
    """Prompts drawn after loading do not depend on the model."""
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    load(plan_for("arch:tiny-llama"))
    assert torch.equal(torch.rand(3), expected)


def test_weights_that_wait_elsewhere_are_drawn_on_the_device_and_leave_it_module_by_module():
    """Drawn where they wait, an offloaded model would be another model: the generators of host and GPU differ."""
    made = {"dtype": torch.float32, "device": torch.device("cpu"), "seed": 0, "attention": None}
    left = arch.build("tiny-llama", **made, home=torch.device("meta"))
    assert {tensor.device.type for tensor in (*left.parameters(), *left.buffers())} == {"meta"}
    here = arch.build("tiny-llama", **made, home=torch.device("cpu")).state_dict()
    alike = arch.build("tiny-llama", **made).state_dict()
    assert all(torch.equal(here[name], alike[name]) for name in alike)


def test_a_tensor_that_gets_no_initial_value_is_an_error(monkeypatch):
    """Garbage weights would be measured as if they were a model."""
    monkeypatch.setattr(transformers.PreTrainedModel, "_init_weights", lambda *_: None)
    with pytest.raises(
        LoadError, match=r"'llama': transformers gives model\.embed_tokens\.weight no initial value"
    ):
        arch.build(
            "tiny-llama", dtype=torch.float32, device=torch.device("cpu"), seed=0, attention=None
        )


def test_an_attention_implementation_is_passed_on():
    """Both for architectures and for checkpoints."""
    assert (
        load(plan_for("arch:tiny-llama", attention="eager")).model.config._attn_implementation
        == "eager"
    )
    assert (
        load(plan_for("arch:tiny-llama", attention="sdpa")).model.config._attn_implementation
        == "sdpa"
    )


@pytest.mark.parametrize("dtype", ["auto", *DTYPES])
def test_a_folder_is_loaded_in_the_dtype_asked_for(folder, dtype):
    """For auto in the dtype that is stored; its generation defaults are replaced by greedy ones."""
    loaded = load(plan_for(folder, weights_dtype=dtype))
    assert dtypes(loaded.model) == {"bfloat16" if dtype == "auto" else dtype}
    assert loaded.checkpoint_dtype == "bfloat16"
    assert loaded.tokenizer is None
    generation = loaded.model.generation_config
    assert (generation.do_sample, generation.repetition_penalty) == (False, None)
    assert loaded.vocab_size == 512
    assert loaded.versions["torch"] == torch.__version__


def test_auto_follows_the_stored_tensors_even_if_the_config_says_otherwise(folder):
    """A config whose dtype was edited does not change what is loaded."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"dtype": "float16", "torch_dtype": "float16"})
    )
    assert dtypes(load(plan_for(folder)).model) == {"bfloat16"}


def test_the_content_hash_follows_the_content_and_not_the_place(folder, tmp_path):
    """A copy has the same hash, one changed weight another; the dtype asked for plays no part."""
    copy = folder.rename(tmp_path / "moved")
    first = load(plan_for(copy)).content_hash
    assert load(plan_for(copy, weights_dtype="float32")).content_hash == first
    weights = copy / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert load(plan_for(copy)).content_hash != first


def test_a_file_is_hashed_once(folder, monkeypatch):
    """The second time the cache answers; a file that changed is read again."""
    file = folder / "config.json"
    first = file_sha256(file)
    monkeypatch.setattr("pytest_llmperf.engines.models.content._digest", lambda _: "read again")
    assert file_sha256(file) == first
    file.write_text("{ }")
    assert file_sha256(file) == "read again"


def test_a_cache_that_cannot_be_written_only_costs_time(folder, monkeypatch, tmp_path):
    """Hashing goes on without it."""
    (tmp_path / "a-file").write_text("")
    monkeypatch.setenv("LLMPERF_CACHE", str(tmp_path / "a-file"))
    assert len(file_sha256(folder / "config.json")) == 64


def test_a_broken_weights_file_is_named(folder):
    """As an aborted download leaves it."""
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(
        LoadError, match=r"model\.safetensors is cut short.*Download or save the model again"
    ):
        load(plan_for(folder))


def test_a_folder_without_weights_is_an_error(folder):
    """transformers is not asked to invent them."""
    (folder / "model.safetensors").unlink()
    with pytest.raises(LoadError, match="holds no weight files"):
        load(plan_for(folder))


def test_a_tensor_missing_from_the_checkpoint_is_an_error(folder):
    """transformers would fill it with random numbers and warn."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        LoadError,
        match=r"1 tensors of LlamaForCausalLM are missing: model\.layers\.1\.mlp\.up_proj\.weight",
    ):
        load(plan_for(folder))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("{", "cannot be read as JSON"),
        ('{"model_type": "no-such-type"}', "no-such-type"),
        ("{}", "model_type"),
    ],
)
def test_a_config_that_cannot_be_used_is_named(folder, config, reason):
    """Not JSON, an unknown type, no type."""
    (folder / "config.json").write_text(config)
    with pytest.raises(LoadError, match=reason) as caught:
        load(plan_for(folder))
    assert str(folder) in str(caught.value)


def test_code_that_comes_with_a_checkpoint_is_not_run_unless_asked_for(
    folder, tmp_path, monkeypatch
):
    """The error says how to ask; asked for, it runs."""
    monkeypatch.setattr(
        transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    code = """
        from transformers import LlamaConfig, LlamaForCausalLM
        class OddConfig(LlamaConfig):
            model_type = "odd"
        class OddForCausalLM(LlamaForCausalLM):
            config_class = OddConfig
    """
    (folder / "odd.py").write_text(textwrap.dedent(code))
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "odd.OddConfig", "AutoModelForCausalLM": "odd.OddForCausalLM"}
    (folder / "config.json").write_text(
        json.dumps(config | {"model_type": "odd", "auto_map": auto_map})
    )
    with pytest.raises(LoadError, match="trust_remote_code=True in the marker"):
        load(plan_for(folder))
    trusted = LoadPlan(model=model_ref(str(folder), trust_remote_code=True))
    assert type(load(trusted).model).__name__ == "OddForCausalLM"


def test_an_attention_package_that_is_not_installed_is_named(folder):
    """`flash` without flash-attn."""
    if transformers.utils.is_flash_attn_2_available():
        pytest.skip("flash-attn is installed here")
    with pytest.raises(LoadError, match=r"(?i)flash.*leave out the strategy part"):
        load(plan_for(folder, attention="flash_attention_2"))
    with pytest.raises(LoadError, match=r"(?i)flash.*leave out the strategy part"):
        load(plan_for("arch:tiny-llama", attention="flash_attention_2"))


def test_a_hub_id_that_is_not_to_be_had_names_the_cache(monkeypatch):
    """Neither downloaded before nor reachable."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        LoadError,
        match=r"'no-org/no-model'.*neither in the cache /.*nor could be downloaded.*name a local folder",
    ):
        load(plan_for("no-org/no-model"))


def test_a_hub_id_in_the_cache_is_loaded_from_there(folder, monkeypatch):
    """The snapshot's folder is read like any other."""
    monkeypatch.setattr(checkpoint, "snapshot_download", lambda *_, **__: str(folder))
    assert load(plan_for("some-org/some-model")).content_hash == load(plan_for(folder)).content_hash


def test_cuda_that_is_not_there_is_an_error_of_use():
    """With the next step."""
    count = torch.cuda.device_count()
    with pytest.raises(
        UsageError,
        match=f"device 'cuda:{count}' was asked for, torch .* sees {count} CUDA devices.*--llmperf-device cpu",
    ):
        torch_device(f"cuda:{count}")
    with pytest.raises(UsageError, match="device 'gpu' is not known"):
        load(plan_for("arch:tiny-llama", device="gpu"))


def test_a_kind_of_model_that_this_engine_does_not_load_is_an_error():
    """Scripted models belong to another engine."""
    with pytest.raises(LoadError, match="of kind 'scripted'; this engine loads builtin, folder"):
        load(plan_for("scripted:x"))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Write a module `own_models` that a factory can be found in."""

    def write(code):
        (tmp_path / "own_models.py").write_text(textwrap.dedent(code))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "own_models", raising=False)

    yield write
    sys.modules.pop("own_models", None)


FACTORIES = """
    from transformers import LlamaConfig, LlamaForCausalLM
    SHAPE = dict(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    seen = []
    class Words:
        pad_token_id, eos_token, pad_token, padding_side = None, "<end>", None, "right"
    def build():
        import torch
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**SHAPE))
    def build_with_plan(plan):
        seen.append(plan)
        return build(), Words()
    def wrong():
        return {"not": "a model"}
    def raising():
        raise ZeroDivisionError("no such number")
    number = 3
"""


def test_a_factory_builds_the_model(project):
    """Its parameters are converted, its rotary tables are not."""
    project(FACTORIES)
    loaded = load(plan_for("own_models:build", weights_dtype="bfloat16"))
    assert dtypes(loaded.model) == {"bfloat16"}
    assert {str(b.dtype) for b in loaded.model.buffers()} == {"torch.float32"}
    assert loaded.checkpoint_dtype == "float32"
    assert loaded.content_hash == load(plan_for("own_models:build")).content_hash


def test_a_factory_that_takes_an_argument_gets_the_plan(project):
    """And its tokenizer pads on the left, with the end token."""
    project(FACTORIES)
    plan = plan_for("own_models:build_with_plan")
    tokenizer = load(plan).tokenizer
    assert sys.modules["own_models"].seen == [plan]
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("left", "<end>")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("own_models:nothing", "has no such name"),
        ("own_models:number", "holds a int there; a function"),
        ("own_models:wrong", "returned a dict; a transformers model"),
        ("own_models:raising", "the factory raised ZeroDivisionError: no such number"),
        ("no_such_module:build", "'no_such_module' cannot be imported.*PYTHONPATH"),
    ],
)
def test_a_factory_that_cannot_be_used_says_why(project, name, reason):
    """Each with the name of the model."""
    project(FACTORIES)
    with pytest.raises(LoadError, match=f"model '{name}': .*{reason}"):
        load(plan_for(name))


def test_running_out_of_memory_stays_running_out_of_memory(project, folder, monkeypatch):
    """It is not reported as a broken model."""

    def starve(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(checkpoint, "_from_pretrained", starve)
    with pytest.raises(torch.OutOfMemoryError):
        load(plan_for(folder))
    project("def build():\n    raise MemoryError")
    with pytest.raises(MemoryError):
        factory.from_factory(plan_for("own_models:build"), torch.device("cpu"))


def test_padding_goes_to_the_left_and_a_pad_token_is_kept():
    """A decoder continues at the right end of every row."""
    from pytest_llmperf.engines.transformers.load import _left_padded

    tokenizer = SimpleNamespace(
        padding_side="right",
        pad_token_id=5,
        pad_token="<pad>",
        eos_token="<end>",
    )
    assert _left_padded(tokenizer).padding_side == "left"
    assert tokenizer.pad_token == "<pad>"  # noqa: S105
