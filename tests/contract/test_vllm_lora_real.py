"""LoRA adapters in vLLM on a CPU give the tokens of the transformers engine.

It runs in the interpreter that LLMPERF_VLLM_PYTHON names.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.adapting import adapter

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.loading import arch
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.errors import NotInEffect, UsageError
from pytest_llmperf.strategies import parse, require_in_effect
from pytest_llmperf.wire.commands import Describe, Run, UseAdapters
from pytest_llmperf.workloads import Decode

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(
        "LLMPERF_NIGHTLY" not in os.environ,
        reason="vLLM starts for half a minute: make nightly runs it",
    ),
]
BASE = "arch:small-llama"
WORK = Decode(batch=2, prompt_tokens=8, new_tokens=8)


def plan(strategy: str, engine: str) -> LoadPlan:
    options = (("kv_cache_gib", 0.25), ("max_model_len", 512)) if engine == "vllm" else ()
    return parse(strategy).apply(LoadPlan(model=model_ref(BASE), engine=engine, options=options))


def model():
    return arch.build(
        "small-llama", dtype=torch.float32, device=torch.device("cpu"), seed=0, attention=None
    )


def hashes(channel) -> list[str]:
    """Of the answers through the first adapter, the second, none, and one row each through both."""
    found = []
    for names in ((), ("b",), ("base",), ("b", "a")):
        channel.call(UseAdapters(names=names), deadline_s=60)
        found.append(
            channel.call(Run(workload=WORK, repetition=0), deadline_s=300).run.outputs_hash
        )
    channel.call(UseAdapters(names=()), deadline_s=60)
    return found


def test_adapters_answer_as_in_the_transformers_engine(open_worker, tmp_path):
    """Switched and mixed; every tensor is its file's.

    A file that is not what the layers hold is found.
    """
    folders = [
        adapter(tmp_path / name, model(), seed=seed, rank=rank, base=BASE)
        for name, seed, rank in (("a", 1, 4), ("b", 2, 8))
    ]
    strategy = "+".join(["fp32", *(f"lora:{folder}" for folder in folders)])
    wanted = plan(strategy, "vllm")
    with open_worker(plan(strategy, "transformers")) as (channel, _):
        theirs = hashes(channel)
    with open_worker(wanted) as (channel, opened):
        require_in_effect(opened.effective, parse(strategy).promises(wanted), "loaded")
        assert [(g.name, g.rank) for g in opened.effective.resident_adapters] == [
            ("a", 4),
            ("b", 8),
        ]
        assert hashes(channel) == theirs
        with pytest.raises(UsageError, match="'c' is not loaded"):
            channel.call(UseAdapters(names=("c",)), deadline_s=60)
        with pytest.raises(UsageError, match="take the rows with none through the last adapter"):
            channel.call(UseAdapters(names=("a", "base")), deadline_s=60)
        weights = Path(folders[0]) / "adapter_model.safetensors"
        save_file({key: 2 * tensor for key, tensor in load_file(weights).items()}, weights)
        changed = channel.call(Describe(), deadline_s=60).description.effective
    assert len(set(theirs)) == len(theirs)
    with pytest.raises(NotInEffect, match="another version of it, is applied"):
        require_in_effect(changed, parse(strategy).promises(wanted), "warm")
