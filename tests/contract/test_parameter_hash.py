"""Which model a factory returned: one hash, made once for each fingerprint of a GPU's."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import nn

from pytest_llmperf.engines.transformers import parameter_hash
from pytest_llmperf.engines.transformers.parameter_hash import fingerprint, parameters_hash


def model(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 7)).to(dtype)


@pytest.fixture
def on_gpu(monkeypatch, tmp_path):
    """As where all parameters lie on a GPU; return a list with one entry for each SHA-256 made."""
    monkeypatch.setenv("LLMPERF_CACHE", str(tmp_path))
    monkeypatch.setattr(nn.Parameter, "is_cuda", True)
    made = []
    sha256 = parameter_hash._sha256
    monkeypatch.setattr(
        parameter_hash, "_sha256", lambda rows: made.append(len(rows)) or sha256(rows)
    )
    return made


def test_the_hash_is_that_of_names_dtypes_and_bytes():
    """As version 0.1.0 stored it."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model().named_parameters()):
        digest.update(f"{name} torch.float32 {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().numpy().tobytes())
    assert parameters_hash(model()) == digest.hexdigest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_hashes_a_model_once_and_gives_the_same_hash(on_gpu, dtype):
    first = parameters_hash(model(dtype=dtype))
    assert parameters_hash(model(dtype=dtype)) == first
    assert on_gpu == [4]
    assert parameter_hash._sha256(sorted(model(dtype=dtype).named_parameters())) == first


def test_another_model_is_hashed_anew(on_gpu):
    """One bit, two values that change places, and another dtype."""
    hashes = {parameters_hash(model())}
    changed = model()
    changed[1].bias.data.view(torch.int32)[6] ^= 1
    hashes.add(parameters_hash(changed))
    swapped = model()
    swapped[0].bias.data = swapped[0].bias.data[[1, 0, 2]]
    hashes.add(parameters_hash(swapped))
    hashes.add(parameters_hash(model(dtype=torch.bfloat16)))
    assert len(hashes) == len(on_gpu) == 4


def test_the_fingerprint_is_that_of_the_bytes_however_they_lie(monkeypatch):
    """Strides, offsets, chunks, and a last word that is not full change nothing."""
    values = torch.randn(9, 7, dtype=torch.float32).to(torch.bfloat16)
    expected = fingerprint(values)
    assert torch.equal(fingerprint(values.t().contiguous().t()), expected)
    shifted = torch.cat([torch.zeros(1, dtype=torch.bfloat16), values.flatten()])[1:].view(9, 7)
    assert shifted.storage_offset() == 1
    assert torch.equal(fingerprint(shifted), expected)
    monkeypatch.setattr(parameter_hash, "_CHUNK_WORDS", 4)
    assert torch.equal(fingerprint(values), expected)
    assert not torch.equal(fingerprint(values[:8]), expected)
