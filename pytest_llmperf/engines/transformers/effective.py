"""What is really loaded: tensors by dtype and device, linear layers by class, and what a one-token probe forward does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from msgspec import structs
from torch import nn
from torch.overrides import TorchFunctionMode

from pytest_llmperf.core.effective import Effective, LinearGroup, TensorGroup
from pytest_llmperf.engines.outputs.decoding import autocast, eager
from pytest_llmperf.engines.transformers.load import Loaded
from pytest_llmperf.engines.transformers.parallel.offload import offloaded_bytes
from pytest_llmperf.engines.transformers.quantize.report import quantized_layers
from pytest_llmperf.engines.transformers.quantize.storage import (
    inner_tensors,
    is_linear,
    is_quantized,
    logical_weights,
    side_tensors,
    stored_tensors,
    weight_tensors,
)
from pytest_llmperf.errors import LoadError
from pytest_llmperf.instruments.layers import dtype_name, identity


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What the last run used, as its session saw it; empty before any run."""

    cache: str = ""
    compile_mode: str | None = None
    compiled_graphs: int = 0
    decode_loop: str = ""
    assistance: str = ""
    batching: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What one forward pass of one token did: dtype of the first linear layer's output, and the attention it called."""

    compute_dtype: str
    called_sdpa: bool
    autocast_dtype: str | None


def describe(loaded: Loaded, *, last_run: RunFacts | None = None) -> Effective:
    """What `loaded` holds and does now.

    Runs one forward pass of one token, eagerly, outside any compiled graph.
    """
    facts = last_run or RunFacts()
    probe = probe_forward(loaded)
    tokenizer = loaded.tokenizer
    adapters = loaded.adapters
    assistant = loaded.assistant
    pruned = loaded.pruned.now() if loaded.pruned is not None else None
    held = tensor_groups(loaded.model)
    shards = () if loaded.cut is None else (loaded.cut.shard(sum(group.bytes for group in held)),)
    return Effective(
        engine=loaded.plan.engine,
        model_class=type(loaded.model).__name__,
        tensors=held + (() if assistant is None else assistant_tensors(assistant.model)),
        linears=linear_groups(loaded.model),
        compute_dtype=probe.compute_dtype,
        autocast_dtype=probe.autocast_dtype,
        checkpoint_dtype=loaded.checkpoint_dtype,
        attention=attention_in_use(loaded.model, called_sdpa=probe.called_sdpa),
        cache=facts.cache,
        compile_mode=facts.compile_mode,
        compiled_graphs=facts.compiled_graphs,
        decode_loop=facts.decode_loop,
        assistance=facts.assistance,
        batching=facts.batching,
        adapters=() if adapters is None else adapters.in_force(),
        resident_adapters=() if adapters is None else adapters.groups(),
        padding_side=tokenizer.padding_side if tokenizer is not None else "left",
        device=str(loaded.device),
        ranks=loaded.plan.ranks,
        shards=shards,
        offloaded_bytes=offloaded_bytes(loaded.model),
        sparsity=pruned.sparsity if pruned is not None else None,
        pruned=pruned,
        notes=facts.notes if loaded.pruned is None else (*facts.notes, *loaded.pruned.notes),
        quantized=None
        if loaded.conversion is None
        else quantized_layers(loaded.model, loaded.conversion),
    )


def tensor_groups(model: nn.Module) -> tuple[TensorGroup, ...]:
    """Parameters and buffers by dtype and device.

    A tensor that lies in memory once (tied weights) is counted once.
    """
    seen: set[tuple[object, ...]] = set()
    totals: dict[tuple[str, str, str, bool, bool], list[int]] = defaultdict(lambda: [0, 0, 0])
    quantized = {
        identity(tensor) for layer in quantized_linears(model) for tensor in weight_tensors(layer)
    }
    for kind, name, tensor in _named_tensors(model):
        fresh = [inner for inner in inner_tensors(tensor) if identity(inner) not in seen]
        seen.update(map(identity, fresh))
        for inner in fresh:
            kept = inner.dtype == torch.float32 and _declared_float32(model, name)
            total = totals[
                kind, dtype_name(inner), str(inner.device), kept, identity(inner) in quantized
            ]
            total[0] += 1
            total[1] += inner.numel()
            # What waits elsewhere takes no room here.
            total[2] += 0 if inner.is_meta else inner.numel() * inner.element_size()
    return tuple(
        TensorGroup(
            kind=kind,
            dtype=dtype,
            device=device,
            tensors=n,
            elements=elements,
            bytes=size,
            kept=kept,
            quantized=low,
        )
        for (kind, dtype, device, kept, low), (n, elements, size) in sorted(totals.items())
    )


