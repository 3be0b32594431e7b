"""LoRA adapters by peft: put on a loaded model, switched, mixed in one batch, merged, and counted.

What is in force is read from the model's modules.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, islice
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
from pytest_llmperf.engines.transformers.merging import merge_layers
from pytest_llmperf.engines.transformers.observed.idle_adapters import is_idle
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
        """Return the names of all resident adapters, the default first."""
        return tuple(file.name for file in self.files)

    def groups(self) -> tuple[AdapterGroup, ...]:
        """Describe each adapter as the modules hold it now, compared with its file."""
        return self.merged or tuple(_group(self.peft, self.model, file) for file in self.files)

    def in_force(self) -> tuple[str, ...]:
        """Return the names of the adapters that a forward pass goes through.

        A name has a count where not every layer goes through the adapter.
        """
        if self.peft is None:
            return self.names
        return tuple(filter(None, (_active(self.model, name) for name in self.names)))

    def use(self, names: Sequence[str]) -> None:
        """Switch to one adapter, or to `BASE`; without a name, to the default.

        Raises NotInEffect if the modules do not follow, and UsageError for a name that is not
        loaded. For several names the layers are on, and `rows` tells them for each batch which
        rows go where.
        """
        distinct_names = tuple(dict.fromkeys(names)) or self.names[:1]
        self._require_known(names)
        if self.peft is None:
            return
        if len(distinct_names) == 1:
            self._switch_to(distinct_names[0], self.peft)
        else:
            tuner: Any = self.peft.base_model
            tuner.enable_adapter_layers()

    def _switch_to(self, name: str, peft: PeftModel) -> None:
        _switch_layers(peft, name)
        in_force = self.in_force()
        if in_force != (() if name == BASE else (name,)):
            raise NotInEffect(
                f"adapter {name!r} was asked for, in force are {', '.join(in_force) or 'none'}."
            )

    def unused(self) -> list[Tensor]:
        """Return the tensors of adapters that are not in force, which no forward pass reads now."""
        return self._matrices(in_force=False)

    def elements(self) -> int:
        """Return the weights of the adapter matrices that a forward pass multiplies by now."""
        return sum(tensor.numel() for tensor in self._matrices(in_force=True))

    def _matrices(self, *, in_force: bool) -> list[Tensor]:
        if self.peft is None:
            return []
        active = self.in_force()
        tensors: list[Tensor] = []
        for name in self.names:
            if (name in active) == in_force:
                for layer in _layers(self.model, name):
                    tensors += _adapter_tensors(layer, name)
        return tensors

    @contextmanager
    def rows(self, names: Sequence[str], batch: int) -> Iterator[None]:
        """Send row i of the batches inside through adapter i of `names`, and `BASE` through none.

        After the last name comes the first again. Raises NotInEffect if the wrapped layers were not
        called so.
        """
        assert self.peft is not None  # noqa: S101 - `use` refused it
        row_names = _row_names(names, batch)
        calls: set[tuple[str, ...]] = set()
        # PeftModel.generate does this around the model's own; other decode loops and plain forwards
        # need it as well.
        with (
            self.peft._enable_peft_forward_hooks(adapter_names=row_names),  # noqa: SLF001
            _watched(self.model, calls),
        ):
            yield
        _require_called_with(row_names, calls)

    def _require_known(self, names: Sequence[str]) -> None:
        """Raise UsageError for names that are not loaded, or for merged adapters."""
        choices = (*self.names, BASE)
        unknown = [name for name in names if name not in choices]
        if unknown:
            near = did_you_mean(unknown[0], choices, otherwise=f"There are: {', '.join(choices)}.")
            raise UsageError(f"adapter {unknown[0]!r} is not loaded.{near}")
        if names and self.peft is None:
            raise UsageError(
                f"adapter {self.names[0]!r} is merged into the weights and cannot be switched. "
                "Leave out ':merged'."
            )


def _switch_layers(peft: PeftModel, name: str) -> None:
    tuner: Any = peft.base_model
    if name == BASE:
        tuner.disable_adapter_layers()
    else:
        tuner.enable_adapter_layers()
        peft.set_adapter(name, inference_mode=True)


def _row_names(names: Sequence[str], batch: int) -> list[str]:
    """Return peft's name for each row of a batch, going around the end of `names`."""
    peft_names = [PEFT_BASE if name == BASE else name for name in names]
    return list(islice(cycle(peft_names), batch))


