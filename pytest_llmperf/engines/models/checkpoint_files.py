"""Which files of a checkpoint's folder are the model, and what else lies there.

Training runs leave adapters, optimizers and second copies of the weights beside a model. What is
loaded, hashed, sized and named is what transformers reads: `model.safetensors`, else the files of
its index, else `pytorch_model.bin`, else those of its index. No torch.
"""

from __future__ import annotations

from pathlib import Path

from pytest_llmperf.engines.models.safetensors_header import (
    BIN_FILES,
    read_json,
    weight_files,
)
from pytest_llmperf.errors import LoadError

ADAPTER_CONFIG = "adapter_config.json"
_NAMED = 3


def model_files(folder: Path) -> list[Path]:
    """Return the files that a model's weights are read from; empty if there are none.

    Raises LoadError if an index names files that are missing.
    """
    return weight_files(folder) or bin_files(folder)


def bin_files(folder: Path) -> list[Path]:
    """Return the pickled weight files of a checkpoint, sorted. Raises as `model_files`."""
    single, index = (folder / name for name in BIN_FILES)
    if single.is_file():
        return [single]
    if not index.is_file():
        return []
    files = sorted({folder / name for name in read_json(index).get("weight_map", {}).values()})
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise LoadError(
            f"{index} names {len(files)} weight files, {len(missing)} are missing: "
            f"{', '.join(missing)}. Download or save the model again, or name another."
        )
    return files


def files_not_read(folder: Path) -> tuple[str, ...]:
    """Return a sentence on each thing in a folder that looks like the model and is no part of it.

    An adapter is applied only where a strategy asks for it.
    """
    adapter = (folder / ADAPTER_CONFIG).is_file()
    return (*([_adapter_note(folder)] if adapter else []), *_copies_note(folder))


def _adapter_note(folder: Path) -> str:
    return (
        f"an adapter lies in the model's folder ({ADAPTER_CONFIG}) and is not applied; "
        f"'lora:{folder}' applies it"
    )


def _copies_note(folder: Path) -> list[str]:
    """Return a sentence on safetensors that are not read; nothing where there are none."""
    files = model_files(folder)
    others = {file.name for file in folder.glob("*.safetensors") if not _is_adapter(file)}
    others -= {file.name for file in files}
    if not others:
        return []
    names = ", ".join(sorted(others)[:_NAMED]) + (", …" if len(others) > _NAMED else "")
    read = files[0].name if len(files) == 1 else f"{len(files)} files"
    return [f"the weights are those of {read}; not read: {names}"]


def _is_adapter(file: Path) -> bool:
    return file.name.startswith("adapter_model")
