"""Two versions of a project side by side, with the real engine: equal ones, and one 5 % slower.

    python benchmarks/two_trees.py --kind compiled --device cuda -n 5 --out results
    python benchmarks/two_trees.py --kind eager --device cpu -n 1 --budget 60

Each session is `pytest --llmperf-against=HEAD` in a project of its own, by turns with equal trees
and with a working tree that is slower: on a GPU each layer reads 5.2 % more weights that are zero;
on a CPU, eager, the model waits 5 % longer after each forward pass. The GPU's model is one wide
layer, so that the GPU and not the host decides the speed of eager decoding too. The lines name the
verdict, the interval and the pairs; the records of all sessions are in `--out`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STRATEGIES = {
    "eager": "bf16",
    "static": "bf16+static-cache",
    "compiled": "bf16+static-cache+compile",
}

SIZES = {
    "cpu": {"layers": 6, "hidden": 2048, "width": 8192, "more": 576, "heads": 16},
    "cuda": {"layers": 1, "hidden": 16384, "width": 65536, "more": 4544, "heads": 128},
}
"""The model of each kind of device: 0.8 GB, and 8.7 GB."""

_MODEL = '''"""A Llama whose slower version gives the same outputs."""

import time

import torch
from slowdown import SLOWER
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

WIDENED = {widened}
DEVICE = "{device}"
WIDTH, MORE = {width}, {more}


def build():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size={hidden},
        intermediate_size=WIDTH,
        num_hidden_layers={layers},
        num_attention_heads={heads},
        num_key_value_heads={heads},
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    with torch.device(DEVICE):
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
        if SLOWER and WIDENED:
            widen(model)
    if SLOWER and not WIDENED:
        wait_longer(model, 0.05)
    return model


def widen(model):
    for layer in model.model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            old = getattr(layer.mlp, name).weight.detach()
            rows, columns = old.shape
            wide = (rows, columns + MORE) if name == "down_proj" else (rows + MORE, columns)
            linear = nn.Linear(wide[1], wide[0], bias=False, dtype=old.dtype)
            nn.init.zeros_(linear.weight)
            linear.weight.data[:rows, :columns] = old
            setattr(layer.mlp, name, linear)


def wait_longer(model, share):
    started = []

    def before(module, args, kwargs):
        started.append(time.perf_counter())

    def after(module, args, kwargs, output):
        ended = time.perf_counter()
        until = ended + share * (ended - started.pop())
        while time.perf_counter() < until:
            pass

    model.register_forward_pre_hook(before, with_kwargs=True)
    model.register_forward_hook(after, with_kwargs=True)
'''

_TEST = """import pytest
from pytest_llmperf import Decode


@pytest.mark.parametrize("number", range({tests}))
@pytest.mark.llmperf(model="layers:build", strategies=["{strategy}"], device="{device}")
def test_decode(llm, number):
    llm.run(Decode(batch=1, prompt_tokens=8, new_tokens={new_tokens}))
"""


def make_project(folder: Path, options: argparse.Namespace) -> None:
    """Write the project into `folder`, and commit the version that is not slower."""
    strategy = STRATEGIES[options.kind]
    kind_of_device = options.device.partition(":")[0]
    widened = options.kind == "compiled" or kind_of_device == "cuda"
    model = _MODEL.format(widened=widened, device=options.device, **SIZES[kind_of_device])
    test = _TEST.format(
        strategy=strategy,
        device=options.device,
        new_tokens=options.new_tokens,
        tests=options.tests,
    )
    files = {
        "layers.py": model,
        "test_decode.py": test,
        "slowdown.py": "SLOWER = False\n",
        "pytest.ini": "[pytest]\npythonpath = .\n",
        ".gitignore": "__pycache__\n.llmperf\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    user = ["-c", "user.name=two_trees", "-c", "user.email=two_trees@localhost"]
    for command in (["init", "-q"], ["add", "-A"], [*user, "commit", "-qm", "base"]):
        subprocess.run(["git", *command], cwd=folder, check=True)


def run_session(
    folder: Path, records: Path, options: argparse.Namespace
) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Run one session; return its seconds, and how it ended."""
    began_s = time.monotonic()
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("--llmperf-store", "none", "--llmperf-against=HEAD", "--llmperf-budget=4"),
            *(f"--llmperf-against-budget={options.budget}", f"--llmperf-json={records}"),
        ],
        cwd=folder,
        env=os.environ | {"COLUMNS": "160"},
        capture_output=True,
        text=True,
        check=False,
    )
    return time.monotonic() - began_s, ended


def verdicts(records: Path) -> list[str]:
    """Return what a session's records say of each comparison, in a line."""
    lines = records.read_text(encoding="utf-8").splitlines() if records.exists() else []
    compared = {
        row["test"]: row for line in lines if '"against"' in line for row in [json.loads(line)]
    }
    return list(map(_verdict, compared.values())) or ["nothing was compared"]


def _verdict(record: dict[str, Any]) -> str:
    against = record["extra"]["against"]
    metric = against["metrics"]["throughput"]
    low, high = (f"{float(end):.3f}" for end in (metric["ratio"] or [1, 1, 1])[1:])
    apart = metric["processes"]["apart"] or 0.0
    n_again = len(metric["again_pairs"])
    return (
        f"{metric['outcome']} [{low}, {high}], {len(metric['pairs'])} pairs and {n_again} again, "
        f"processes {apart:.1%} apart, {against['took_s']:.0f} s"
    )


def main() -> None:
    """Run the sessions by turns, until their number or the time is reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=STRATEGIES, default="eager")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("-n", type=int, default=5, help="sessions of each of the two")
    parser.add_argument("--tests", type=int, default=1, help="equal tests of a session")
    parser.add_argument("--new-tokens", type=int, default=100)
    parser.add_argument("--budget", type=float, default=150.0, help="--llmperf-against-budget")
    parser.add_argument("--limit-s", type=float, default=3600.0, help="begin no session after it")
    parser.add_argument("--out", type=Path, default=Path("two-trees"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    end_s = time.monotonic() + options.limit_s
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        make_project(project, options)
        for number in range(2 * options.n):
            if time.monotonic() > end_s:
                break
            slower = bool(number % 2)
            (project / "slowdown.py").write_text(f"SLOWER = {slower}\n")
            records = (options.out / f"{options.kind}-{number}.jsonl").resolve()
            took_s, ended = run_session(project, records, options)
            records.with_suffix(".txt").write_text(ended.stdout + ended.stderr)
            trees = "5 % slower" if slower else "equal"
            for line in verdicts(records):
                print(f"{options.kind}, {trees}: {line}", flush=True)
            print(f"the session took {took_s:.0f} s", flush=True)


if __name__ == "__main__":
    main()
