"""LoRA adapters in vLLM: loaded beside the model, chosen request by request, and seen in its layers."""

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
    """Arguments of EngineArgs for the plan's adapters.

    Raises LoadError for a rank that vLLM does not take.
    """
    files = [AdapterFile.read(Path(folder)) for folder in plan.adapters]
    if not files:
        return {}
    largest = max(max(file.ranks) for file in files)
    rank = next((rank for rank in RANKS if rank >= largest), None)
    if rank is None:
        raise LoadError(f"an adapter of rank {largest}: vLLM takes ranks up to {RANKS[-1]}.")
    return {
        "enable_lora": True,
        "max_loras": len(files),
        "max_cpu_loras": len(files),
        "max_lora_rank": rank,
    }


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
        files = tuple(AdapterFile.read(Path(folder)) for folder in plan.adapters)
        adapters = cls(engine, runner, files, on_cpu=plan.device.partition(":")[0] == "cpu")
        for file in adapters.files:
            try:
                engine.add_lora(adapters._request(file.name))
            except ValueError as error:
                raise LoadError(
                    f"adapter {file.name!r} ({file.folder}): vLLM does not take it: {error}"
                ) from error
        adapters.use(())
        return adapters

    @property
    def names(self) -> tuple[str, ...]:
        """All that are loaded, the default first."""
        return tuple(file.name for file in self.files)

    @property
    def in_force(self) -> tuple[str, ...]:
        """Those that requests go through."""
        return tuple(name for name in self.used if name != BASE)

    def use(self, names: Sequence[str]) -> tuple[str, ...]:
        """Requests go through these from now on, in turn; none named: through the first.

        Raises UsageError for others.
        """
        unknown = [name for name in names if name not in (*self.names, BASE)]
        if unknown:
            near, able = (
                did_you_mean(unknown[0], (*self.names, BASE)),
                ", ".join((*self.names, BASE)),
            )
            raise UsageError(f"adapter {unknown[0]!r} is not loaded.{near} There are: {able}.")
        if self.on_cpu and BASE in names and set(names) != {BASE}:
            raise UsageError(
                f"rows with an adapter and rows with none in one batch ({', '.join(names)}): vLLM's CPU kernels (of 0.32) "
                "take the rows with none through the last adapter. Run them one after another.",
            )
        self.used = tuple(names) or self.names[:1]
        return self.in_force

    def of_row(self, row: int) -> LoRARequest | None:
        """What request `row` of a batch goes through; None without an adapter."""
        name = self.used[row % len(self.used)] if self.used else BASE
        return None if name == BASE else self._request(name)

    def groups(self) -> tuple[AdapterGroup, ...]:
        """Each adapter as vLLM's layers hold it now, compared with its file. Reads the files."""
        return tuple(self._group(file) for file in self.files)

    def _request(self, name: str) -> LoRARequest:
        at = self.names.index(name)
        return LoRARequest(lora_name=name, lora_int_id=at + 1, lora_path=self.files[at].folder)

    def _group(self, file: AdapterFile) -> AdapterGroup:
        # VLLM has no public view of its slots.
        manager = self.runner.lora_manager._adapter_manager  # noqa: SLF001
        number = self.names.index(file.name) + 1
        slots = [slot for slot, held in enumerate(manager.lora_index_to_id) if held == number]
        held = dict(_held(manager, slots[0], file)) if slots else {}
        return AdapterGroup(
            name=file.name,
            rank=max((a.shape[0] for key, a in held.items() if ".lora_A." in key), default=0),
            layers=sum(".lora_A." in key for key in held),
            elements=sum(tensor.numel() for tensor in held.values()),
            tensors=len(held.keys() | file.shapes.keys()),
            tensors_equal=_equal(held, file),
            content_hash=file.content_hash,
            active=self.in_force == (file.name,),
        )


def _held(manager: Any, slot: int, file: AdapterFile) -> Iterator[tuple[str, Tensor]]:
    """The matrices of a slot by their names in the file.

    Layers that hold nothing but zeros are left out.
    """
    for path, module in manager.modules.items():
        stacks = getattr(module, "lora_a_stacked", None)
        if not isinstance(stacks, tuple):
            continue
        parts = manager.packed_modules.get(path, [path])
        for part, a, b in zip(parts, stacks, module.lora_b_stacked, strict=False):
            key = f"{_KEY}{part}.lora_{{}}.weight"
            rank = _rank(file, key.format("A"))
            if rank or bool(a[slot].any()) or bool(b[slot].any()):
                yield key.format("A"), a[slot, 0, : rank or None]
                yield key.format("B"), b[slot, 0, :, : rank or None]


def _rank(file: AdapterFile, key: str) -> int:
    return file.shapes[key][0] if key in file.shapes else 0


def _equal(held: dict[str, Tensor], file: AdapterFile) -> int:
    """Matrices that are those of the file in the layers' dtype.

    VLLM multiplies B by the adapter's scale when it loads it.
    """
    scale = _scale(file)
    with safe_open(file.weights, framework="pt") as stored:
        return sum(
            _same(held[key].cpu(), stored.get_tensor(key), scale if ".lora_B." in key else 1.0)
            for key in held
            if key in file.shapes
        )


def _same(held: Tensor, stored: Tensor, scale: float) -> bool:
    wanted = stored.to(held.dtype)
    return held.shape == wanted.shape and torch.equal(
        held, wanted if scale == 1 else wanted * scale
    )


def _scale(file: AdapterFile) -> float:
    alpha, rank = float(file.config.get("lora_alpha") or 0), int(file.config.get("r") or 1)
    return alpha / rank**0.5 if file.config.get("use_rslora") else alpha / rank
