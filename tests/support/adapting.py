"""Adapters for the tiny models of `generating`, written by peft with random weights."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from pytest_llmperf.core.plan import LoadPlan, ModelRef

TARGETS = ("q_proj", "v_proj", "down_proj")


def adapter(
    folder: Path,
    model: torch.nn.Module,
    *,
    seed: int,
    rank: int = 4,
    base: str = "tiny",
    dtype=torch.float32,
    size: float = 0.2,
) -> Path:
    """An adapter that changes the model's text.

    Both matrices are random, not peft's zero, with `size` as standard deviation.
    """
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=list(TARGETS), task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning
        )
        wrapped = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in wrapped.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn(weight.shape, generator=generator).mul(size).to(dtype)
    wrapped.peft_config["default"].base_model_name_or_path = base
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    return folder


def plan(*folders: Path, strategy: str = "fp32", **fields: object) -> LoadPlan:
    """A plan of `arch:tiny-llama` with adapters."""
    model = ModelRef(name="arch:tiny-llama", kind="arch", location="tiny-llama")
    return LoadPlan(
        model=model,
        weights_dtype="float32",
        strategy=strategy,
        adapters=tuple(map(str, folders)),
        **fields,
    )
