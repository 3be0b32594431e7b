"""What is in effect: tensors by dtype and device, linear layers by class, and a probe forward.

The probe runs one token through the model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from msgspec import structs
from torch import nn
from torch.overrides import TorchFunctionMode

from pytest_llmperf.core.effective import (
    Effective,
    LinearGroup,
    Quantized,
    Shard,
    TensorGroup,
)
from pytest_llmperf.engines.outputs.decoding import autocast, eager
from pytest_llmperf.engines.transformers.accounting.matrices import other_matrices
from pytest_llmperf.engines.transformers.load import ModelOnDevice
from pytest_llmperf.engines.transformers.parallel.library import carrier
from pytest_llmperf.engines.transformers.parallel.offload import offloaded_bytes
from pytest_llmperf.engines.transformers.quantize.report import quantized_layers
from pytest_llmperf.engines.transformers.quantize.storage import (
    distinct,
    inner_tensors,
    is_linear,
    is_quantized,
    logical_weights,
    modules_kept_in_float32,
    plain_tensors,
    side_tensors,
    stored_tensors,
    weight_tensors,
)
from pytest_llmperf.errors import LoadError
from pytest_llmperf.instruments.layers import dtype_name, identity


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What the last run used; empty before any run. The fields are those of Effective."""

    cache: str = ""
    compile_mode: str | None = None
    compiled_graphs: int = 0
    decode_loop: str = ""
    assistance: str = ""
    batching: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What one forward pass of one token did.

    `compute_dtype` is that of the first linear layer's output.
    """

    compute_dtype: str
    called_sdpa: bool
    autocast_dtype: str | None


def describe(loaded: ModelOnDevice, *, last_run: RunFacts | None = None) -> Effective:
    """Describe what `loaded` holds and does now.

    Runs one forward pass of one token, eagerly, outside any compiled graph.
    """
    probe = probe_forward(loaded)
    tensors = tensor_groups(loaded.model)
    described = Effective(
        engine=loaded.plan.engine,
        model_class=type(loaded.model).__name__,
        tensors=tensors + _tensors_of_assistant(loaded),
        linears=linear_groups(loaded.model),
        compute_dtype=probe.compute_dtype,
        autocast_dtype=probe.autocast_dtype,
        checkpoint_dtype=loaded.checkpoint_dtype,
        attention=attention_in_use(loaded.model, called_sdpa=probe.called_sdpa),
        padding_side=_padding_side(loaded),
        device=str(loaded.device),
        ranks=loaded.plan.ranks,
        shards=_shards(loaded, tensors),
        offloaded_bytes=offloaded_bytes(loaded.model),
        quantized=_quantized(loaded),
        tensor_parallel=carrier(loaded.model),
        other_matrices=other_matrices(loaded.model),
        **asdict(last_run or RunFacts()),
    )
    return _with_pruning(_with_adapters(described, loaded), loaded)


def _padding_side(loaded: ModelOnDevice) -> str:
    return "left" if loaded.tokenizer is None else str(loaded.tokenizer.padding_side)


def _shards(loaded: ModelOnDevice, tensors: tuple[TensorGroup, ...]) -> tuple[Shard, ...]:
    if loaded.cut is None:
        return ()
    return (loaded.cut.shard(sum(group.bytes for group in tensors)),)


def _quantized(loaded: ModelOnDevice) -> Quantized | None:
    if loaded.conversion is None:
        return None
    return quantized_layers(loaded.model, loaded.conversion)


def _with_adapters(described: Effective, loaded: ModelOnDevice) -> Effective:
    adapters = loaded.adapters
    if adapters is None:
        return described
    return structs.replace(
        described, adapters=adapters.in_force(), resident_adapters=adapters.groups()
    )


def _with_pruning(described: Effective, loaded: ModelOnDevice) -> Effective:
    if loaded.pruned is None:
        return described
    pruned = loaded.pruned.report()
    notes = (*described.notes, *loaded.pruned.notes)
    return structs.replace(described, sparsity=pruned.sparsity, pruned=pruned, notes=notes)


class _TensorKind(NamedTuple):
    """What the tensors of one TensorGroup share."""

    kind: str
    dtype: str
    device: str
    declared_float32: bool
    quantized: bool


def tensor_groups(model: nn.Module) -> tuple[TensorGroup, ...]:
    """Return parameters and buffers by dtype and device.

    A tensor that lies in memory once (tied weights) is counted once.
    """
    quantized = _quantized_identities(model)
    groups: dict[_TensorKind, list[torch.Tensor]] = defaultdict(list)
    for kind, name, tensor in _distinct_tensors(model):
        is_declared = tensor.dtype == torch.float32 and _declared_float32(model, name)
        is_quantized = identity(tensor) in quantized
        group = kind, dtype_name(tensor), str(tensor.device), is_declared, is_quantized
        groups[_TensorKind(*group)].append(tensor)
    return tuple(_tensor_group(kind, groups[kind]) for kind in sorted(groups))


def _quantized_identities(model: nn.Module) -> set[tuple[object, ...]]:
    layers = quantized_linears(model)
    return {identity(tensor) for layer in layers for tensor in weight_tensors(layer)}


def _tensor_group(kind: _TensorKind, tensors: list[torch.Tensor]) -> TensorGroup:
    # Tensors that are offloaded lie on the meta device and take no room.
    on_device = [tensor for tensor in tensors if not tensor.is_meta]
    return TensorGroup(
        kind=kind.kind,
        dtype=kind.dtype,
        device=kind.device,
        tensors=len(tensors),
        elements=sum(tensor.numel() for tensor in tensors),
        bytes=sum(map(_bytes, on_device)),
        fixed_dtype=kind.declared_float32,
        quantized=kind.quantized,
    )


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def parameter_tensors(model: nn.Module) -> list[torch.Tensor]:
    """Return the plain tensors that hold the parameters, each tensor in memory once.

    What quantized layers hold beside their parameters is included.
    """
    parameters = (tensor for kind, _, tensor in _named_tensors(model) if kind == "parameter")
    return distinct(plain_tensors(parameters))


def _tensors_of_assistant(loaded: ModelOnDevice) -> tuple[TensorGroup, ...]:
    return () if loaded.assistant is None else assistant_tensors(loaded.assistant.model)


def assistant_tensors(model: nn.Module) -> tuple[TensorGroup, ...]:
    """Return the tensors of the model that proposes tokens.

    They are on the device, but they are no parameters of the measured model.
    """
    return tuple(
        structs.replace(group, kind=f"assistant's {group.kind}") for group in tensor_groups(model)
    )


class _LinearKind(NamedTuple):
    """What the layers of one LinearGroup share; its fields are some of the group's."""

    cls: str
    dtype: str
    quantized: bool


