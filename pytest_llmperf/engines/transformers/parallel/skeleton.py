"""A model without weights, and what fills it: a seeded generator, or the files of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.loading import arch, checkpoint
from pytest_llmperf.engines.models.architectures import ARCHITECTURES
from pytest_llmperf.engines.models.checkpoint_files import files_not_read
from pytest_llmperf.engines.models.safetensors_header import read_json, weight_files
from pytest_llmperf.engines.transformers.checkpoint import first_names, folder_hash, weights_dtype
from pytest_llmperf.errors import LoadError


class Values(Protocol):
    """Fills modules with their values, in the order of `named_modules`."""

    def reading(self) -> Any:
        """Return the context in which modules are filled."""

    def fill(self, module: nn.Module, path: str) -> None:
        """Give a module its whole values on this rank's device.

        They are its own parameters and buffers, not its children's.
        """

    def skip(self, module: nn.Module, path: str) -> None:
        """Leave a module that another rank has on the meta device, or move it back there."""


@dataclass(frozen=True)
class Skeleton:
    """A model before it has weights: it lies on the meta device, and `values` fills it."""

    model: PreTrainedModel
    values: Values
    tokenizer: PreTrainedTokenizerBase | None
    content_hash: str
    checkpoint_dtype: str
    not_read: tuple[str, ...] = ()


def skeleton(plan: LoadPlan, device: torch.device) -> Skeleton:
    """Return the model of a plan before it has weights.

    Raises LoadError where its files cannot be read part by part.
    """
    if plan.model.kind == "arch":
        return _architecture_skeleton(plan, device)
    with checkpoint.load_errors(plan, plan.model.location):
        folder = checkpoint.local_folder(plan)
    with checkpoint.load_errors(plan, str(folder)):
        return _folder_skeleton(plan, device, folder)


def _architecture_skeleton(plan: LoadPlan, device: torch.device) -> Skeleton:
    name = plan.model.location
    published = ARCHITECTURES[name].dtype
    dtype = weights_dtype(plan, published)
    with checkpoint.load_errors(plan, f"architecture {name!r}"):
        model = arch.on_meta(arch.config_of(name), dtype, plan.attention)
    return Skeleton(
        model=model,
        values=Seeded(model, device, plan.seed),
        tokenizer=None,
        content_hash=arch.content_hash(name, device, plan.seed),
        checkpoint_dtype=published,
    )


def _folder_skeleton(plan: LoadPlan, device: torch.device, folder: Path) -> Skeleton:
    checkpoint.require_decoder(folder)
    files = _require_weight_files(folder)
    stored = checkpoint.stored_dtype(folder, read_json(folder / "config.json"))
    config: Any = checkpoint.config_of(folder, trust_remote_code=plan.model.trust_remote_code)
    model = arch.on_meta(config, weights_dtype(plan, stored), plan.attention)
    return Skeleton(
        model=model,
        values=Files.open(files, model, device),
        tokenizer=checkpoint.tokenizer_of(plan, folder),
        content_hash=folder_hash(folder),
        checkpoint_dtype=stored,
        not_read=files_not_read(folder),
    )


def _require_weight_files(folder: Path) -> list[Path]:
    files = weight_files(folder)
    if not files:
        raise LoadError(
            f"{folder} holds no *.safetensors, which ranks read their parts from. "
            "Save the model again as safetensors.",
        )
    return files


@dataclass(frozen=True)
class Seeded:
    """Random values, drawn in the same order as on one device.

    Every rank draws all of them and keeps its own.
    """

    model: PreTrainedModel
    device: torch.device
    seed: int

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Start the generator from the seed."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(self.seed)
            yield

    def fill(self, module: nn.Module, path: str) -> None:
        """Draw the values; see Values."""
        arch.materialise(self.model, module, path, self.device)

    def skip(self, module: nn.Module, path: str) -> None:
        """Draw the values like the others, and throw them away."""
        self.fill(module, path)
        arch.move(module, torch.device("meta"))


@dataclass(frozen=True)
class Files:
    """Values of safetensors files, read tensor by tensor. `file_of` finds a tensor by its name."""

    model: PreTrainedModel
    device: torch.device
    file_of: dict[str, Path]

    @classmethod
    def open(cls, files: list[Path], model: PreTrainedModel, device: torch.device) -> Files:
        """Find the tensors of `model` in `files`.

        Raises LoadError where the files do not hold the model's parameters by the names it has.
        Tied parameters are in the files once.
        """
        file_of = _file_of_each_tensor(files)
        missing = _names_to_read(model) - file_of.keys()
        if missing:
            raise LoadError(
                f"{files[0].parent}: {len(missing)} parameters of {type(model).__name__} are not "
                f"in the files under their own names ({first_names(missing)}), and ranks "
                "read by name. Load it on one device and save it again.",
            )
        return cls(model, device, file_of)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn gradients off; nothing is drawn."""
        with torch.no_grad():
            yield

    def fill(self, module: nn.Module, path: str) -> None:
        """Read the values; see Values."""
        self._compute_tables(module, path)
        for name, parameter in list(module.named_parameters(recurse=False)):
            if _join(path, name) in self.file_of:
                value = self._read(_join(path, name), parameter)
                module.register_parameter(name, nn.Parameter(value, requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            if _join(path, name) in self.file_of:
                setattr(module, name, self._read(_join(path, name), buffer))

    def skip(self, module: nn.Module, path: str) -> None:
        """Read nothing."""

    def _compute_tables(self, module: nn.Module, path: str) -> None:
        """Let the model compute the buffers that no file holds (rotary frequencies)."""
        buffers = dict(module.named_buffers(recurse=False))
        computed = [name for name in buffers if _join(path, name) not in self.file_of]
        for name in computed:
            setattr(module, name, torch.empty_like(buffers[name], device=self.device))
        if computed:
            initialise: Any = self.model._init_weights  # noqa: SLF001  # as arch.materialise
            initialise(module)

    def _read(self, name: str, like: Tensor) -> Tensor:
        """Read a tensor in the dtype of `like`, on this rank's device."""
        with safe_open(self.file_of[name], framework="pt") as tensors:
            stored: Tensor = tensors.get_tensor(name)
        return stored.to(device=self.device, dtype=like.dtype, copy=True)


def _file_of_each_tensor(files: list[Path]) -> dict[str, Path]:
    file_of: dict[str, Path] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            file_of |= dict.fromkeys(tensors.keys(), file)
    return file_of


def _names_to_read(model: PreTrainedModel) -> set[str]:
    """Return the names of all parameters but those that are tied to another."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return names - set(getattr(model, "all_tied_weights_keys", {}) or {})


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
