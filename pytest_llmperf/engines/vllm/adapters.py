"""LoRA adapters in vLLM: loaded beside the model, chosen for each request, seen in its layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from vllm.lora.request import LoRARequest

from pytest_llmperf.core.effective import AdapterGroup
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.loading.adapter_files import AdapterFile
from pytest_llmperf.errors import LoadError, UsageError, did_you_mean
from pytest_llmperf.strategies.adapters import BASE

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Largest ranks that vLLM can be told (config/lora.py); its buffers are of that rank."""

_KEY = "base_model.model."


def adapter_arguments(plan: LoadPlan) -> dict[str, Any]:
    """Return the arguments of EngineArgs for the plan's adapters.

    Raises LoadError for a rank that vLLM does not take.
    """
    files = _read_files(plan)
    if not files:
        return {}
    return {
        "enable_lora": True,
        "max_loras": len(files),
        "max_cpu_loras": len(files),
        "max_lora_rank": _buffer_rank(max(max(file.ranks) for file in files)),
    }


def _read_files(plan: LoadPlan) -> tuple[AdapterFile, ...]:
    return tuple(AdapterFile.read(Path(folder)) for folder in plan.adapters)


def _buffer_rank(largest: int) -> int:
    """Return the least of `RANKS` that an adapter of this rank fits into."""
    rank = next((rank for rank in RANKS if rank >= largest), None)
    if rank is None:
        raise LoadError(f"an adapter of rank {largest}: vLLM takes ranks up to {RANKS[-1]}.")
    return rank


@dataclass
class Adapters:
    """The adapters of an engine, the first of them in force until others are chosen."""

    engine: Any
    runner: Any
    files: tuple[AdapterFile, ...]
    on_cpu: bool
    used: tuple[str, ...] = field(default=())

    @classmethod
    def load(cls, engine: Any, runner: Any, plan: LoadPlan) -> Adapters:
        """Hand them to the engine, which puts each into a slot of its layers.

        Raises LoadError for one that it does not take.
        """
        adapters = cls(engine, runner, _read_files(plan), on_cpu=plan.device_kind == "cpu")
        for file in adapters.files:
            adapters._hand_over(file)
        adapters.use(())
        return adapters

    def _hand_over(self, file: AdapterFile) -> None:
        try:
            self.engine.add_lora(self._request(file.name))
        except ValueError as error:
            raise LoadError(
                f"adapter {file.name!r} ({file.folder}): vLLM does not take it: {error}"
            ) from error

    @property
    def names(self) -> tuple[str, ...]:
        """All that are loaded, the default first."""
        return tuple(file.name for file in self.files)

    @property
    def in_force(self) -> tuple[str, ...]:
        """Those that requests go through."""
        return tuple(name for name in self.used if name != BASE)

    def use(self, names: Sequence[str]) -> tuple[str, ...]:
        """Send requests through these from now on, in turn; through the first where none is named.

        Raises UsageError for others.
        """
        self._require_loaded(names)
        if self.on_cpu:
            _require_no_mixture(names)
        self.used = tuple(names) or self.names[:1]
        return self.in_force

    def _require_loaded(self, names: Sequence[str]) -> None:
        known = (*self.names, BASE)
        unknown = next((name for name in names if name not in known), None)
        if unknown is not None:
            near = did_you_mean(unknown, known, otherwise=f"There are: {', '.join(known)}.")
            raise UsageError(f"adapter {unknown!r} is not loaded.{near}")

    def of_row(self, row: int) -> LoRARequest | None:
        """Return what request `row` of a batch goes through; None without an adapter."""
        name = self.used[row % len(self.used)] if self.used else BASE
        return None if name == BASE else self._request(name)

    def groups(self) -> tuple[AdapterGroup, ...]:
        """Return each adapter as vLLM's layers hold it now, compared with its file.

        Reads the files.
        """
        return tuple(self._group(file) for file in self.files)

    def _request(self, name: str) -> LoRARequest:
        index = self.names.index(name)
        return LoRARequest(
            lora_name=name, lora_int_id=index + 1, lora_path=self.files[index].folder
        )

    def _group(self, file: AdapterFile) -> AdapterGroup:
        matrices = self._matrices(file)
        ranks = [matrix.shape[0] for key, matrix in matrices.items() if ".lora_A." in key]
        return AdapterGroup(
            name=file.name,
            rank=max(ranks, default=0),
            layers=len(ranks),
            elements=sum(matrix.numel() for matrix in matrices.values()),
            tensors=len(matrices.keys() | file.shapes.keys()),
            tensors_equal=_equal_matrices(matrices, file),
            content_hash=file.content_hash,
            active=self.in_force == (file.name,),
        )

    def _matrices(self, file: AdapterFile) -> dict[str, Tensor]:
        """Return the matrices of an adapter in vLLM's layers by their names in the file."""
        # vLLM has no public view of its slots.
        manager = self.runner.lora_manager._adapter_manager  # noqa: SLF001
        number = self.names.index(file.name) + 1
        slots = [slot for slot, owner in enumerate(manager.lora_index_to_id) if owner == number]
        return dict(_slot_matrices(manager, slots[0], file)) if slots else {}


