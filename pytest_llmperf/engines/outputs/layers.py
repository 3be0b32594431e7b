"""The outputs of a model's layers in one pass without a cache: written, and compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from pytest_llmperf.core.agreement.layers import ModuleError
from pytest_llmperf.engines.outputs.decoding import autocast, eager
from pytest_llmperf.engines.outputs.reference import Reference, write_atomically
from pytest_llmperf.engines.outputs.rounding import Rounded
from pytest_llmperf.engines.outputs.scorer import Scorer
from pytest_llmperf.errors import UsageError

_COPIES = 4
"""Rows of a batch that is another geometry of one prompt: products are cut in other parts."""

Outputs = dict[str, list[Tensor]]
"""The output of each module [positions, width], one of each prompt, in the order of the modules."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What is looked at: some prompts of the reference at `path`.

    Without `inside` these are the layers, the embedding, the final norm and the output head; with
    the path of a layer, the modules inside of it.
    """

    path: str
    prompts: tuple[int, ...]
    inside: str = ""


def write_layers(scorer: Scorer, look: Look, dtype: str, file: str) -> tuple[ModuleError, ...]:
    """Write the outputs of the reference to `file`.

    Returns how far they move when it rounds as `dtype` does, or computes in another geometry where
    it has that dtype itself: the noise floor.
    """
    plain = _outputs(scorer, look)
    if scorer.writes:
        tensors = {
            f"{name}|{i}": output.contiguous()
            for name, outputs in plain.items()
            for i, output in enumerate(outputs)
        }
        write_atomically(tensors, {}, Path(file))
    rounding, copies = _noise(scorer, dtype)
    with rounding:
        noisy = _outputs(scorer, look, copies=copies)
    return _errors(noisy, lambda name, i: plain[name][i])


def _noise(scorer: Scorer, dtype: str) -> tuple[AbstractContextManager[object], int]:
    own = next(scorer.model.parameters()).dtype
    low = getattr(torch, dtype)
    if own == torch.float32 and low in {torch.bfloat16, torch.float16}:
        return Rounded(low), 1
    return nullcontext(), _COPIES


def compare_layers(scorer: Scorer, look: Look, file: str) -> tuple[ModuleError, ...]:
    """Return how far the outputs of this model are from those in `file`."""
    outputs = _outputs(scorer, look)
    with safe_open(file, framework="pt") as stored:
        known = set(stored.keys())

        def expected(name: str, i: int) -> Tensor | None:
            key = f"{name}|{i}"
            return stored.get_tensor(key) if key in known else None

        return _errors(outputs, expected)


def _errors(
    outputs: Outputs, expected: Callable[[str, int], Tensor | None]
) -> tuple[ModuleError, ...]:
    """Return the error of each module over all prompts; modules of other shapes are left out."""
    errors = []
    for name, tensors in outputs.items():
        wanted = [expected(name, i) for i in range(len(tensors))]
        pairs = [
            (ours, theirs)
            for ours, theirs in zip(tensors, wanted, strict=True)
            if theirs is not None and theirs.shape == ours.shape
        ]
        if pairs:
            errors.append(ModuleError(name, _relative(pairs)))
    return tuple(errors)


def _relative(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    noise = sum((ours - theirs).double().square().sum().item() for ours, theirs in pairs)
    signal = sum(theirs.double().square().sum().item() for _, theirs in pairs)
    if not math.isfinite(noise):
        return math.inf
    return math.sqrt(noise / signal) if signal else float(noise > 0)


def _outputs(scorer: Scorer, look: Look, copies: int = 1) -> Outputs:
    """Run each prompt with its continuation, alone and without padding."""
    reference = Reference.open(look.path)
    outputs: Outputs = {}
    for index in look.prompts:
        forced = reference.continuation[index][:-1].tolist()
        row = reference.stored.rows[index] + forced
        ids = torch.tensor([row] * copies, device=scorer.device)
        seen = _one_pass(scorer, ids, look.inside)
        for name, output in seen.items():
            outputs.setdefault(name, []).append(output)
    return {name: all_of for name, all_of in outputs.items() if len(all_of) == len(look.prompts)}


def _one_pass(scorer: Scorer, ids: Tensor, inside: str) -> dict[str, Tensor]:
    """Return the outputs of one pass in the order in which the modules end."""
    seen: dict[str, Tensor] = {}
    modules = _modules(scorer.model, inside)
    with torch.no_grad(), autocast(scorer.device, scorer.autocast_dtype), _noted(modules, seen):
        eager(scorer.model)(input_ids=ids, use_cache=False)
    return seen


def _modules(model: Any, inside: str) -> dict[str, nn.Module]:
    if inside:
        layer = model.get_submodule(inside)
        return {f"{inside}.{path}": module for path, module in layer.named_modules() if path}
    path, layers = _layers(model)
    above = path.rpartition(".")[0]
    beside = dict(model.get_submodule(above).named_children()) if above else {}
    modules = {f"{above}.{name}": module for name, module in beside.items() if module is not layers}
    modules |= {f"{path}.{place}": layer for place, layer in enumerate(layers)}
    head = model.get_output_embeddings()
    names = {module: name for name, module in model.named_modules()}
    return modules if head is None else modules | {names[head]: head}


def _layers(model: Any) -> tuple[str, nn.ModuleList]:
    """Return the list of the model's layers: as many as its text has, and the most weights.

    Raises UsageError for a model without such a list.
    """
    n_layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [(p, m) for p, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    of_length = [(path, module) for path, module in lists if len(module) == n_layers]
    chosen = max(of_length or lists, key=lambda pair: _weights(pair[1]), default=None)
    if chosen is None:
        raise UsageError(f"{type(model).__name__} has no list of layers to look at.")
    return chosen


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@contextmanager
def _noted(modules: Mapping[str, nn.Module], seen: dict[str, Tensor]) -> Iterator[None]:
    """Keep the output of each module in `seen`, [positions, width] of the first row."""
    with ExitStack() as handles:
        for name, module in modules.items():
            handles.callback(module.register_forward_hook(_keeper(name, seen)).remove)
        yield


def _keeper(name: str, seen: dict[str, Tensor]) -> Callable[..., None]:
    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        if isinstance(first, Tensor) and first.is_floating_point() and first.dim() > 1:
            row = first[:1] if first.dim() > 2 else first  # noqa: PLR2004
            seen[name] = row.float().cpu().flatten(0, -2).clone()

    return keep
