"""The plugin's own cost, each number a ratio or a difference of things measured in turn in one run.

python benchmarks/run.py [--quick] [--device cpu|cuda] [--only
startup,decode,overhead,pruning,quantizing,suite]
                         [--pairs N] [--batch N] [--out FOLDER]

`overhead` is the first half of `decode`, for when --pairs asks for many. Writes benchmarks.json and
benchmarks.md to the folder (default build/benchmarks) and exits 1 unless every bar is met.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from decode import decode
from pairs import Finding
from pruning import pruning
from quantizing import quantizing
from startup import startup
from suite import suite

from pytest_llmperf.workloads import Decode

PARTS = ("startup", "decode", "pruning", "quantizing", "suite")
MODELS = {"cpu": "smollm2-135m", "cuda": "arch:falcon-7b"}
# On a GPU a batch so large that the device is the limit: eager decoding of one sequence waits for
# the host, whose scheduling varies by a tenth from run to run, and no affordable number of pairs
# could show one per cent in that.
WORKLOADS = {
    "cpu": Decode(batch=1, prompt_tokens=32, new_tokens=16),
    "cuda": Decode(batch=1024, prompt_tokens=8, new_tokens=16),
}


def main() -> int:
    """Run the parts, write the results, say which bars are missed."""
    options = _parser().parse_args()
    findings: list[Finding] = []
    for part in options.only.split(","):
        print(f"{part} …", flush=True)
        findings += _run(part, options)
    result = {
        "where": _where(options.device),
        "quick": options.quick,
        "findings": [asdict(f) for f in findings],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "benchmarks.json").write_text(
        json.dumps(result, indent=2) + "\n", encoding="utf-8"
    )
    text = markdown(result["where"], findings)
    (options.out / "benchmarks.md").write_text(text, encoding="utf-8")
    print(text)
    return 0 if all(f.met == "yes" for f in findings) else 1


def markdown(where: dict[str, object], findings: list[Finding]) -> str:
    """A table, and the environment it was made in."""
    rows = [
        f"| {f.name} | {_value(f)} | {f.bar} | {f.met} | {f.n} | {f.detail} |" for f in findings
    ]
    head = [
        "| what | measured [99 % interval] | bar | met | pairs | on |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *rows, "", ", ".join(f"{k} {v}" for k, v in where.items()), ""])


def _run(part: str, options: argparse.Namespace) -> list[Finding]:
    match part:
        case "startup":
            return startup(60 if options.quick else 300)
        case "decode":
            return _decode(options)
        case "overhead":
            return _decode(options, timestamps=False)
        case "pruning":
            return pruning(options.device)
        case "quantizing":
            return quantizing(options.device)
        case "suite":
            return suite(options.device)
        case _:
            raise SystemExit(f"--only={part!r} is not known. Parts: {', '.join(PARTS)}.")


def _decode(options: argparse.Namespace, *, timestamps: bool = True) -> list[Finding]:
    workload = WORKLOADS[options.device]
    if options.batch:
        workload = Decode(
            batch=options.batch,
            prompt_tokens=workload.prompt_tokens,
            new_tokens=workload.new_tokens,
        )
    pairs = options.pairs or (8 if options.quick else 40)
    return decode(
        options.model or MODELS[options.device],
        options.device,
        workload,
        pairs,
        timestamps=timestamps,
    )


def _value(finding: Finding) -> str:
    interval = "" if finding.low is None else f" [{finding.low:.4g}, {finding.high:.4g}]"
    return f"{finding.value:.4g} {finding.unit}{interval}"


def _where(device: str) -> dict[str, object]:
    packages = {
        name: metadata.version(name)
        for name in ("pytest", "torch", "transformers", "pytest-llmperf")
    }
    now_utc = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    return {
        "date": now_utc,
        "device": device,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **packages,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer pairs: minutes become one, intervals widen"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--model", help="default: " + ", ".join(f"{m} on {d}" for d, m in MODELS.items())
    )
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument(
        "--pairs", type=int, help="of decode and overhead, instead of 40 (8 with --quick)"
    )
    parser.add_argument(
        "--batch",
        type=int,
        help="sequences at once of decode and overhead; default: 1 on a CPU, 1024 on a GPU",
    )
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
