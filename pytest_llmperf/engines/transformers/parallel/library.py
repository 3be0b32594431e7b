"""Tensor parallelism as users deploy it: transformers reads a checkpoint by the model's own plan.

Every rank calls `from_pretrained(folder, tp_plan="auto")` in the process group of the plan's ranks.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from pytest_llmperf.core.effective import OWN_TENSOR_PARALLEL
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.loading import arch
from pytest_llmperf.engines.loading.checkpoint import (
    config_of,
    load_errors,
    local_folder,
    stored_dtype,
)
from pytest_llmperf.engines.loading.folder import architecture_folder
from pytest_llmperf.engines.models.safetensors_header import read_json
from pytest_llmperf.engines.refusals.parallel import (
    does_not_divide,
    has_no_plan,
    is_by_library,
    is_not_written,
)
from pytest_llmperf.engines.transformers.checkpoint import SourceModel, read_folder, weights_dtype
from pytest_llmperf.engines.transformers.parallel.anatomy import anatomy, own_bytes
from pytest_llmperf.engines.transformers.parallel.build import Cut
from pytest_llmperf.engines.transformers.parallel.division import Division
from pytest_llmperf.engines.transformers.parallel.group import Grid
from pytest_llmperf.engines.transformers.parallel.tensor import joins_ranks
from pytest_llmperf.errors import LoadError
from pytest_llmperf.instruments.torch_runtime import DeviceRuntime

__all__ = ["carrier", "is_by_library", "read"]

WHOLE_STYLES = frozenset({"", "replicate", "replicated_with_grad_allreduce"})
"""Styles of a plan that leave a module whole on every rank."""


def read(plan: LoadPlan, device: torch.device, grid: Grid) -> tuple[SourceModel, Cut]:
    """Read the part of this rank by transformers.

    Raises LoadError, before weights are read, for a model that has no plan.
    """
    folder, content_hash = _checkpoint(plan)
    with load_errors(plan, str(folder)):
        bare = _without_weights(plan, folder)
        _require_plan(plan, bare)
    with DeviceRuntime(device).peak_memory() as region:
        source = read_folder(plan, device, folder, tp_plan="auto")
    _require_on(device, source.model)
    division = _division(bare)
    cut = replace(
        _cut(plan, bare, grid),
        load_peak_bytes=region.peak,
        left_whole=division.left_whole(),
        larger=tuple(division.larger_than_planned(source.model, plan.tp)),
    )
    return replace(source, content_hash=content_hash or source.content_hash), cut


def carrier(model: Any) -> str:
    """Return the name of the code that carries out tensor parallelism in `model`; empty for none.

    transformers says so itself by the model's `tp_size`, and our hooks are in the modules.
    """
    if (getattr(model, "tp_size", None) or 1) > 1:
        return f"transformers {transformers.__version__}"
    return OWN_TENSOR_PARALLEL if joins_ranks(model) else ""


def _checkpoint(plan: LoadPlan) -> tuple[Path, str]:
    """Return the model's folder, and what identifies weights that were written out; else ""."""
    if plan.model.kind != "arch":
        with load_errors(plan, plan.model.name):
            return local_folder(plan), ""
    reason = is_not_written(plan)
    if reason is not None:
        raise LoadError(reason)
    with load_errors(plan, f"architecture {plan.model.location!r}"):
        written = architecture_folder(plan, torch.device(plan.device_kind))
    return written.folder, written.content_hash


def _without_weights(plan: LoadPlan, folder: Path) -> Any:
    """Return the model on the meta device."""
    config: Any = config_of(folder, trust_remote_code=plan.model.trust_remote_code)
    stored = stored_dtype(folder, read_json(folder / "config.json"))
    return arch.on_meta(config, weights_dtype(plan, stored), plan.attention)


def _require_plan(plan: LoadPlan, bare: Any) -> None:
    if not bare.supports_tp_plan or not bare.tp_plan:
        raise LoadError(has_no_plan(plan, type(bare).__name__, bare.config.model_type))
    reason = does_not_divide(plan, bare.config.get_text_config().to_dict())
    if reason is not None:
        raise LoadError(reason)
    _division(bare).require_blocks_divided(f"tp{plan.tp}")


def _division(bare: Any) -> Division:
    """Return what the model's own plan divides, by module or by parameter."""
    styles = dict(bare.tp_plan).items()
    return Division(bare, frozenset(path for path, style in styles if style not in WHOLE_STYLES))


def _require_on(device: torch.device, model: Any) -> None:
    """Raise LoadError where transformers chose another kind of device: it takes a GPU it sees."""
    if model.device.type != device.type:
        raise LoadError(
            f"transformers put the model on {model.device.type!r}, and {device.type!r} was asked "
            "for. Hide the GPUs, or take 'own-tpN'."
        )


def _cut(plan: LoadPlan, bare: Any, grid: Grid) -> Cut:
    """Say what this rank must hold, from the model without weights and its plan."""
    whole_bytes = own_bytes(bare)
    layers = bare.get_submodule(anatomy(bare).layers).children()
    return Cut(
        grid=grid,
        whole_bytes=whole_bytes,
        stage_bytes=whole_bytes,
        kept_bytes=whole_bytes - _division(bare).bytes,
        largest_layer_bytes=max(map(own_bytes, layers)),
        load_peak_bytes=None,
        holds=f"tp {grid.place('tp') + 1} of {plan.tp}",
    )
