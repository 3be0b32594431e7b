"""The headers of safetensors files: names, dtypes and shapes of the tensors.

They are read without torch and without the tensors' data.

Format: 8 bytes little-endian length of the header, the header in JSON, the data
(https://huggingface.co/docs/safetensors/index#format).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pytest_llmperf.errors import LoadError

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""safetensors' names of dtypes -> torch's."""

BIN_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
"""A checkpoint of pickled weights: in one file, or an index of several."""

_LENGTH_BYTES = 8
_AGAIN = "Download or save the model again, or name another."


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that transformers reads of a checkpoint, sorted.

    That is one file, or those of an index; no second copy, optimizer or adapter beside them. Files
    of other names are a model only where nothing else is, and an engine takes such.
    Raises LoadError if the index names files that are missing.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        return _indexed_files(index)
    if any((folder / name).is_file() for name in BIN_FILES):
        return []
    files = sorted(folder.glob("*.safetensors"))
    return [file for file in files if not file.name.startswith("adapter_model")]


def _indexed_files(index: Path) -> list[Path]:
    names = set(read_json(index).get("weight_map", {}).values())
    files = sorted(index.parent / name for name in names)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise LoadError(_names_missing_files(index, len(files), missing))
    return files


def _names_missing_files(index: Path, n_files: int, missing: list[str]) -> str:
    return (
        f"{index} names {n_files} weight files, {len(missing)} are missing: "
        f"{', '.join(missing)}. {_AGAIN}"
    )


def folder_elements(folder: Path) -> Counter[str]:
    """Return the elements of all safetensors files of a checkpoint by dtype (torch's names).

    Empty if there are none.
    """
    counts: Counter[str] = Counter()
    for _, dtype, shape in folder_tensors(folder):
        counts[dtype] += math.prod(shape)
    return counts


def folder_tensors(folder: Path) -> Iterator[tuple[str, str, list[int]]]:
    """Yield name, dtype (torch's name) and shape of each tensor in a checkpoint's safetensors."""
    for file in weight_files(folder):
        yield from _tensors(file)


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises LoadError with the file's name."""
    value = _read_json_value(file)
    if isinstance(value, dict):
        return value
    raise LoadError(_holds_no_object(file, value))


def _holds_no_object(file: Path, value: object) -> str:
    return f"{file} holds a {type(value).__name__}, an object is needed. {_AGAIN}"


def _read_json_value(file: Path) -> object:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise LoadError(f"{file} cannot be read as JSON: {error}. {_AGAIN}") from error


def _tensors(file: Path) -> Iterator[tuple[str, str, list[int]]]:
    """Yield each tensor's name, dtype and shape.

    Raises LoadError if the file is cut short or is not a safetensors file.
    """
    header, data_bytes = _header(file)
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["data_offsets"][1] > data_bytes:
            raise LoadError(f"{file} is cut short: {_ends_too_late(name, entry, data_bytes)}")
        yield name, _dtype_of(entry), entry["shape"]


def _ends_too_late(name: str, entry: dict[str, Any], data_bytes: int) -> str:
    return (
        f"tensor {name!r} ends at byte {entry['data_offsets'][1]} of the data, "
        f"the file has {data_bytes}. {_AGAIN}"
    )


def _dtype_of(entry: dict[str, Any]) -> str:
    """Return torch's name of a tensor's dtype."""
    name: str = entry["dtype"]
    return DTYPES.get(name, name.lower())


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a file, and how many bytes of data follow it."""
    size = file.stat().st_size
    raw = _raw_header(file, size)
    return _decoded_header(file, raw), size - _LENGTH_BYTES - len(raw)


def _decoded_header(file: Path, raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError as error:
        raise LoadError(
            f"{file} is not a safetensors file: its header is not JSON ({error}). {_AGAIN}"
        ) from error


def _raw_header(file: Path, size: int) -> bytes:
    """Read the bytes of the header of a file of `size` bytes."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or length > size - _LENGTH_BYTES:
            raise LoadError(_header_too_long(file, length, size))
        return stream.read(length)


def _header_too_long(file: Path, length: int, size: int) -> str:
    reason = f"its header would be {length} bytes long, the file has {size}"
    return f"{file} is cut short or is not a safetensors file: {reason}. {_AGAIN}"
