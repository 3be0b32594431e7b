"""The trained adapters and models of this suite.

`training.py` makes each of them once; the cache keeps it under the hash of what made it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from filelock import FileLock

HERE = Path(__file__).parent
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "torchao")
FOLDERS = {
    "lora": "library-lora",
    "qlora": "library-qlora",
    "full": "library-full",
    "qat": "library-qat",
}
EPOCHS = {"lora": 3, "qlora": 3, "full": 2, "qat": 2}


@pytest.fixture(scope="session")
def trained():
    """Return a function: `trained("lora")` is the folder that `training.py lora` wrote.

    Training takes minutes the first time, so it happens only on demand.
    """
    return _trained


def _trained(kind: str) -> str:
    folder = _cache() / "trained" / _key(kind) / FOLDERS[kind]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            if not os.environ.get("LLMPERF_TRAIN"):
                pytest.skip(
                    f"{FOLDERS[kind]} is not trained yet: "
                    "LLMPERF_TRAIN=1 trains it once, in some minutes"
                )
            partial = folder.with_suffix(".partial")
            command = [
                sys.executable,
                str(HERE / "training.py"),
                kind,
                str(partial),
                "--epochs",
                str(EPOCHS[kind]),
            ]
            # Our own script, in a process of its own: it imports torch.
            subprocess.run(command, check=True)  # noqa: S603
            partial.rename(folder)
    return str(folder)


def _key(kind: str) -> str:
    """Of the script, its data, its arguments and the packages that decide what comes out."""
    versions = [f"{name} {metadata.version(name)}" for name in PACKAGES]
    content = [
        (HERE / "training.py").read_text(),
        (HERE / "data" / "train.jsonl").read_text(),
        kind,
        str(EPOCHS[kind]),
    ]
    return hashlib.sha256("\0".join([*content, *versions]).encode()).hexdigest()[:16]


def _cache() -> Path:
    """Where this plugin keeps what can be made again."""
    if configured := os.environ.get("LLMPERF_CACHE"):
        return Path(configured).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pytest-llmperf"
