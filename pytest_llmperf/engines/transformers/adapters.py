"""LoRA adapters by peft: put on a loaded model, switched, mixed in one batch, merged, and seen in its modules."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from msgspec import structs
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import Tensor, nn

from pytest_llmperf.core.effective import AdapterGroup
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.loading.adapter_files import AdapterFile, require_fits
from pytest_llmperf.engines.loading.checkpoint import load_errors
from pytest_llmperf.errors import NotInEffect, UsageError, did_you_mean

BASE = "base"
PEFT_BASE = "__base__"


@dataclass(frozen=True)
class Adapters:
    """Adapters on `model`, whose linear layers peft has wrapped in place.

    Merged ones are in the weights: `peft` is None.
    """

    model: Any
    files: tuple[AdapterFile, ...]
    peft: PeftModel | None
    merged: tuple[AdapterGroup, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All that are resident, the default first."""
        return tuple(file.name for file in self.files)

    def groups(self) -> tuple[AdapterGroup, ...]:
        """Each adapter as the modules hold it now, compared with its file. Reads the files."""
        return self.merged or tuple(_group(self.peft, self.model, file) for file in self.files)

    def in_force(self) -> tuple[str, ...]:
        """Names of the adapters that a forward pass goes through.

        With a count where not every layer does.
        """
        if self.peft is None:
            return self.names
        return tuple(_active(self.model, name) for name in self.names if _active(self.model, name))

    def use(self, names: Sequence[str]) -> None:
        """Switch to one adapter, or to `BASE`; none named: to the default.

        Raises NotInEffect if the modules do not follow.

        For several names the layers are on, and are told for each batch which rows go where
        (`rows`).
        """
        wanted = tuple(dict.fromkeys(names)) or self.names[:1]
        self._require_known(names)
        if self.peft is None:
            return
        tuner: Any = self.peft.base_model
        if len(wanted) > 1:
            tuner.enable_adapter_layers()
            return
        if wanted == (BASE,):
            tuner.disable_adapter_layers()
        else:
            tuner.enable_adapter_layers()
            self.peft.set_adapter(wanted[0], inference_mode=True)
        found = self.in_force()
        if found != tuple(name for name in wanted if name != BASE):
            raise NotInEffect(
                f"adapter {wanted[0]!r} was asked for, in force are {', '.join(found) or 'none'}."
            )

    def unused(self) -> list[Tensor]:
        """The tensors that no forward pass reads now: those of the adapters that are not in force."""
        return self._matrices(in_force=False)

    def elements(self) -> int:
        """Weights of the adapter matrices that a forward pass multiplies by now."""
        return sum(tensor.numel() for tensor in self._matrices(in_force=True))

    def _matrices(self, *, in_force: bool) -> list[Tensor]:
        if self.peft is None:
            return []
        active = self.in_force()
        names = [name for name in self.names if (name in active) == in_force]
        return [
            tensor
            for name in names
            for layer in _layers(self.model, name)
            for tensor in _own(layer, name)
        ]

    @contextmanager
    def rows(self, names: Sequence[str], batch: int) -> Iterator[None]:
        """Row i of the batches inside goes through adapter i of `names` (around their end), `BASE` through none.

        Raises NotInEffect if the wrapped layers were not called so.
        """
        assert self.peft is not None  # noqa: S101 - `use` refused it
        wanted = [
            PEFT_BASE if names[i % len(names)] == BASE else names[i % len(names)]
            for i in range(batch)
        ]
        calls: set[tuple[str, ...]] = set()
        # what PeftModel.generate does around the model's own; other decode loops and plain forwards
        # need it as well
        with (
            self.peft._enable_peft_forward_hooks(adapter_names=wanted),  # noqa: SLF001
            _watched(self.model, calls),
        ):
            yield
        if calls != {tuple(wanted)}:
            raise NotInEffect(
                f"rows through {', '.join(wanted)} were asked for, the layers were called with {sorted(calls)}."
            )

    def _require_known(self, names: Sequence[str]) -> None:
        unknown = [name for name in names if name not in (*self.names, BASE)]
        if unknown:
            choices = (*self.names, BASE)
            raise UsageError(
                f"adapter {unknown[0]!r} is not loaded.{did_you_mean(unknown[0], choices)} There are: {', '.join(choices)}.",
            )
        if names and self.peft is None:
            raise UsageError(
                f"adapter {self.names[0]!r} is merged into the weights and cannot be switched. Leave out ':merged'."
            )


def with_adapters(model: Any, plan: LoadPlan) -> Adapters:
    """Put the plan's adapters on `model`, in the dtype that it computes in, the first one in force.

    Raises LoadError for an adapter of another model, of another rank than it says, or of another
    method than LoRA.
    """
    files = tuple(AdapterFile.read(Path(folder)) for folder in plan.adapters)
    for file in files:
        require_fits(file, model, plan)
    adapters = Adapters(model, files, _loaded(model, files, plan))
    _ready(model)
    adapters.use(())
    return merged(adapters) if plan.merge_adapters else adapters


def _loaded(model: Any, files: tuple[AdapterFile, ...], plan: LoadPlan) -> PeftModel:
    first, *others = files
    with warnings.catch_warnings():
        # Peft's call, not ours.
        warnings.filterwarnings(
            "ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning
        )
        warnings.filterwarnings(
            "ignore",
            "TorchaoLoraLinear was instantiated without",
            UserWarning,
        )  # about merging, refused here
        with load_errors(plan, f"adapter {first.name!r}"):
            peft = PeftModel.from_pretrained(
                model, first.folder, adapter_name=first.name, autocast_adapter_dtype=False
            )
        for file in others:
            with load_errors(plan, f"adapter {file.name!r}"):
                peft.load_adapter(file.folder, adapter_name=file.name, autocast_adapter_dtype=False)
    return peft


