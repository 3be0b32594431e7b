"""Merging changes the layers of an adapter and nothing else."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from peft import LoraConfig, get_peft_model
from support import odd_models

from pytest_llmperf.engines.transformers.merging import merge_layers
from pytest_llmperf.errors import LoadError


def adapted(*, tied):
    """A model whose head has an adapter, and the head's layer."""
    model = odd_models.plain()
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    config = LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(model, config)
    return SimpleNamespace(model=wrapped, head=wrapped.base_model.model.lm_head)


def test_a_head_that_is_the_embedding_too_is_not_merged():
    """Merging it would change what each token reads, and only a comparison would show it."""
    tied = adapted(tied=True)
    before = tied.head.get_base_layer().weight.detach().clone()
    with pytest.raises(LoadError, match=r"weight is that of '.*embed_tokens' too \(tied weights\)"):
        merge_layers(tied.model, "default", [tied.head])
    assert torch.equal(tied.head.get_base_layer().weight, before)


def test_a_head_with_a_weight_of_its_own_is_merged():
    untied = adapted(tied=False)
    assert merge_layers(untied.model, "default", [untied.head]) == 1