def _require_no_mixture(names: Sequence[str]) -> None:
    """Raise UsageError for rows with an adapter and rows with none in one batch on a CPU."""
    if BASE in names and set(names) != {BASE}:
        raise UsageError(
            f"rows with an adapter and rows with none in one batch ({', '.join(names)}): "
            "vLLM's CPU kernels (of 0.32) take the rows with none through the last adapter. "
            "Run them one after another.",
        )


def _slot_matrices(manager: Any, slot: int, file: AdapterFile) -> Iterator[tuple[str, Tensor]]:
    """Yield the matrices of a slot by their names in the file.

    Layers that hold nothing but zeros are left out.
    """
    for path, module in manager.modules.items():
        stacks = getattr(module, "lora_a_stacked", None)
        if not isinstance(stacks, tuple):
            continue
        parts = manager.packed_modules.get(path, [path])
        for part, a, b in zip(parts, stacks, module.lora_b_stacked, strict=False):
            yield from _layer_matrices(part, a[slot], b[slot], file)


def _layer_matrices(
    part: str, a: Tensor, b: Tensor, file: AdapterFile
) -> Iterator[tuple[str, Tensor]]:
    """Yield A and B of one layer, cut to the rank that the file has."""
    key_a, key_b = f"{_KEY}{part}.lora_A.weight", f"{_KEY}{part}.lora_B.weight"
    rank = file.shapes[key_a][0] if key_a in file.shapes else 0
    if rank or bool(a.any()) or bool(b.any()):
        yield key_a, a[0, : rank or None]
        yield key_b, b[0, :, : rank or None]


def _equal_matrices(matrices: dict[str, Tensor], file: AdapterFile) -> int:
    """Count the matrices that are those of the file in the layers' dtype.

    vLLM multiplies B by the adapter's scale when it loads it.
    """
    scale = _scale(file)
    with safe_open(file.weights, framework="pt") as stored:
        return sum(
            _same(matrix.cpu(), stored.get_tensor(key), scale if ".lora_B." in key else 1.0)
            for key, matrix in matrices.items()
            if key in file.shapes
        )


def _same(loaded: Tensor, stored: Tensor, scale: float) -> bool:
    expected = stored.to(loaded.dtype)
    if scale != 1:
        expected = expected * scale
    return loaded.shape == expected.shape and torch.equal(loaded, expected)


def _scale(file: AdapterFile) -> float:
    alpha, rank = float(file.config.get("lora_alpha") or 0), int(file.config.get("r") or 1)
    return alpha / rank**0.5 if file.config.get("use_rslora") else alpha / rank