class _LinearSize(NamedTuple):
    """The logical weights of one layer, and the bytes they occupy."""

    elements: int
    bytes: int


def linear_groups(model: nn.Module) -> tuple[LinearGroup, ...]:
    """Return linear layers by class and storage dtype.

    They are nn.Linear and its subclasses, Conv1D, and whatever replaced them.
    """
    groups: dict[_LinearKind, list[_LinearSize]] = defaultdict(list)
    for layer in filter(is_linear, model.modules()):
        tensors = stored_tensors(layer)
        size = _LinearSize(logical_weights(layer), sum(map(_bytes, tensors)))
        groups[_linear_kind(layer, tensors)].append(size)
    return tuple(_linear_group(kind, groups[kind]) for kind in sorted(groups))


def _linear_kind(layer: nn.Module, tensors: list[torch.Tensor]) -> _LinearKind:
    return _LinearKind(type(layer).__name__, _largest_dtype(tensors), is_quantized(layer))


def _largest_dtype(tensors: list[torch.Tensor]) -> str:
    """Return the dtype of the tensor with most bytes."""
    largest = max(tensors, key=_bytes, default=None)
    return dtype_name(largest) if largest is not None else "unknown"


def _linear_group(kind: _LinearKind, sizes: list[_LinearSize]) -> LinearGroup:
    return LinearGroup(
        layers=len(sizes),
        elements=sum(size.elements for size in sizes),
        bytes=sum(size.bytes for size in sizes),
        **kind._asdict(),
    )