def parameter_tensors(model: nn.Module) -> list[torch.Tensor]:
    """The plain tensors that hold the parameters, and what quantized layers hold beside them.

    Each tensor in memory once.
    """
    named = (
        inner
        for kind, _, tensor in _named_tensors(model)
        if kind == "parameter"
        for inner in inner_tensors(tensor)
    )
    return list({identity(inner): inner for inner in named}.values())


def assistant_tensors(model: nn.Module) -> tuple[TensorGroup, ...]:
    """The tensors of the model that proposes tokens: on the device, but no parameters of the measured model."""
    return tuple(
        structs.replace(group, kind=f"assistant's {group.kind}") for group in tensor_groups(model)
    )


def linear_groups(model: nn.Module) -> tuple[LinearGroup, ...]:
    """Linear layers by class and storage dtype: nn.Linear and its subclasses, Conv1D, and whatever replaced them."""
    totals: dict[tuple[str, str, bool], list[int]] = defaultdict(lambda: [0, 0, 0])
    for layer in model.modules():
        if not is_linear(layer):
            continue
        inner = stored_tensors(layer)
        largest = max(inner, key=lambda t: t.numel() * t.element_size(), default=None)
        total = totals[
            type(layer).__name__,
            dtype_name(largest) if largest is not None else "unknown",
            is_quantized(layer),
        ]
        total[0] += 1
        total[1] += logical_weights(layer)
        total[2] += sum(t.numel() * t.element_size() for t in inner)
    return tuple(
        LinearGroup(cls=cls, dtype=dtype, layers=n, elements=elements, bytes=size, quantized=low)
        for (cls, dtype, low), (n, elements, size) in sorted(totals.items())
    )


def quantized_linears(model: nn.Module) -> list[nn.Module]:
    """The linear layers whose weights are integers or 8-bit floats."""
    return [module for module in model.modules() if is_linear(module) and is_quantized(module)]


def attention_in_use(model: nn.Module, *, called_sdpa: bool) -> str:
    """What the attention modules dispatch to.

    "eager" where that says sdpa and the probe saw no such call.
    """
    asked = {
        _attention_of(module) for module in model.modules() if "Attention" in type(module).__name__
    }
    named = {name for name in asked if name} or {_attention_of(model) or "unknown"}
    return ", ".join(
        sorted("eager" if name == "sdpa" and not called_sdpa else name for name in named)
    )


def probe_forward(loaded: Loaded) -> Probe:
    """One forward pass of one token under the plan's autocast, past any compiled graph.

    Raises LoadError if it fails.
    """
    outputs: list[torch.Tensor] = []
    calls = _SdpaCalls()
    token = torch.zeros((1, 1), dtype=torch.long, device=loaded.device)
    with (
        _first_linear_output(loaded.model, outputs),
        torch.no_grad(),
        autocast(loaded.device, loaded.plan.autocast_dtype),
        calls,
    ):
        active = _active_autocast(loaded.device.type)
        try:
            eager(loaded.model)(input_ids=token, use_cache=False)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError) as error:
            raise LoadError(
                f"model {loaded.plan.model.name!r}: a forward pass of one token failed: {error}"
            ) from error
    compute = dtype_name(outputs[0]) if outputs else "unknown"
    return Probe(compute_dtype=compute, called_sdpa=calls.count > 0, autocast_dtype=active)


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
    """Append what the first linear layer gives to `outputs`."""
    layer = next((module for module in model.modules() if is_linear(module)), None)
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


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, str, torch.Tensor]]:
    for name, parameter in model.named_parameters():
        yield "parameter", name, parameter
    for name, buffer in model.named_buffers():
        yield "buffer", name, buffer
    for name, module in model.named_modules():
        if is_linear(module):
            yield from (("parameter", name, tensor) for tensor in side_tensors(module))


def _declared_float32(model: nn.Module, name: str) -> bool:
    """The architecture lists the module as one to keep in float32 (transformers' `_keep_in_fp32_modules`)."""
    lists = (
        getattr(model, "_keep_in_fp32_modules", None),
        getattr(model, "_keep_in_fp32_modules_strict", None),
    )
    declared = {part for listed in lists for part in listed or ()}
    return any(part in declared for part in name.split("."))