def _require_called_with(row_names: list[str], calls: set[tuple[str, ...]]) -> None:
    if calls != {tuple(row_names)}:
        raise NotInEffect(
            f"rows through {', '.join(row_names)} were asked for, "
            f"the layers were called with {sorted(calls)}."
        )


def with_adapters(model: Any, plan: LoadPlan) -> Adapters:
    """Put the plan's adapters on `model`, in the dtype that it computes in.

    The first one is in force, or merged into the weights where the plan says so.

    Raises LoadError for an adapter of another model, of another rank than it says, or of another
    method than LoRA.
    """
    files = _fitting_files(model, plan)
    adapters = Adapters(model, files, _wrapped(model, files, plan))
    _prepare(model)
    adapters.use(())
    return merged(adapters) if plan.merge_adapters else adapters


def _fitting_files(model: Any, plan: LoadPlan) -> tuple[AdapterFile, ...]:
    files = tuple(map(AdapterFile.read, map(Path, plan.adapters)))
    for file in files:
        require_fits(file, model, plan)
    return files


def _wrapped(model: Any, files: tuple[AdapterFile, ...], plan: LoadPlan) -> PeftModel:
    """Let peft wrap the layers of `model` with all adapters."""
    first, *others = files
    with _without_peft_warnings():
        with load_errors(plan, f"adapter {first.name!r}"):
            peft = PeftModel.from_pretrained(
                model, first.folder, adapter_name=first.name, autocast_adapter_dtype=False
            )
        for file in others:
            with load_errors(plan, f"adapter {file.name!r}"):
                peft.load_adapter(file.folder, adapter_name=file.name, autocast_adapter_dtype=False)
    return peft


@contextmanager
def _without_peft_warnings() -> Iterator[None]:
    """Ignore a deprecated call of peft's own, and a word about merging, which is refused here."""
    with warnings.catch_warnings():
        deprecated = "`is_gradient_checkpointing` is deprecated"
        warnings.filterwarnings("ignore", deprecated, FutureWarning)
        about_merging = "TorchaoLoraLinear was instantiated without"
        warnings.filterwarnings("ignore", about_merging, UserWarning)
        yield


def merged(adapters: Adapters) -> Adapters:
    """Fold the one adapter into the weights of `model`.

    Raises NotInEffect for a layer that did not change by its product, and LoadError for one whose
    weight is another module's too.
    """
    assert adapters.peft is not None  # noqa: S101 - merging is what makes it None
    (file,) = adapters.files
    (group,) = adapters.groups()
    changed = merge_layers(adapters.model, file.name, _layers(adapters.model, file.name))
    tuner: Any = adapters.peft.base_model
    group = structs.replace(group, layers=changed, merged=True, active=True)
    return replace(adapters, model=tuner.unload(), peft=None, merged=(group,))


def _group(peft: PeftModel | None, model: nn.Module, file: AdapterFile) -> AdapterGroup:
    assert peft is not None  # noqa: S101 - merged adapters have their groups
    state = _adapter_state(peft, file.name) | _stored_of_base(peft, file)
    layers = _layers(model, file.name)
    return AdapterGroup(
        name=file.name,
        rank=_largest_rank(layers, file.name),
        layers=len(layers),
        elements=sum(tensor.numel() for tensor in state.values()),
        tensors=len(state.keys() | file.shapes.keys()),
        tensors_equal=_equal(state, file),
        content_hash=file.content_hash,
        active=_active(model, file.name) == file.name,
        idle_layers=sum(is_idle(layer, file.name) for layer in layers),
    )


def _largest_rank(layers: list[Any], name: str) -> int:
    return max((int(layer.r[name]) for layer in layers), default=0)


