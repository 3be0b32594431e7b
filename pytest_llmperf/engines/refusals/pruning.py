"""Plans with a pruning part that cannot be loaded, told before anything is.

Nothing heavy is imported here.
"""

from __future__ import annotations

from pathlib import Path

from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.core.quantization import CHECKPOINTS
from pytest_llmperf.engines.models.names import ARCHITECTURES, BUILTIN
from pytest_llmperf.engines.models.safetensors_header import read_json
from pytest_llmperf.strategies.pruned import STRUCTURED_FAMILIES, Pruning, parse_pruning


def refuse(plan: LoadPlan) -> str | None:
    """Why `plan` cannot be pruned as it says, or None."""
    if plan.pruning is None:
        return None
    asked = parse_pruning(plan.pruning)
    return next((reason for check in _CHECKS if (reason := check(plan, asked)) is not None), None)


def _packed_weights(plan: LoadPlan, asked: Pruning) -> str | None:
    """A quantized checkpoint has no plain weights to prune."""
    packed = plan.quantization is not None and plan.quantization.partition(":")[0] in CHECKPOINTS
    if not packed and not _config(plan.model).get("quantization_config"):
        return None
    return f"the checkpoint holds packed weights, and {asked} needs plain ones. Prune the full-precision model, then quantize it."


def _elsewhere(plan: LoadPlan, asked: Pruning) -> str | None:
    """Scores and inputs are of whole matrices, on the device where the model runs."""
    offload = getattr(plan, "offload", None)
    if plan.ranks == 1 and offload is None:
        return None
    where = (
        f"is spread over {plan.ranks} ranks" if plan.ranks > 1 else f"waits elsewhere ({offload})"
    )
    return (
        f"{asked} looks at whole matrices on one device, and the model {where}. Keep one of them."
    )


def _adapters(plan: LoadPlan, asked: Pruning) -> str | None:
    if plan.merge_adapters and not asked.structured:
        return (
            f"a merged adapter fills the zeros that {asked} makes. Leave out ':merged', or merge first, save the result and "
            "prune that."
        )
    if not (asked.structured and plan.adapters):
        return None
    return f"{asked} removes rows and columns that the adapter {plan.adapters[0]} was trained for. Keep one of them."


def _unknown_family(plan: LoadPlan, asked: Pruning) -> str | None:
    family = model_type(plan.model)
    if not asked.structured or family is None or family in STRUCTURED_FAMILIES:
        return None
    return (
        f"{asked} needs to know which rows and columns belong to one head, and {plan.model.name!r} is of family {family!r}. "
        f"Families it knows: {', '.join(STRUCTURED_FAMILIES)}. 'wanda:{asked.sparsity:g}' works for any, and removes nothing."
    )


_CHECKS = (_packed_weights, _elsewhere, _adapters, _unknown_family)


def model_type(model: ModelRef) -> str | None:
    """Transformers' model type, where it can be told without loading: from the tables or a folder's config.json."""
    if model.kind == "arch":
        return ARCHITECTURES[model.location].model_type
    if model.kind == "builtin":
        return BUILTIN[model.location].architecture.model_type
    found = _config(model).get("model_type")
    return str(found) if found else None


def _config(model: ModelRef) -> dict[str, object]:
    file = Path(model.location) / "config.json"
    return read_json(file) if model.kind == "folder" and file.is_file() else {}
