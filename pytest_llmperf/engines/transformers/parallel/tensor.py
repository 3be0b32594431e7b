"""Tensor parallelism: the model's own plan, with one collective where the plan joins ranks.

transformers says which layers are cut and how (`tp_plan`: "colwise", "rowwise", …); falcon, for
which it has no plan, is cut the same way. The plan is carried out on plain tensors. That is the
strategy part `own-tpN`, which measures models that transformers' own code (`tpN`, library.py)
cannot load; see decision 0015.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import Tensor, nn

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.transformers.parallel.anatomy import is_tied
from pytest_llmperf.engines.transformers.parallel.division import Division
from pytest_llmperf.engines.transformers.parallel.group import Grid
from pytest_llmperf.errors import LoadError

FALCON_PLAN = {
    "transformer.h.*.self_attention.query_key_value": "colwise",
    "transformer.h.*.self_attention.dense": "rowwise",
    "transformer.h.*.mlp.dense_h_to_4h": "colwise",
    "transformer.h.*.mlp.dense_4h_to_h": "rowwise",
    "lm_head": "colwise_gather_output",
}
"""The fused projection holds a KV head after its query heads, group by group.

So a cut between groups is one of rows.
"""

HEAD_COUNTS = ("num_heads", "num_kv_heads")
"""Attributes by which some attention modules (falcon's) shape the output of their projection."""

COLWISE, ROWWISE, GATHERED, EMBEDDED = (
    "colwise",
    "rowwise",
    "colwise_gather_output",
    "embedding_rowwise",
)
_SAME = {
    "colwise_rep": GATHERED,
    "rowwise_rep": ROWWISE,
    "replicated_with_grad_allreduce": "",
    "replicate": "",
}
_KNOWN = (COLWISE, ROWWISE, GATHERED, EMBEDDED, "")


@dataclass
class TensorCut:
    """Cuts modules as they are filled. `kept_bytes` counts weights that every rank has whole."""

    model: Any
    grid: Grid
    plan: dict[str, str]
    kept_bytes: int = 0

    def after_fill(self, module: nn.Module, path: str) -> None:
        """Leave this rank's part of a module that has its whole values."""
        style = self.plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", path), "")
        if style == COLWISE:
            _keep_rows(module, self.grid)
        elif style == ROWWISE:
            _keep_columns(module, self.grid)
            module.register_forward_hook(_Sum(self.grid))
        elif style in {GATHERED, EMBEDDED} and _divides(module, self.grid):
            _keep_rows(module, self.grid)
            _join_rows(module, style, self.grid)
        else:
            self.kept_bytes += _bytes_of_own_tensors(module)

    def finish(self) -> None:
        """Set the head counts of attention modules to this rank's own heads."""
        ranks = self.grid.along("tp")
        for module in self.model.modules():
            if "Attention" in type(module).__name__:
                _divide_head_counts(module, ranks)


def joins_ranks(model: nn.Module) -> bool:
    """Whether hooks of this module are in a model: ranks compute it together by our code."""
    hooks = chain.from_iterable(
        module._forward_hooks.values()  # noqa: SLF001 - torch has no public list
        for module in model.modules()
    )
    return any(isinstance(hook, (_Sum, _Gather)) for hook in hooks)


def _divide_head_counts(attention: nn.Module, ranks: int) -> None:
    for name in HEAD_COUNTS:
        heads = getattr(attention, name, None)
        if isinstance(heads, int):
            setattr(attention, name, heads // ranks)


def tensor_cut(model: Any, plan: LoadPlan, grid: Grid) -> TensorCut | None:
    """Return what cuts the modules; None for a plan without tensor parallelism.

    Raises LoadError for a model that has no plan, or one of unknown styles.
    """
    if plan.tp == 1:
        return None
    styles = {path: _SAME.get(style, style) for path, style in _plan_of(model).items()}
    unknown = sorted(set(styles.values()) - set(_KNOWN))
    if unknown:
        raise LoadError(
            f"{type(model).__name__}: tensor-parallel styles {', '.join(unknown)} are not carried "
            "out here. Take 'fsdpN'.",
        )
    cut = frozenset(path for path, style in styles.items() if style in {COLWISE, ROWWISE})
    Division(model, cut).require_blocks_divided(f"own-tp{plan.tp}")
    _cut_embedding(model, styles)
    return TensorCut(model, grid, styles)


def _plan_of(model: Any) -> dict[str, str]:
    """Return the style of each layer that the model's plan cuts, by path."""
    if model.config.get_text_config().model_type == "falcon":
        return FALCON_PLAN
    plan = getattr(model, "tp_plan", None)
    if not plan:
        raise LoadError(
            f"{type(model).__name__} has no tensor-parallel plan in this transformers. "
            "Take 'fsdpN' or 'own-ppN'."
        )
    return dict(plan)


def _cut_embedding(model: Any, styles: dict[str, str]) -> None:
    """Cut the table by rows, as newer plans do. A table tied to an uncut head stays whole."""
    paths = {id(module): path for path, module in model.named_modules()}
    table = paths[id(model.get_input_embeddings())]
    head = paths[id(model.get_output_embeddings())]
    if is_tied(model) and styles.get(head) != GATHERED:
        styles.pop(table, None)
        styles.pop(head, None)
    else:
        styles[table] = EMBEDDED


def _bytes_of_own_tensors(module: nn.Module) -> int:
    """Return the bytes of a module's own parameters and buffers, without its children's."""
    tensors = chain(module.parameters(recurse=False), module.buffers(recurse=False))
    return sum(tensor.nbytes for tensor in tensors)


def _divides(module: Any, grid: Grid) -> bool:
    return int(module.weight.shape[0]) % grid.along("tp") == 0


def _part(tensor: Tensor, dim: int, grid: Grid) -> nn.Parameter:
    """Return the part of this rank, in memory of its own, so that the whole can be freed."""
    n = grid.along("tp")
    _require_divisible(tensor, dim, n)
    part = tensor.chunk(n, dim)[grid.place("tp")].clone(memory_format=torch.contiguous_format)
    return nn.Parameter(part, requires_grad=False)


def _require_divisible(tensor: Tensor, dim: int, n: int) -> None:
    if tensor.shape[dim] % n:
        raise LoadError(
            f"a weight of {tuple(tensor.shape)} cannot be cut in {n} along dimension {dim}."
        )


def _keep_rows(module: Any, grid: Grid) -> None:
    """Keep this rank's outputs of a linear layer, or entries of a table."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        module.register_parameter(name, _part(parameter, 0, grid))
    if hasattr(module, "out_features"):
        module.out_features = module.weight.shape[0]


def _keep_columns(module: Any, grid: Grid) -> None:
    """Keep this rank's inputs of a linear layer. The first rank alone adds the bias."""
    module.weight = _part(module.weight, 1, grid)
    module.in_features = module.weight.shape[1]
    if getattr(module, "bias", None) is not None and grid.place("tp"):
        module.bias.data.zero_()


def _join_rows(module: nn.Module, style: str, grid: Grid) -> None:
    if style == GATHERED:
        module.register_forward_hook(_Gather(grid))
        return
    lookup = _Lookup(module, grid)
    module.register_forward_pre_hook(lookup.before)
    module.register_forward_hook(lookup.after)


class _Sum:
    """Adds the partial products of all ranks."""

    def __init__(self, grid: Grid) -> None:
        self._group = grid.group("tp")

    def __call__(self, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return _summed(output, self._group)


class _Gather:
    """Puts the ranks' outputs side by side."""

    def __init__(self, grid: Grid) -> None:
        self._group = grid.group("tp")
        self._n = grid.along("tp")

    def __call__(self, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            joined = funcol.all_gather_tensor(output.movedim(-1, 0).contiguous(), 0, self._group)
            return joined.movedim(0, -1).contiguous()
        parts = [torch.empty_like(output) for _ in range(self._n)]
        dist.all_gather(parts, output.contiguous(), group=self._group)
        return torch.cat(parts, dim=-1)


class _Lookup:
    """Looks up this rank's own rows.

    Ids of other ranks give zeros, and the sum over the ranks has each row once.
    """

    def __init__(self, module: Any, grid: Grid) -> None:
        self._group = grid.group("tp")
        self._rows = int(module.weight.shape[0])
        self._first = self._rows * grid.place("tp")
        self._ids: Tensor | None = None

    def before(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self._ids = inputs[0] - self._first
        return (self._ids.clamp(0, self._rows - 1), *inputs[1:])

    def after(self, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        assert self._ids is not None  # noqa: S101 - set by `before`
        is_own = (self._ids >= 0) & (self._ids < self._rows)
        self._ids = None
        return _summed(output.masked_fill(~is_own.unsqueeze(-1), 0), self._group)


def _summed(value: Tensor, group: dist.ProcessGroup) -> Tensor:
    if torch.compiler.is_compiling():
        joined: Tensor = funcol.all_reduce(value, "sum", group)
        return joined
    value = value.contiguous()
    dist.all_reduce(value, group=group)
    return value