def _adapter_state(peft: PeftModel, name: str) -> dict[str, Tensor]:
    """Return the adapter's tensors by their names in its file.

    They do not come from the model's state_dict(): asked for that, bitsandbytes unpacks its 4-bit
    weights on a CPU and computes wrongly from then on.
    """
    parameters: dict[str, Tensor] = dict(peft.named_parameters(remove_duplicate=False))
    state: dict[str, Tensor] = get_peft_model_state_dict(
        peft, state_dict=parameters, adapter_name=name, save_embedding_layers=False
    )
    return state


def _stored_of_base(peft: PeftModel, file: AdapterFile) -> dict[str, Tensor]:
    """Return the model's own tensors that the file holds as well: those of a head or an embedding.

    peft writes them where an adapter is on such a layer, and puts them back when it is loaded.
    """
    parameters: dict[str, Tensor] = dict(peft.named_parameters(remove_duplicate=False))
    return {
        key: parameters[key]
        for key in file.shapes
        if key.endswith(".base_layer.weight") and key in parameters
    }


def _equal(state: dict[str, Tensor], file: AdapterFile) -> int:
    """Count tensors of the modules whose values are those of the file, in the modules' dtype."""
    common = state.keys() & file.shapes.keys()
    with safe_open(file.weights, framework="pt") as stored:
        return sum(_same(state[key].cpu(), stored.get_tensor(key)) for key in common)


def _same(loaded: Tensor, stored: Tensor) -> bool:
    return loaded.shape == stored.shape and torch.equal(loaded, stored.to(loaded.dtype))


def _lora_layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def _layers(model: nn.Module, name: str) -> list[Any]:
    """Return the layers that hold matrices of the adapter."""
    layers = _lora_layers(model)
    return [layer for layer in layers if name in layer.lora_A or name in layer.lora_embedding_A]


def _adapter_tensors(layer: Any, name: str) -> list[Tensor]:
    """Return the tensors of one adapter in a layer: parameters of modules, or parameters alone."""
    tensors: list[Tensor] = []
    for by_adapter in _adapter_dicts(layer):
        if name in by_adapter:
            matrices = by_adapter[name]
            tensors += matrices.parameters() if isinstance(matrices, nn.Module) else [matrices]
    return tensors


def _adapter_dicts(layer: Any) -> list[Any]:
    """Return peft's dictionaries of a layer: the matrices of each adapter, by its name."""
    return [getattr(layer, attribute) for attribute in layer.adapter_layer_names]


def _active(model: nn.Module, name: str) -> str:
    """Return the name if every layer of the adapter goes through it, with a count if some do.

    The text is empty where no layer does.
    """
    layers = _layers(model, name)
    active = sum(_is_active(layer, name) for layer in layers)
    if active == 0:
        return ""
    return name if active == len(layers) else f"{name} in {active} of {len(layers)} layers"


def _is_active(layer: Any, name: str) -> bool:
    return name in layer.active_adapters and not layer.disable_adapters


def _prepare(model: Any) -> None:
    """Put adapters in the dtype of the embeddings, and mark their modules as no part of the model.

    On quantized weights peft leaves adapters in float32.
    """
    dtype = model.get_input_embeddings().weight.dtype
    for layer in _lora_layers(model):
        layer.belongs_to_adapter = True
        for matrices in _adapter_dicts(layer):
            _mark(matrices.to(dtype))
    model.eval().requires_grad_(requires_grad=False)


def _mark(matrices: nn.Module) -> None:
    module: Any
    for module in matrices.modules():
        module.belongs_to_adapter = True


@contextmanager
def _watched(model: nn.Module, calls: set[tuple[str, ...]]) -> Iterator[None]:
    """Add the adapter names that the wrapped layers are called with to `calls`.

    A layer that is switched off would ignore them, and counts as called without names.
    """

    def note(layer: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        calls.add(() if layer.disable_adapters else tuple(kwargs.get("adapter_names") or ()))

    layers = _lora_layers(model)
    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
