"""A model without weights, and where its values come from: a seeded generator, or the files of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.loading import arch, checkpoint
from pytest_llmperf.engines.models.content import hash_files
from pytest_llmperf.engines.models.names import ARCHITECTURES
from pytest_llmperf.engines.models.safetensors_header import read_json, weight_files
from pytest_llmperf.errors import LoadError


class Values(Protocol):
    """Fills modules with their values, in the order of `named_modules`."""

    def reading(self) -> Any:
        """A context to fill in."""

    def fill(self, module: nn.Module, path: str) -> None:
        """Give the module's own parameters and buffers (not its children's) their whole values, on this rank's device."""

    def skip(self, module: nn.Module, path: str) -> None:
        """Another rank has this module; it stays, or goes back, on the meta device."""


@dataclass(frozen=True)
class Skeleton:
    """`model` lies on the meta device; `values` fills it."""

    model: PreTrainedModel
    values: Values
    tokenizer: PreTrainedTokenizerBase | None
    content_hash: str
    checkpoint_dtype: str


def skeleton(plan: LoadPlan, device: torch.device) -> Skeleton:
    """The model of a plan before it has weights.

    Raises LoadError where its files cannot be read part by part.
    """
    if plan.model.kind == "arch":
        return _of_architecture(plan, device)
    with checkpoint.load_errors(plan, plan.model.location):
        folder = checkpoint.local_folder(plan)
    with checkpoint.load_errors(plan, str(folder)):
        return _of_folder(plan, device, folder)


def _of_architecture(plan: LoadPlan, device: torch.device) -> Skeleton:
    name = plan.model.location
    published = ARCHITECTURES[name].dtype
    dtype = getattr(torch, published if plan.weights_dtype == "auto" else plan.weights_dtype)
    with checkpoint.load_errors(plan, f"architecture {name!r}"):
        model = arch.on_meta(arch.config_of(name), dtype, plan.attention)
    return Skeleton(
        model,
        Seeded(model, device, plan.seed),
        None,
        arch.content_hash(name, device, plan.seed),
        published,
    )


def _of_folder(plan: LoadPlan, device: torch.device, folder: Path) -> Skeleton:
    files = weight_files(folder)
    if not files:
        raise LoadError(
            f"{folder} holds no *.safetensors, which ranks read their parts from. Save the model again as safetensors.",
        )
    stored = checkpoint.stored_dtype(folder, read_json(folder / "config.json"))
    dtype = getattr(torch, stored if plan.weights_dtype == "auto" else plan.weights_dtype)
    config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=plan.model.trust_remote_code)
    model = arch.on_meta(config, dtype, plan.attention)
    return Skeleton(
        model=model,
        values=Files.of(files, model, device),
        tokenizer=checkpoint.tokenizer_of(plan, folder),
        content_hash=hash_files([folder / "config.json", *files]),
        checkpoint_dtype=stored,
    )


@dataclass(frozen=True)
class Seeded:
    """Random values, drawn in the same order as on one device: every rank draws all of them and keeps its own."""

    model: PreTrainedModel
    device: torch.device
    seed: int

    @contextmanager
    def reading(self) -> Iterator[None]:
        """The generator starts from the seed."""
        with (
            torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []),
            torch.no_grad(),
        ):
            torch.manual_seed(self.seed)
            yield

    def fill(self, module: nn.Module, path: str) -> None:
        """See Values."""
        arch.materialise(self.model, module, path, self.device)

    def skip(self, module: nn.Module, path: str) -> None:
        """Drawn like the others, and thrown away."""
        self.fill(module, path)
        arch.move(module, torch.device("meta"))


@dataclass(frozen=True)
class Files:
    """Values of safetensors files, read tensor by tensor.

    `aliases` are tied parameters, which the files hold once.
    """

    model: PreTrainedModel
    device: torch.device
    where: dict[str, Path]
    aliases: frozenset[str]

    @classmethod
    def of(cls, files: list[Path], model: PreTrainedModel, device: torch.device) -> Files:
        """Raises LoadError where the files do not hold the model's parameters by the names it has."""
        where: dict[str, Path] = {}
        for file in files:
            with safe_open(file, framework="pt") as opened:
                where |= dict.fromkeys(opened.keys(), file)
        aliases = frozenset(getattr(model, "all_tied_weights_keys", {}) or {})
        named = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        missing = sorted(named - where.keys() - aliases)
        if missing:
            raise LoadError(
                f"{files[0].parent}: {len(missing)} parameters of {type(model).__name__} are not in the files under their own "
                f"names ({', '.join(missing[:3])}, …), and ranks read by name. Load it on one device and save it again.",
            )
        return cls(model, device, where, aliases)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Nothing is drawn."""
        with torch.no_grad():
            yield

    def fill(self, module: nn.Module, path: str) -> None:
        """See Values.

        Tables that no file holds (rotary frequencies) are computed by the model's own rules.
        """
        computed = [
            name
            for name, _ in module.named_buffers(recurse=False)
            if _join(path, name) not in self.where
        ]
        for name in computed:
            setattr(module, name, torch.empty_like(module.get_buffer(name), device=self.device))
        if computed:
            initialise: Any = self.model._init_weights  # noqa: SLF001  as arch.materialise
            initialise(module)
        for name, parameter in list(module.named_parameters(recurse=False)):
            if _join(path, name) in self.where:
                value = self._read(_join(path, name)).to(
                    device=self.device, dtype=parameter.dtype, copy=True
                )
                module.register_parameter(name, nn.Parameter(value, requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            if name not in computed:
                setattr(
                    module,
                    name,
                    self._read(_join(path, name)).to(
                        device=self.device, dtype=buffer.dtype, copy=True
                    ),
                )

    def skip(self, module: nn.Module, path: str) -> None:
        """Not read."""

    def _read(self, name: str) -> Tensor:
        with safe_open(self.where[name], framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
        return tensor


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
