"""What is misspelt or called otherwise elsewhere is suggested in one short sentence."""

from __future__ import annotations

import pytest

import pytest_llmperf
from pytest_llmperf import Decode, engines
from pytest_llmperf.core.misspelt import METRIC_MEANINGS, suggesting
from pytest_llmperf.errors import UsageError, did_you_mean
from pytest_llmperf.names import ENGINE_MEANINGS, STRATEGY_MEANINGS
from pytest_llmperf.session.declare import declaration
from pytest_llmperf.settings.limits import gateable, parse_gate
from pytest_llmperf.strategies import parse

MEANT = {
    "bf61": "bf16",
    "stati-cache": "static-cache",
    "FP16": "fp16",
    "bfloat16": "bf16",
    "torch.compile": "compile",
    "Torch_Compile": "compile",
    "float16": "fp16",
    "half": "fp16",
    "4bit": "nf4",
    "4-bits": "nf4",
    "8 bit": "int8",
    "flash_attention_2": "flash",
    "tensor_parallel": "tp2",
}


@pytest.mark.parametrize(("text", "meant"), MEANT.items())
def test_a_strategy_is_suggested_and_the_list_is_left_out(text, meant):
    """By meaning, then by spelling."""
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert str(caught.value) == f"strategy part {text!r} is not known. Did you mean {meant!r}?"


def test_without_a_suggestion_all_are_listed():
    """Else there would be no way on."""
    with pytest.raises(UsageError, match="Parts by kind: precision: auto, fp32"):
        parse("zzzzzz")
    assert did_you_mean("zzz", ["abc"], otherwise="There are: abc.") == " There are: abc."
    assert did_you_mean("abd", ["abc"], otherwise="There are: abc.") == " Did you mean 'abc'?"
    assert did_you_mean("zzz", ["abc"]) == ""


def test_every_meaning_is_a_name_here():
    """No suggestion is itself unknown."""
    for name in set(STRATEGY_MEANINGS.values()):
        assert parse(name).canonical == name
    for name in set(ENGINE_MEANINGS.values()):
        assert engines.engine(name).name == name
    assert set(METRIC_MEANINGS.values()) <= set(gateable())


@pytest.mark.parametrize(
    ("text", "meant"),
    [("hf", "transformers"), ("llama_cpp", "server:llama.cpp"), ("vlm", "vllm")],
)
def test_an_engine_is_suggested(text, meant):
    """As people call it."""
    with pytest.raises(UsageError) as caught:
        engines.engine(text)
    assert str(caught.value) == f"engine {text!r} is not known. Did you mean {meant!r}?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("thruput:5%", "metric 'thruput' is not known. Did you mean 'throughput'?"),
        ("ttft", "metric 'ttft' is not known. Did you mean 'ttft.p50'?"),
        ("test_ok.py", "'test_ok.py' is a path: pytest took it for the option's value."),
        ("tests/test_ok.py::test_it", "is a path"),
        ("perf", "'perf' is a path"),
    ],
)
def test_a_gate_that_cannot_be_read(text, message, tmp_path, monkeypatch):
    """A path is what pytest takes for the value where the option stands before it."""
    (tmp_path / "perf").mkdir()
    (tmp_path / "time").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        parse_gate(text)
    assert message in str(caught.value)
    assert "memory.imbalance" not in str(caught.value)
    assert parse_gate("time") == {"time": 0.03}, "a metric, also where a folder has its name"


def test_a_marker_argument_is_suggested_alone():
    """Without the other twelve."""
    with pytest.raises(UsageError, match=r"'stratgy' is not known\. Did you mean 'strategy'\?$"):
        declaration([((), {"stratgy": "bf16"})])


def test_calls_without_what_they_need_say_what_they_take():
    """An error of ours: what was not measured is no failure."""

    def run(workload, processes=None):
        return workload, processes

    call = suggesting(run, ".run")
    assert call(1) == (1, None)
    with pytest.raises(UsageError, match=r"\.run\(…\): missing .*'workload'.* It takes: workload"):
        call()
    with pytest.raises(UsageError, match=r"\.run\(…\): too many positional"):
        call(1, 2, 3)
    with pytest.raises(UsageError, match=r"Decode\(…\): .* It takes: batch, prompt_tokens"):
        Decode(1, 2, 3)


def test_an_error_inside_of_a_call_stays_its_own():
    """It is not said to be an argument."""

    def run():
        raise TypeError("of the inside")

    with pytest.raises(TypeError, match="of the inside"):
        suggesting(run, ".run")()


def test_the_package_suggests_and_has_a_version():
    """As every package of this kind has."""
    with pytest.raises(AttributeError, match=r"no attribute 'Decod'\. Did you mean 'Decode'\?"):
        pytest_llmperf.Decod  # noqa: B018
    assert pytest_llmperf.__version__.count(".") >= 2
    assert not hasattr(pytest_llmperf, "__wrapped__")