def merged(adapters: Adapters) -> Adapters:
    """The one adapter folded into the weights of `model`.

    Raises NotInEffect for a layer that did not change by its product.
    """
    assert adapters.peft is not None  # noqa: S101 - merging is what makes it None
    (file,) = adapters.files
    (group,) = adapters.groups()
    changed = sum(_merge(layer, file.name) for layer in _layers(adapters.model, file.name))
    tuner: Any = adapters.peft.base_model
    group = structs.replace(group, layers=changed, merged=True, active=True)
    return replace(adapters, model=tuner.unload(), peft=None, merged=(group,))


def _merge(layer: Any, name: str) -> bool:
    """Merge one layer. False if its weights stayed as they were: the product was rounded away.

    Raises NotInEffect.
    """
    before = layer.get_base_layer().weight.data.clone()
    delta = layer.get_delta_weight(name)
    layer.merge(safe_merge=True, adapter_names=[name])
    after = layer.get_base_layer().weight.data
    # DoRA and its kind change the weights by more than a product.
    plain = name not in layer.lora_variant
    if plain and not _is_sum(after, before.float(), delta.float()):
        raise NotInEffect(
            f"adapter {name!r}: merging changed a layer's weights by something else than its product B·A."
        )
    return not torch.equal(before, after) or not bool(delta.any())


def _is_sum(found: Tensor, one: Tensor, other: Tensor) -> bool:
    """Whether `found` is the sum of both, to the rounding of its dtype."""
    total = one + other
    allowed = torch.finfo(found.dtype).eps * (one.abs() + other.abs() + total.abs())
    return bool(((found.float() - total).abs() <= allowed).all())


def _group(peft: PeftModel | None, model: nn.Module, file: AdapterFile) -> AdapterGroup:
    assert peft is not None  # noqa: S101 - merged ones have their groups
    # not from the model's state_dict(): asked for that, bitsandbytes unpacks its 4-bit weights on a
    # CPU and computes wrongly on
    own: dict[str, Tensor] = dict(peft.named_parameters(remove_duplicate=False))
    held: dict[str, Tensor] = get_peft_model_state_dict(
        peft, state_dict=own, adapter_name=file.name, save_embedding_layers=False
    )
    layers = _layers(model, file.name)
    return AdapterGroup(
        name=file.name,
        rank=max((int(layer.r[file.name]) for layer in layers), default=0),
        layers=len(layers),
        elements=sum(tensor.numel() for tensor in held.values()),
        tensors=len(held.keys() | file.shapes.keys()),
        tensors_equal=_equal(held, file),
        content_hash=file.content_hash,
        active=_active(model, file.name) == file.name,
    )


def _equal(held: dict[str, Tensor], file: AdapterFile) -> int:
    """Tensors of the modules whose values are those of the file, in the modules' dtype."""
    with safe_open(file.weights, framework="pt") as stored:
        return sum(
            _same(held[key].cpu(), stored.get_tensor(key))
            for key in held.keys() & file.shapes.keys()
        )


def _same(held: Tensor, stored: Tensor) -> bool:
    return held.shape == stored.shape and torch.equal(held, stored.to(held.dtype))


def _layers(model: nn.Module, name: str) -> list[Any]:
    return [
        m
        for m in model.modules()
        if isinstance(m, LoraLayer) and (name in m.lora_A or name in m.lora_embedding_A)
    ]


def _own(layer: Any, name: str) -> list[Tensor]:
    holders = (getattr(layer, attribute) for attribute in layer.adapter_layer_names)
    found = (holder[name] for holder in holders if name in holder)
    return [
        tensor
        for each in found
        for tensor in (each.parameters() if isinstance(each, nn.Module) else (each,))
    ]


def _active(model: nn.Module, name: str) -> str:
    """The name, if every layer of the adapter goes through it; with a count, if some do.

    Else empty.
    """
    layers = _layers(model, name)
    active = sum(name in layer.active_adapters and not layer.disable_adapters for layer in layers)
    return (
        ""
        if active == 0
        else name
        if active == len(layers)
        else f"{name} in {active} of {len(layers)} layers"
    )


def _ready(model: Any) -> None:
    """Adapters in the dtype of the embeddings (on quantized weights peft leaves them in float32), told apart from the model."""
    dtype = model.get_input_embeddings().weight.dtype
    wrappers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in wrappers:
        layer.belongs_to_adapter = True
        for matrices in (getattr(layer, name) for name in layer.adapter_layer_names):
            matrices.to(dtype)
            for module in matrices.modules():
                module.belongs_to_adapter = True
    model.eval().requires_grad_(requires_grad=False)


@contextmanager
def _watched(model: nn.Module, calls: set[tuple[str, ...]]) -> Iterator[None]:
    """Note with which adapter names the wrapped layers are called.

    None where a layer is switched off and would ignore them.
    """

    def note(layer: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        calls.add(() if layer.disable_adapters else tuple(kwargs.get("adapter_names") or ()))

    layers = (
        module
        for module in model.modules()
        if isinstance(module, LoraLayer) and isinstance(module, nn.Module)
    )
    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
