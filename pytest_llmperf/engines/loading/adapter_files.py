"""An adapter's files as peft writes them, and whether they fit a model.

Nothing of peft is needed to tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.content import hash_files
from pytest_llmperf.engines.models.safetensors_header import read_json
from pytest_llmperf.errors import LoadError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


@dataclass(frozen=True)
class AdapterFile:
    """One adapter on disk.

    `shapes` are those of its tensors; `base` is the model it says that it was made for.
    """

    folder: str
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    content_hash: str

    @classmethod
    def read(cls, folder: Path) -> AdapterFile:
        """Read configuration and shapes, no values.

        Raises LoadError for files that are not what they should be.
        """
        config = read_json(folder / CONFIG)
        adapter_type = config.get("peft_type")
        if adapter_type != "LORA":
            raise LoadError(
                f"adapter {folder.name!r}: {folder / CONFIG} is of type {adapter_type!r}, "
                "'LORA' is needed."
            )
        shapes = _shapes(folder)
        return cls(str(folder), config, shapes, hash_files([folder / CONFIG, folder / WEIGHTS]))

    @property
    def name(self) -> str:
        """The folder's name."""
        return PurePath(self.folder).name

    @property
    def weights(self) -> str:
        """Path of the tensors."""
        return str(Path(self.folder) / WEIGHTS)

    @property
    def base(self) -> str:
        """The model it says that it was made for; empty if it does not say."""
        return str(self.config.get("base_model_name_or_path") or "")

    @property
    def ranks(self) -> frozenset[int]:
        """The ranks its configuration allows."""
        pattern = self.config.get("rank_pattern") or {}
        return frozenset(map(int, (self.config.get("r", 0), *pattern.values())))


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of an adapter's tensors."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as stored:
            keys = stored.keys()
            return {key: tuple(stored.get_slice(key).get_shape()) for key in keys}
    except (OSError, SafetensorError) as error:
        raise LoadError(
            f"adapter {folder.name!r}: {folder / WEIGHTS} cannot be read: {error}. Save it again."
        ) from error


def require_fits(file: AdapterFile, model: nn.Module, plan: LoadPlan) -> None:
    """Raise LoadError if the adapter is of another model, or its tensors do not fit.

    They have to be of the model's shapes and of the adapter's own rank.
    """
    about = (
        f"adapter {file.name!r} ({file.folder}, made for {file.base or 'a model it does not name'})"
    )
    does_not_fit = f"{about} does not fit model {plan.model.name!r}"
    if not _same_base(file.base, model, plan) and plan.option("adapter_base") != "any":
        raise LoadError(
            f"{does_not_fit}: it names another base model. Take the adapter of this one, or, "
            "if both names mean the same weights, say options={'adapter_base': 'any'} "
            "in the marker.",
        )
    for matrix in _matrices(file):
        reason = _misfit(matrix, model)
        if reason is not None:
            raise LoadError(f"{does_not_fit}: {reason}. Take an adapter of this model.")
        if matrix.rank not in file.ranks:
            raise LoadError(f"{about}: {_wrong_rank(matrix, file)}")


@dataclass(frozen=True)
class _Matrix:
    """One matrix of an adapter: A maps a layer's inputs to the rank, B the rank to its outputs."""

    key: str
    module: str
    side: str
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        return self.shape[0 if self.side == "A" else 1]

    @property
    def width(self) -> int:
        return self.shape[1 if self.side == "A" else 0]


def _matrices(file: AdapterFile) -> Iterator[_Matrix]:
    for key, shape in file.shapes.items():
        match = _KEY.fullmatch(key)
        if match is not None:
            yield _Matrix(key, match["module"], match["side"], shape)


def _wrong_rank(matrix: _Matrix, file: AdapterFile) -> str:
    ranks = " or ".join(map(str, sorted(file.ranks)))
    return (
        f"its configuration says rank {ranks}, tensor {matrix.key} has rank {matrix.rank}. "
        "Its files are not of one adapter: save it again."
    )


def _misfit(matrix: _Matrix, model: nn.Module) -> str | None:
    """Return why a matrix of an adapter does not fit the layer it changes, or None."""
    try:
        layer: Any = model.get_submodule(matrix.module)
    except AttributeError:
        return f"it changes {matrix.module}, which {type(model).__name__} does not have"
    dimension = "inputs" if matrix.side == "A" else "outputs"
    layer_width = getattr(layer, "in_features" if matrix.side == "A" else "out_features", None)
    if layer_width in (None, matrix.width):
        return None
    return (
        f"{matrix.module} has {layer_width} {dimension}, "
        f"the adapter's lora_{matrix.side} has {matrix.width}"
    )


def _same_base(declared: str, model: Any, plan: LoadPlan) -> bool:
    """Whether the adapter's own word for its base can mean this model.

    A path means its last part: it is another machine's.
    """
    names = {plan.model.name, plan.model.location, str(getattr(model.config, "_name_or_path", ""))}
    if not declared or declared in names:
        return True
    last_part = PurePath(declared).name.lower()
    if last_part in {PurePath(name).name.lower() for name in names if name}:
        return True
    return plan.model.kind == "builtin" and last_part.startswith(f"{plan.model.name}-")
