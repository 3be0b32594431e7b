"""Tiny models with weights large enough that greedy text varies, and loops without compilation.

The tests of this folder share them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import FalconConfig, FalconForCausalLM, LlamaConfig, LlamaForCausalLM

from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.engines.outputs.inputs import TokenBatch, left_padded
from pytest_llmperf.engines.transformers.compiling import CompileOptions
from pytest_llmperf.engines.transformers.load import ModelOnDevice

CPU = torch.device("cpu")
VOCAB = 320
ROWS = [[11, 12, 13, 14, 15, 16, 17], [21, 22, 23, 24], [31, 32, 33, 34, 35]]


def plan(**fields: object) -> LoadPlan:
    return LoadPlan(model=ModelRef(name="tiny", kind="factory", location="tests:tiny"), **fields)


def tiny_llama(*, tied: bool = False, layers: int = 2, seed: int = 0) -> LlamaForCausalLM:
    return _lively(
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCAB,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=256,
                tie_word_embeddings=tied,
            ),
        ),
        seed,
    )


def tiny_falcon() -> FalconForCausalLM:
    config = FalconConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        multi_query=True,
        bias=False,
        alibi=False,
    )
    return _lively(FalconForCausalLM(config), 0)


def _lively(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.data.normal_(0, 0.3, generator=generator)
    return model.eval().requires_grad_(requires_grad=False)


def loaded(model: torch.nn.Module, **fields: object) -> ModelOnDevice:
    return ModelOnDevice(
        model=model,
        tokenizer=None,
        plan=plan(**fields),
        device=CPU,
        load_s=0.0,
        content_hash="tiny",
        checkpoint_dtype="float32",
        versions={},
    )


def batch(rows: list[list[int]] | None = None) -> TokenBatch:
    return left_padded(ROWS if rows is None else rows, 0, CPU)


class Uncompiled(CompileOptions):
    """The loop's logic without torch.compile, for tests that are not about compilation."""

    def compile_step(
        self, step: Callable[[], None], rewind: Callable[[], None]
    ) -> Callable[[], None]:
        rewind()
        step()
        return step


def uncompiled() -> CompileOptions:
    return Uncompiled(mode="default", cudagraphs="off", options={}, device=CPU)
