"""What lies beside a model in its folder is not loaded, hashed or counted unasked, and is said."""

from __future__ import annotations

import json
import shutil

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", exc_type=ModuleNotFoundError)

from msgspec import structs
from safetensors.torch import load_file, save_file
from support.loading import dtypes, plan_for

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.names import model_ref, predicted_weights_bytes
from pytest_llmperf.engines.transformers import checkpoint
from pytest_llmperf.engines.transformers.effective import describe
from pytest_llmperf.engines.transformers.load import load
from pytest_llmperf.engines.transformers.loaded import TransformersModel
from pytest_llmperf.errors import LoadError
from pytest_llmperf.strategies.promises import weights_are
from pytest_llmperf.strategies.table import AUTO
from pytest_llmperf.workloads import Decode

IDS = torch.arange(3, 19)[None]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads another's cache."""
    monkeypatch.setenv("LLMPERF_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """A tiny llama saved in float16, without a tokenizer."""
    load(plan_for("arch:tiny-llama", weights_dtype="float16")).model.save_pretrained(
        tmp_path / "saved"
    )
    return tmp_path / "saved"


@pytest.fixture
def with_adapter(folder):
    """A training run left its adapter beside the model."""
    peft = pytest.importorskip("peft")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, model)
    tensors = peft.get_peft_model_state_dict(model, adapter_name="default")
    save_file(
        {f"base_model.model.{name}": tensor.contiguous() for name, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    config.save_pretrained(folder)
    return folder


def logits(model):
    with torch.no_grad():
        return model(IDS).logits.float()


def test_an_adapter_in_the_models_folder_is_not_applied_and_is_named(with_adapter, tmp_path):
    """transformers alone applies it; asked for by `lora` it is another matter."""
    unasked = transformers.AutoModelForCausalLM.from_pretrained(with_adapter, dtype=torch.float16)
    plain = shutil.copytree(with_adapter, tmp_path / "plain")
    for file in plain.glob("adapter_*"):
        file.unlink()
    loaded, alone = load(plan_for(with_adapter)), load(plan_for(plain))
    assert not torch.equal(logits(unasked), logits(alone.model))  # the danger is there
    assert torch.equal(logits(loaded.model), logits(alone.model))
    assert loaded.content_hash == alone.content_hash
    (note,) = describe(loaded).notes
    assert note.startswith("an adapter lies in the model's folder (adapter_config.json)")
    assert f"'lora:{with_adapter}' applies it" in note
    assert describe(alone).notes == ()
    linears = [sum(group.layers for group in describe(one).linears) for one in (loaded, alone)]
    assert linears[0] == linears[1]


def test_an_adapter_that_is_applied_all_the_same_is_refused(with_adapter, monkeypatch):
    """Should another version of transformers look elsewhere: here it is led to the adapter."""
    monkeypatch.setattr(checkpoint, "_NO_ADAPTER", "")
    with pytest.raises(LoadError, match="applied the adapter that lies in this folder"):
        load(plan_for(with_adapter))


def other_files(folder):
    """A float32 copy under the name that Mistral uses, and an optimizer's state."""
    tensors = load_file(folder / "model.safetensors")
    single = {name: tensor.float() for name, tensor in tensors.items()}
    save_file(single, folder / "consolidated.safetensors")
    save_file({"state": torch.zeros(10**6)}, folder / "optimizer.safetensors")


def test_a_second_copy_of_the_weights_changes_nothing_and_is_named(folder):
    """Neither the dtype of `auto`, nor the predicted memory, nor the content hash."""
    before = load(plan_for(folder))
    reference = model_ref(str(folder))
    predicted = [predicted_weights_bytes(reference, dtype) for dtype in ("auto", "float32")]
    other_files(folder)
    loaded = load(plan_for(folder))
    assert loaded.checkpoint_dtype == "float16"
    assert dtypes(loaded.model) == {"float16"}
    assert loaded.content_hash == before.content_hash
    assert [predicted_weights_bytes(reference, dtype) for dtype in ("auto", "float32")] == predicted
    assert predicted[1] == 2 * predicted[0]
    assert describe(before).notes == ()
    assert describe(loaded).notes == (
        (
            "the weights are those of model.safetensors; "
            "not read: consolidated.safetensors, optimizer.safetensors"
        ),
    )


def test_weights_under_other_names_alone_are_an_error(folder):
    """transformers does not read them."""
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    with pytest.raises(LoadError, match=r"model\.safetensors"):
        load(plan_for(folder))


def pickled(folder, dtype=None):
    """Save the weights as older checkpoints are, beside training files; `dtype` is the config's."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    torch.save({"state": torch.zeros(10**6)}, folder / "optimizer.bin")
    config = json.loads((folder / "config.json").read_text())
    for name in ("dtype", "torch_dtype"):
        config.pop(name, None)
    (folder / "config.json").write_text(json.dumps(config | ({"dtype": dtype} if dtype else {})))


@pytest.mark.parametrize("said", [None, "bfloat16", "float16"])
def test_pickled_weights_say_their_own_dtype(folder, said):
    """Whatever the config says of it, and other .bin files are no part of the model."""
    pickled(folder, said)
    first = load(plan_for(folder))
    assert first.checkpoint_dtype == "float16"
    assert dtypes(first.model) == {"float16"}
    torch.save({"state": torch.ones(3)}, folder / "optimizer.bin")
    assert load(plan_for(folder)).content_hash == first.content_hash


@pytest.mark.parametrize("pad", [-1, 512, [2], [2, 7], [], None, 3])
def test_a_checkpoint_with_any_padding_id_is_loaded_and_pads(folder, pad):
    """Its rows of different lengths give what each gives alone."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token_id": pad}))
    loaded = load(plan_for(folder, weights_dtype="float32"))
    assert 0 <= loaded.model.generation_config.pad_token_id < 512
    session = TransformersModel(loaded)
    session.run(Decode(batch=2, prompt_tokens=4, new_tokens=2), 0)
    assert 0 <= session._vocabulary.pad < 512
    assert session._vocabulary.special_below(512) == tuple(sorted(session._vocabulary.special))