def quantized_linears(model: nn.Module) -> list[nn.Module]:
    """Return the linear layers whose weights are integers or 8-bit floats."""
    return [module for module in model.modules() if is_linear(module) and is_quantized(module)]


def attention_in_use(model: nn.Module, *, called_sdpa: bool) -> str:
    """Return what the attention modules dispatch to.

    That is "eager" where they say sdpa and the probe called no such function.
    """
    declared = _declared_attention(model)
    in_use = ["eager" if name == "sdpa" and not called_sdpa else name for name in declared]
    return ", ".join(sorted(in_use))


def _declared_attention(model: nn.Module) -> set[str]:
    """Return the implementations that the attention modules' configs name, or the model's."""
    modules = [module for module in model.modules() if "Attention" in type(module).__name__]
    names = {name for name in map(_attention_of, modules) if name}
    return names or {_attention_of(model) or "unknown"}


def probe_forward(loaded: ModelOnDevice) -> Probe:
    """Run one forward pass of one token under the plan's autocast, past any compiled graph.

    Raises LoadError if it fails.
    """
    outputs: list[torch.Tensor] = []
    calls = _SdpaCalls()
    with (
        _first_linear_output(loaded.model, outputs),
        torch.no_grad(),
        autocast(loaded.device, loaded.plan.autocast_dtype),
        calls,
    ):
        autocast_dtype = _active_autocast(loaded.device.type)
        _forward_one_token(loaded)
    compute_dtype = dtype_name(outputs[0]) if outputs else "unknown"
    return Probe(
        compute_dtype=compute_dtype, called_sdpa=calls.count > 0, autocast_dtype=autocast_dtype
    )


def _forward_one_token(loaded: ModelOnDevice) -> None:
    token = torch.zeros((1, 1), dtype=torch.long, device=loaded.device)
    try:
        eager(loaded.model)(input_ids=token, use_cache=False)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        raise LoadError(
            f"model {loaded.plan.model.name!r}: a forward pass of one token failed: {error}"
        ) from error


class _SdpaCalls(TorchFunctionMode):
    """Counts calls of scaled_dot_product_attention."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.count += func is nn.functional.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


@contextmanager
def _first_linear_output(model: nn.Module, outputs: list[torch.Tensor]) -> Iterator[None]:
    """Append the output of the first linear layer to `outputs`."""
    layer = next(filter(is_linear, model.modules()), None)
    if layer is None:
        yield
        return
    handle = layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        yield
    finally:
        handle.remove()


def _active_autocast(device: str) -> str | None:
    if not torch.is_autocast_enabled(device):
        return None
    return str(torch.get_autocast_dtype(device)).removeprefix("torch.")


def _attention_of(module: nn.Module) -> str | None:
    return getattr(getattr(module, "config", None), "_attn_implementation", None)


def _distinct_tensors(model: nn.Module) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Yield kind, name and tensor of each plain tensor in memory, the first name of each."""
    counted: set[tuple[object, ...]] = set()
    for kind, name, tensor in _named_tensors(model):
        fresh = [inner for inner in inner_tensors(tensor) if identity(inner) not in counted]
        counted.update(map(identity, fresh))
        for inner in fresh:
            yield kind, name, inner


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Yield kind ("parameter" or "buffer"), name and tensor, tied ones more than once."""
    for name, parameter in model.named_parameters():
        yield "parameter", name, parameter
    for name, buffer in model.named_buffers():
        yield "buffer", name, buffer
    for name, tensor in _named_side_tensors(model):
        yield "parameter", name, tensor


def _named_side_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, module in model.named_modules():
        if is_linear(module):
            for tensor in side_tensors(module):
                yield name, tensor


def _declared_float32(model: nn.Module, name: str) -> bool:
    """Whether the architecture says that it keeps the module in float32."""
    return not modules_kept_in_float32(model).isdisjoint(name.split("."))
