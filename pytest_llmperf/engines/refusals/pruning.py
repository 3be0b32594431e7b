"""Plans with a pruning part that cannot be loaded, told before anything is.

Nothing heavy is imported here.
"""

from __future__ import annotations

from pathlib import Path

from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.core.quantization import CHECKPOINTS
from pytest_llmperf.engines.models.names import published_architecture
from pytest_llmperf.engines.models.safetensors_header import read_json
from pytest_llmperf.engines.refusals import first_reason
from pytest_llmperf.strategies.pruned import STRUCTURED_FAMILIES, Pruning, parse_pruning


def refusal(plan: LoadPlan) -> str | None:
    """Return why `plan` cannot be pruned as it says, or None."""
    if plan.pruning is None:
        return None
    pruning = parse_pruning(plan.pruning)
    return first_reason(check(plan, pruning) for check in _CHECKS)


def _packed_weights(plan: LoadPlan, pruning: Pruning) -> str | None:
    """Refuse a quantized checkpoint, which has no plain weights to prune."""
    if not _names_a_checkpoint(plan) and not _config(plan.model).get("quantization_config"):
        return None
    return (
        f"the checkpoint holds packed weights, and {pruning} needs plain ones. "
        "Prune the full-precision model, then quantize it."
    )


def _names_a_checkpoint(plan: LoadPlan) -> bool:
    """Whether the plan's quantization is that of a checkpoint's files."""
    return plan.quantization is not None and plan.quantization.partition(":")[0] in CHECKPOINTS


def _elsewhere(plan: LoadPlan, pruning: Pruning) -> str | None:
    """Refuse parts of matrices: scores and inputs are of whole ones, where the model runs."""
    place = _place_of_parts(plan)
    if not place:
        return None
    return (
        f"{pruning} looks at whole matrices on one device, and the model {place}. Keep one of them."
    )


def _place_of_parts(plan: LoadPlan) -> str:
    """Say where parts of the model are; empty where it is whole on one device."""
    if plan.ranks > 1:
        return f"is spread over {plan.ranks} ranks"
    return f"waits elsewhere ({plan.offload})" if plan.offload is not None else ""


def _merged_adapter(plan: LoadPlan, pruning: Pruning) -> str | None:
    if not plan.merge_adapters or pruning.structured:
        return None
    return (
        f"a merged adapter fills the zeros that {pruning} makes. "
        "Leave out ':merged', or merge first, save the result and prune that."
    )


def _adapter_of_removed_rows(plan: LoadPlan, pruning: Pruning) -> str | None:
    if not (pruning.structured and plan.adapters):
        return None
    return (
        f"{pruning} removes rows and columns that the adapter {plan.adapters[0]} was trained for. "
        "Keep one of them."
    )


def _unknown_family(plan: LoadPlan, pruning: Pruning) -> str | None:
    family = model_type(plan.model)
    if family is None or _can_take_apart(family, pruning):
        return None
    subject = f"{plan.model.name!r} is of family {family!r}"
    return _cannot_take_apart(subject, pruning)


def _cannot_take_apart(subject: str, pruning: Pruning) -> str:
    return (
        f"{pruning} needs to know which rows and columns belong to one head, "
        f"and {subject}. {_families_and_alternative(pruning)}"
    )


def _can_take_apart(family: str, pruning: Pruning) -> bool:
    """Whether a pruning keeps whole matrices, or knows how those of a family belong together."""
    return not pruning.structured or family in STRUCTURED_FAMILIES


def _families_and_alternative(pruning: Pruning) -> str:
    return (
        f"Families it knows: {', '.join(STRUCTURED_FAMILIES)}. "
        f"'wanda:{pruning.sparsity:g}' works for any, and removes nothing."
    )


_CHECKS = (
    _packed_weights,
    _elsewhere,
    _merged_adapter,
    _adapter_of_removed_rows,
    _unknown_family,
)


def model_type(model: ModelRef) -> str | None:
    """Return transformers' model type, where it can be told without loading.

    It comes from the tables, or from a folder's config.json.
    """
    architecture = published_architecture(model)
    if architecture is not None:
        return architecture.model_type
    stored_type = _config(model).get("model_type")
    return str(stored_type) if stored_type else None


def _config(model: ModelRef) -> dict[str, object]:
    file = Path(model.location) / "config.json"
    return read_json(file) if model.kind == "folder" and file.is_file() else {}