def test_padding_of_no_kind_is_a_readable_error(folder):
    """Text is mended to none; what transformers rejects in a config is a LoadError."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": "end"}))
    with pytest.raises(LoadError, match="eos_token_id"):
        load(plan_for(folder))


def test_an_index_is_read_only_without_a_single_file(folder):
    """As transformers does: an index left over from before the shards were joined plays no part."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[:5], "model-2.safetensors": names[5:]}
    for shard, part in shards.items():
        save_file(
            {name: tensors[name].float() for name in part},
            folder / shard,
            metadata={"format": "pt"},
        )
    index = {name: shard for shard, part in shards.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": index})
    )
    both = load(plan_for(folder))
    assert both.checkpoint_dtype == "float16"
    assert describe(both).notes == (
        (
            "the weights are those of model.safetensors; "
            "not read: model-1.safetensors, model-2.safetensors"
        ),
    )
    (folder / "model.safetensors").unlink()
    sharded = load(plan_for(folder))
    assert sharded.checkpoint_dtype == "float32"
    assert describe(sharded).notes == (
        "'auto' is float32, the dtype of most weights in the files; config.json says float16",
    )
    assert sharded.content_hash != both.content_hash


def test_an_encoder_decoder_is_refused_in_one_line(tmp_path):
    """With its kind, and without the list of all classes of transformers."""
    config = transformers.T5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    with pytest.raises(LoadError, match=r"is an encoder-decoder \(t5\); decoders are") as refused:
        load(plan_for(tmp_path / "t5"))
    assert len(str(refused.value)) < 300 + len(str(tmp_path))


def test_a_model_that_is_no_language_model_is_refused_without_a_list_of_classes(tmp_path):
    """transformers names hundreds of them."""
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    with pytest.raises(LoadError, match="ViTConfig") as refused:
        load(plan_for(tmp_path / "vit"))
    assert "GPT2Config" not in str(refused.value)
    assert len(str(refused.value)) < 600 + 2 * len(str(tmp_path))


@pytest.fixture
def four_bit(tmp_path):
    """A tiny llama as bitsandbytes stores it, whose blocks are of 64 weights."""
    pytest.importorskip("bitsandbytes")
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "plain")
    scheme = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=scheme
    )
    model.save_pretrained(tmp_path / "nf4")
    return tmp_path / "nf4"


def test_a_checkpoint_that_is_quantized_already_is_measured_by_auto(four_bit, folder):
    """It says by what; another precision is still a broken promise, and so is one nobody asked."""
    plan = LoadPlan(model=model_ref(str(four_bit)))
    loaded = load(plan)
    TransformersModel(loaded).run(Decode(prompt_tokens=4, new_tokens=2), 0)
    effective = describe(loaded)
    assert effective.stored_quantized == "bitsandbytes"
    assert sum(group.layers for group in effective.linears if group.quantized) == 14
    (promise,) = (one for one in AUTO.promises(plan) if "checkpoint" in one.text)
    assert promise.broken(effective) is None
    unasked = structs.replace(effective, stored_quantized="")
    assert "14 of 15 linear layers hold uint8" in promise.broken(unasked)
    assert "14 of 15" in weights_are("fp32", "float32").broken(effective)
    assert describe(load(plan_for(folder))).stored_quantized == ""


@pytest.mark.parametrize("quantization", ["int8wo", "nf4"])
@pytest.mark.parametrize("late", [False, True])
def test_a_checkpoint_that_is_quantized_already_is_not_quantized_again(
    four_bit, quantization, late
):
    """Early or late."""
    pruning = {"pruning": "magnitude:0.5"} if late else {}
    plan = plan_for(four_bit, quantization=quantization, **pruning)
    with pytest.raises(
        LoadError, match=rf"quantized already \(by bitsandbytes\), and '{quantization}'"
    ):
        load(plan)
