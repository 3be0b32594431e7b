"""Decode one architecture by transformers' own tensor parallel, and on one device: plain scripts.

    python benchmarks/tensor_parallel.py [--arch llama-7b] [--devices 2] [--out FILE.json]

The model is written once as a checkpoint with random weights, because `tp_plan="auto"` starts from
`from_pretrained`. Each way is a process of its own for each rank, started by torch.distributed.run:
eager `generate`, and `generate` with a static cache, which transformers compiles. Nothing of this
package decodes here: these are the figures that the strategy part `tpN` is held against.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WAYS = ("eager", "static")
PROMPT_TOKENS = 8


def main() -> int:
    """Write the checkpoint, run each way on one device and on several, write the file."""
    options = _parser().parse_args()
    if options.child:
        decode(Path(options.child), options)
        return 0
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(options.arch, options.device, Path(folder) / "model")
        for n_devices, way in itertools.product((1, options.devices), options.ways.split(",")):
            row = run_way(checkpoint, n_devices, way, options)
            rows.append({"devices": n_devices, "way": way, **row})
            options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            print(json.dumps(rows[-1]), flush=True)
    return int(any("error" in row for row in rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="llama-7b")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--new-tokens", type=int, default=50)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--out", type=Path, default=Path("tensor_parallel.json"))
    parser.add_argument("--limit-s", type=float, default=240)
    parser.add_argument("--child", help="the checkpoint; set for the processes that decode")
    return parser


def write_checkpoint(arch: str, device: str, folder: Path) -> Path:
    """Save the architecture with random bf16 weights."""
    import torch  # noqa: PLC0415 - the processes that decode import it themselves
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

    from pytest_llmperf.engines.models.architectures import ARCHITECTURES  # noqa: PLC0415

    row = ARCHITECTURES[arch]
    config = AutoConfig.for_model(row.model_type, **row.config)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return folder


def run_way(checkpoint: Path, n_devices: int, way: str, options: Any) -> dict[str, Any]:
    """Run the ranks of one way; their rank 0 prints what it measured."""
    launcher = [
        "-m",
        "torch.distributed.run",
        f"--nproc-per-node={n_devices}",
        "--master-port=29617",
    ]
    own = [__file__, "--child", str(checkpoint), "--ways", way, "--device", options.device]
    counts = ["--new-tokens", str(options.new_tokens), "--repetitions", str(options.repetitions)]
    start_s = time.monotonic()
    try:
        process = subprocess.run(
            [sys.executable, *launcher, *own, *counts],
            capture_output=True,
            text=True,
            check=False,
            timeout=options.limit_s,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {options.limit_s} s"}
    lines = [line for line in process.stdout.splitlines() if line.startswith("{")]
    if process.returncode or not lines:
        return {"error": (process.stderr or process.stdout)[-1500:]}
    return {**json.loads(lines[-1]), "seconds": round(time.monotonic() - start_s, 1)}


def decode(checkpoint: Path, options: Any) -> None:
    """Load on this rank, decode some times, and print the rates on rank 0."""
    import torch  # noqa: PLC0415

    rank = int(os.environ["RANK"])
    device = torch.device(options.device, rank) if options.device == "cuda" else torch.device("cpu")
    if options.device == "cuda":
        torch.cuda.set_device(device)
    model, load_s = _loaded(checkpoint, device)
    rates, n_tokens = _rates(model, device, options)
    rank_bytes = sum(_local_bytes(tensor) for tensor in model.parameters())
    if rank == 0:
        row = {
            "tok_per_s": statistics.median(rates[2:]),
            "all": [round(rate, 2) for rate in rates],
            "load_s": round(load_s, 2),
            "rank_0_gb": round(rank_bytes / 1e9, 3),
            "n_tokens": n_tokens,
            "parameter_types": sorted({type(tensor).__name__ for tensor in model.parameters()}),
        }
        print(json.dumps(row), flush=True)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _loaded(checkpoint: Path, device: Any) -> tuple[Any, float]:
    """Load the model over all ranks by transformers' plan, or on the one device, and time it."""
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    n_devices = int(os.environ["WORLD_SIZE"])
    placement: dict[str, Any] = (
        {"tp_plan": "auto"} if n_devices > 1 else {"device_map": {"": device}}
    )
    start_s = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16, **placement)
    return model, time.perf_counter() - start_s


def _rates(model: Any, device: Any, options: Any) -> tuple[list[float], int]:
    """Return tok/s of each repetition, two of warm-up first, and the tokens of the last."""
    import torch  # noqa: PLC0415
    from transformers import GenerationConfig  # noqa: PLC0415

    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=options.new_tokens,
        min_new_tokens=options.new_tokens,
        eos_token_id=None,
        pad_token_id=0,
        cache_implementation="static" if options.ways == "static" else None,
        disable_compile=options.ways != "static",
    )
    prompt = torch.arange(10, 10 + PROMPT_TOKENS, device=device)[None]
    rates = []
    for _ in range(options.repetitions + 2):
        start_s = time.perf_counter()
        tokens = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), generation_config=config
        )
        tokens.cpu()
        rates.append(options.new_tokens / (time.perf_counter() - start_s))
    return rates, int(tokens.shape[1]) - PROMPT_TOKENS


def _local_bytes(tensor: Any) -> int:
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return int(local.numel() * local.element_size())


if __name__ == "__main__":
    sys.exit(main())
