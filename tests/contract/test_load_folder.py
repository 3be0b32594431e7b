"""Loading checkpoints from folders and from the hub: their content is checked, and errors help."""

from __future__ import annotations

import json
import textwrap

import pytest

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.errors import LoadError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", exc_type=ModuleNotFoundError)

from support.loading import DTYPES, dtypes, plan_for

from pytest_llmperf.engines.loading import checkpoint as hub
from pytest_llmperf.engines.models.content import file_sha256
from pytest_llmperf.engines.transformers import checkpoint
from pytest_llmperf.engines.transformers.load import load


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
        match=r"'no-org/no-model'.*no folder of that name.* in /.* could not be downloaded "
        r"\(.*\)\..*name a local folder",
    ):
        load(plan_for("no-org/no-model"))


def test_a_hub_id_in_the_cache_is_loaded_from_there(folder, monkeypatch):
    """The snapshot's folder is read like any other."""
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(folder))
    assert load(plan_for("some-org/some-model")).content_hash == load(plan_for(folder)).content_hash


def test_running_out_of_memory_stays_running_out_of_memory(folder, monkeypatch):
    """It is not reported as a broken checkpoint."""

    def starve(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(checkpoint, "_from_pretrained", starve)
    with pytest.raises(torch.OutOfMemoryError):
        load(plan_for(folder))
