"""Names of models, and sizes that are known before loading."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.architectures import ARCHITECTURES, BUILTIN
from pytest_llmperf.engines.models.names import (
    model_ref,
    parameter_count,
    predict,
    predicted_weights_bytes,
)
from pytest_llmperf.engines.models.safetensors_header import folder_elements
from pytest_llmperf.errors import LoadError, UsageError

GIB = 2**30


def write_safetensors(file, tensors, *, cut=0):
    """A file with a true header and zeros for data, `cut` bytes short."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(offset - cut))


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of 6 bf16 and 4 fp32 elements."""
    (tmp_path / "config.json").write_text("{}")
    write_safetensors(
        tmp_path / "model.safetensors", {"a": ("BF16", [2, 3], 12), "b": ("F32", [4], 16)}
    )
    return tmp_path


@pytest.mark.parametrize(
    ("name", "kind", "location"),
    [
        ("smollm2-135m", "builtin", "smollm2-135m"),
        ("arch:falcon-7b", "arch", "falcon-7b"),
        ("scripted:steady", "scripted", "steady"),
        ("my_package.models:build", "factory", "my_package.models:build"),
        ("tiiuae/falcon-7b", "hub", "tiiuae/falcon-7b"),
        ("gpt2", "hub", "gpt2"),
    ],
)
def test_a_name_says_its_kind(name, kind, location):
    """Names that need no file system."""
    ref = model_ref(name)
    assert (ref.name, ref.kind, ref.location) == (name, kind, location)
    assert ref.trust_remote_code is False


def test_folders_and_gguf_files_become_absolute_paths(folder, monkeypatch):
    """A worker has another working directory."""
    (folder / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(folder.parent)
    assert model_ref(f"./{folder.name}") == model_ref(f"./{folder.name}")
    assert structs.replace(model_ref(f"./{folder.name}"), name="") == structs.replace(
        model_ref(str(folder)), name=""
    )
    ref = model_ref(f"{folder.name}/model.gguf", revision="r", trust_remote_code=True)
    assert (ref.kind, ref.location, ref.revision, ref.trust_remote_code) == (
        "gguf",
        str(folder / "model.gguf"),
        "r",
        True,
    )


@pytest.mark.parametrize(
    ("name", "fragments"),
    [
        (
            "smollm-135m",
            ["'smollm-135m' is not known", "Did you mean 'smollm2-135m'?"],
        ),
        ("falcon-7b", ["Did you mean 'arch:falcon-7b'?"]),
        (
            "arch:falcon-8b",
            ["architecture 'falcon-8b' is not known", "Did you mean 'falcon-7b'?"],
        ),
        ("arch:", ["architecture '' is not known", "Architectures: falcon-7b"]),
        ("./nowhere", ["there is no file or folder", "nowhere"]),
        ("/no/such/model.gguf", ["there is no file or folder /no/such/model.gguf"]),
        (
            "two words",
            ["'two words' is not known", "smollm2-135m", "Hugging Face id like 'org/name'"],
        ),
        ("", ["model '' is not known"]),
        ("~nobody-of-this-name/m", ["there is no file or folder"]),
        ("x" * 300 + "/y/z", ["there is no file or folder"]),
    ],
)
def test_an_unknown_name_is_refused_with_the_choices(name, fragments):
    """Did-you-mean, the list, and the kinds of names."""
    with pytest.raises(UsageError) as caught:
        model_ref(name)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_a_folder_without_a_config_and_a_stray_file_are_refused(tmp_path):
    """They are there, but they are no models."""
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(UsageError, match=r"is a folder without a config\.json"):
        model_ref(str(tmp_path))
    with pytest.raises(UsageError, match=r"is neither a folder nor a \.gguf file"):
        model_ref(str(tmp_path / "weights.bin"))


@given(st.text(max_size=30).map(lambda text: text.replace("\0", "")))
def test_any_text_is_a_model_or_a_usage_error(text):
    """No other exception comes out of a name."""
    try:
        assert model_ref(text).name == text
    except UsageError as error:
        assert "model" in str(error)  # noqa: PT017  both outcomes are right, others are not


@pytest.mark.parametrize(
    ("name", "billions"),
    [("falcon-7b", 6.92), ("falcon-40b", 41.30), ("llama-7b", 6.74), ("llama-30b", 32.53)],
)
def test_architectures_have_their_published_size(name, billions):
    """Parameters as counted in the published checkpoints, tied ones once."""
    assert parameter_count(ARCHITECTURES[name]) / 1e9 == pytest.approx(billions, abs=0.005)


def test_the_builtin_model_has_its_published_size():
    """134.5 million parameters."""
    assert parameter_count(BUILTIN["smollm2-135m"].architecture) == 134_515_008


def test_bytes_follow_the_dtype_and_auto_the_checkpoint():
    """Half of fp32 in bf16; falcon is published in bf16."""
    falcon = model_ref("arch:falcon-7b")
    assert predicted_weights_bytes(falcon, "float32") == 2 * predicted_weights_bytes(
        falcon, "bfloat16"
    )
    assert predicted_weights_bytes(falcon, "auto") == predicted_weights_bytes(falcon, "float16")
    assert predict(LoadPlan(model=falcon, weights_dtype="bfloat16")) == pytest.approx(
        12.9 * GIB, rel=0.01
    )


def test_a_folder_is_sized_by_the_headers_of_its_files(folder):
    """In the stored dtypes for auto, else all in one dtype."""
    ref = model_ref(str(folder))
    assert predicted_weights_bytes(ref, "auto") == 6 * 2 + 4 * 4
    assert predicted_weights_bytes(ref, "float16") == 10 * 2
    assert folder_elements(folder) == {"bfloat16": 6, "float32": 4}


@pytest.mark.parametrize("name", ["org/model", "pkg.mod:build", "scripted:x"])
def test_what_cannot_be_told_before_loading_is_none_not_zero(name, tmp_path):
    """Nothing is guessed from a name."""
    (tmp_path / "config.json").write_text("{}")
    assert predict(LoadPlan(model=model_ref(name))) is None
    assert predict(LoadPlan(model=model_ref(str(tmp_path)))) is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cut short"),
        (b"not a safetensors file", "cut short or is no"),
        (struct.pack("<Q", 2) + b"{]", "header is not JSON"),
    ],
)
def test_a_file_that_is_no_safetensors_file_is_named(folder, content, reason):
    """With the reason and the next step."""
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(
        LoadError, match=rf"model\.safetensors.*{reason}.*Download or save the model again"
    ):
        predicted_weights_bytes(model_ref(str(folder)), "auto")


def test_a_file_that_was_cut_off_names_the_tensor(folder):
    """As an aborted download leaves it."""
    write_safetensors(
        folder / "model.safetensors", {"a": ("BF16", [2, 3], 12), "b": ("F32", [4], 16)}, cut=8
    )
    with pytest.raises(
        LoadError, match="cut short: tensor 'b' ends at byte 28 of the data, the file has 20"
    ):
        folder_elements(folder)


def test_missing_shards_are_named(folder):
    """The index says which files there must be."""
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        LoadError, match=r"names 2 weight files, 1 are missing: model-2\.safetensors"
    ):
        folder_elements(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(LoadError, match="holds a list, an object is needed"):
        folder_elements(folder)
