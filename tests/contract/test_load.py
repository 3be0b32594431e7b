"""Loading by the transformers engine: devices, kinds of models and tokenizers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pytest_llmperf.errors import LoadError, UsageError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", exc_type=ModuleNotFoundError)

from support.loading import plan_for

from pytest_llmperf.engines.transformers.load import load
from pytest_llmperf.instruments.ranks import torch_device


def test_cuda_that_is_not_there_is_an_error_of_use():
    """With the next step."""
    count = torch.cuda.device_count()
    with pytest.raises(
        UsageError,
        match=f"device 'cuda:{count}' was asked for, torch .* sees {count} CUDA devices.*"
        "--llmperf-device cpu",
    ):
        torch_device(f"cuda:{count}")
    with pytest.raises(UsageError, match="device 'gpu' is not known"):
        load(plan_for("arch:tiny-llama", device="gpu"))


def test_a_kind_of_model_that_this_engine_does_not_load_is_an_error():
    """Scripted models belong to another engine."""
    with pytest.raises(LoadError, match="of kind 'scripted'; this engine loads builtin, folder"):
        load(plan_for("scripted:x"))


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
