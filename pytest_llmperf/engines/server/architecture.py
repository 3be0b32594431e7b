"""A published architecture as a folder that a server can be started on: its config, a tokenizer of its own, and its weights.

Its tokenizer has one word for each id ("w17"), so that prompts and outputs are counted exactly; its answers mean nothing.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from tokenizers import Tokenizer, models, pre_tokenizers

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.loading.folder import architecture_folder
from pytest_llmperf.engines.models.names import ARCHITECTURES
from pytest_llmperf.errors import LoadError

SUFFIX = "-served"


@dataclass(frozen=True)
class Served:
    """The folder; `dummy`: without weights."""

    folder: Path
    content_hash: str
    dummy: bool


def architecture(plan: LoadPlan, *, dummy: bool) -> Served:
    """The folder of an `arch:` model, made once.

    Raises LoadError where it is too large to be written and `dummy` is False.
    """
    made = architecture_folder(plan)
    if made.dummy and not dummy:
        raise LoadError(
            f"model {plan.model.name!r} is too large to be written out, and this server makes no random weights of its own. "
            "'server:vllm' does.",
        )
    folder = made.folder.with_name(made.folder.name + SUFFIX)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            _write(
                folder, made.folder, int(ARCHITECTURES[plan.model.location].config["vocab_size"])
            )
    return Served(folder, made.content_hash, made.dummy)


def _write(folder: Path, made: Path, size: int) -> None:
    """Links to the files of `made`, and a tokenizer beside them; in one step."""
    scratch = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        for file in made.iterdir():
            (scratch / file.name).symlink_to(file)
        words(size).save(str(scratch / "tokenizer.json"))
        said = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 10**6}
        (scratch / "tokenizer_config.json").write_text(json.dumps(said), encoding="utf-8")
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def words(size: int) -> Tokenizer:
    """A tokenizer of the words w0 to w(size - 1), each with its number as id."""
    # A word.
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer
