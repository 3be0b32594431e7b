"""A published architecture as a folder that a server can be started on.

It holds the config, the weights, and a tokenizer of its own with one word for each id ("w17"), so
that prompts and outputs are counted exactly; its answers mean nothing.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

from pytest_llmperf.cache_folder import writing
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.loading.folder import architecture_folder
from pytest_llmperf.engines.models.architectures import ARCHITECTURES
from pytest_llmperf.errors import LoadError

SUFFIX = "-served"

_TOKENIZER_CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 10**6}


@dataclass(frozen=True)
class ArchitectureFolder:
    """A folder that a server can be started on; with `dummy` no weights lie there."""

    folder: Path
    content_hash: str
    dummy: bool


def architecture(plan: LoadPlan, *, dummy: bool) -> ArchitectureFolder:
    """Return the folder of an `arch:` model, made once.

    Raises LoadError where it is too large to be written and `dummy` is False.
    """
    source = architecture_folder(plan)
    if source.dummy and not dummy:
        raise LoadError(
            f"model {plan.model.name!r} is too large to be written out, "
            "and this server makes no random weights of its own. 'server:vllm' does.",
        )
    folder = source.folder.with_name(source.folder.name + SUFFIX)
    vocabulary_size = int(ARCHITECTURES[plan.model.location].config["vocab_size"])
    with writing(folder):
        if not folder.is_dir():
            _write(folder, source.folder, vocabulary_size)
    return ArchitectureFolder(folder, source.content_hash, source.dummy)


def _write(folder: Path, source: Path, vocabulary_size: int) -> None:
    """Write links to the files of `source`, and a tokenizer beside them; in one step."""
    scratch = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        for file in source.iterdir():
            (scratch / file.name).symlink_to(file)
        _write_tokenizer(scratch, vocabulary_size)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_tokenizer(folder: Path, vocabulary_size: int) -> None:
    words(vocabulary_size).save(str(folder / "tokenizer.json"))
    config = json.dumps(_TOKENIZER_CONFIG)
    (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")


def words(size: int) -> Tokenizer:
    """Return a tokenizer of the words w0 to w(size - 1), each with its number as id."""
    model = models.WordLevel(_vocabulary(size), unk_token="w0")  # noqa: S106 - a word
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def _vocabulary(size: int) -> dict[str, int]:
    return {f"w{i}": i for i in range(size)}
