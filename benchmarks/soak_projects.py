"""The projects that soak.py runs: a test that measures, and for `slower` a slowdown beside it.

No injection at the base.
"""

from __future__ import annotations

_HEAD = "import math, os, random\nimport pytest\nfrom pytest_llmperf import Decode\n\n"

_SAME = """
@pytest.mark.llmperf(model="smollm2-135m", device="cpu")
def test_decode(llm):
    llm.run(Decode(batch=1, prompt_tokens=16, new_tokens=16))
"""

_BETWEEN = """
session = int(os.environ["SOAK_SESSION"])
between = math.exp(0.01 * random.Random(session).gauss(0, 1))
"""

_SCRIPTED = """
@pytest.mark.llmperf(
    model=f"scripted:ttft={50 * between}ms,tpot={10 * between}ms,noise=0.02", engine="scripted"
)
def test_decode(llm):
    llm.run(Decode(batch=1, prompt_tokens=8, new_tokens=11))
"""

_SLOWER = """
@pytest.mark.llmperf(model="slow_model:build", device="cpu")
def test_decode(llm):
    llm.run(Decode(batch=1, prompt_tokens=16, new_tokens=16))
"""

_SCRIPTED_SLOWER = """
from slowdown import SHARE

times = f"ttft={50 * between * (1 + SHARE)}ms,tpot={10 * between * (1 + SHARE)}ms"
seed = 2 * session + bool(SHARE)  # each side of each session has noise of its own

@pytest.mark.llmperf(model=f"scripted:{times},noise=0.02,seed={seed}", engine="scripted")
def test_decode(llm):
    llm.run(Decode(batch=1, prompt_tokens=8, new_tokens=11))
"""

SLOW_MODEL = '''"""A small Llama that waits after each forward pass for a share of its time."""

import time

import torch
from slowdown import SHARE
from transformers import LlamaConfig, LlamaForCausalLM


def build():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    started = []

    def before(module, args, kwargs):
        started.append(time.perf_counter())

    def after(module, args, kwargs, output):
        ended = time.perf_counter()
        until = ended + SHARE * (ended - started.pop())
        while time.perf_counter() < until:
            pass

    model.register_forward_pre_hook(before, with_kwargs=True)
    model.register_forward_hook(after, with_kwargs=True)
    return model
'''

PROJECTS = {
    ("same", "transformers"): {"test_decode.py": _HEAD + _SAME},
    ("same", "scripted"): {"test_decode.py": _HEAD + _BETWEEN + _SCRIPTED},
    ("slower", "transformers"): {
        "test_decode.py": _HEAD + _SLOWER,
        "slow_model.py": SLOW_MODEL,
        "slowdown.py": "SHARE = 0.0\n",
    },
    ("slower", "scripted"): {
        "test_decode.py": _HEAD + _BETWEEN + _SCRIPTED_SLOWER,
        "slowdown.py": "SHARE = 0.0\n",
    },
}
