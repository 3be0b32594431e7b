"""Parallel plans that the transformers engine cannot load, with the reason.

The reasons follow from configs and tables. Nothing is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.engines.models.architectures import Architecture
from pytest_llmperf.engines.models.names import (
    WRITTEN_BYTES,
    predicted_weights_bytes,
    published_architecture,
)
from pytest_llmperf.engines.models.safetensors_header import read_json
from pytest_llmperf.engines.refusals import first_reason
from pytest_llmperf.errors import UsageError

Config = Mapping[str, Any]

SPLIT_KINDS = ("arch", "builtin", "folder", "hub")
"""Kinds of model whose weights are read, or made, a part at a time."""

OWN_PLANS = frozenset({"falcon"})
"""Types of model that 'own-tpN' cuts by a plan of ours: transformers 5.17 to 5.23 has none.

Which other models it has none for shows in the worker, before weights are read.
"""

MOST_DEVICES = 1024
"""Largest number of devices that is proposed."""


def refusal(plan: LoadPlan) -> str | None:
    """Return the first reason against the parallel parts of a plan, or None."""
    return first_reason(check(plan) for check in _CHECKS)


def rows_of_a_replica(batch: int, replicas: int) -> int:
    """Return how many rows of a batch each replica takes.

    Raises UsageError for a batch that cannot be divided.
    """
    if batch % replicas:
        raise UsageError(_undivided_batch(batch, replicas))
    return batch // replicas


def _undivided_batch(batch: int, replicas: int) -> str:
    multiple = -(-batch // replicas) * replicas
    return (
        f"a batch of {batch} cannot be divided over the {replicas} replicas of dp{replicas}. "
        f"Take a multiple of {replicas}, for example batch={multiple}."
    )


def does_not_divide(plan: LoadPlan, config: Config) -> str | None:
    """Return why tensor or pipeline parallelism cannot cut a model of this config, or None.

    The reason names the numbers that can.
    """
    return _tensor_cut(plan, config) or _pipeline_cut(plan, config)


def is_by_library(plan: LoadPlan) -> bool:
    """Whether transformers itself carries out the plan's tensor parallelism."""
    return plan.tp > 1 and plan.tp_by == "library"


def has_no_plan(plan: LoadPlan, model: str, model_type: object) -> str:
    """Say that transformers cannot cut a model, and what can."""
    alternative = _own_alternative(plan) if model_type in OWN_PLANS else ""
    return (
        f"transformers has no tensor-parallel plan for {model}, which 'tp{plan.tp}' carries out. "
        f"Take {alternative}'fsdp{plan.tp}'."
    )


def _own_alternative(plan: LoadPlan) -> str:
    return f"'own-tp{plan.tp}', which measures its shape, or "


def is_not_written(plan: LoadPlan) -> str | None:
    """Return why transformers finds no checkpoint of a plan's architecture, or None."""
    if plan.model.kind != "arch":
        return None
    size = predicted_weights_bytes(plan.model, "auto") or 0
    return _too_large_to_write(plan, size) if size > WRITTEN_BYTES else None


def _too_large_to_write(plan: LoadPlan, size: int) -> str:
    return (
        f"transformers' tensor parallelism reads a checkpoint. {plan.model.name!r} has none, and "
        f"its {size / 1e9:.1f} GB are not written out (at most {WRITTEN_BYTES / 1e9:.1f} GB are). "
        f"Take 'own-tp{plan.tp}', which measures its shape, or name a folder."
    )


def known_config(plan: LoadPlan) -> Config | None:
    """Return the model's config as far as names and files tell.

    None for a model that is not on this machine.
    """
    architecture = published_architecture(plan.model)
    if architecture is not None:
        return _whole_config(architecture)
    return _folder_config(plan.model)


def _whole_config(architecture: Architecture) -> Config:
    return {"model_type": architecture.model_type, **architecture.config}


def _folder_config(model: ModelRef) -> Config | None:
    path = Path(model.location) / "config.json"
    return read_json(path) if model.kind == "folder" and path.is_file() else None


def _tensor_cut(plan: LoadPlan, config: Config) -> str | None:
    counts = _divided_by_tensor(config)
    undivided = _undivided_parts(counts, plan.tp)
    return _undivided_model(plan, undivided, counts.values()) if undivided else None


def _undivided_parts(counts: Mapping[str, int], devices: int) -> list[str]:
    return [f"{n} {name}" for name, n in counts.items() if n % devices]


def _undivided_model(plan: LoadPlan, undivided: Iterable[str], counts: Iterable[int]) -> str:
    return (
        f"{_tensor_part(plan)} does not divide {' and '.join(undivided)} of {plan.model.name!r}. "
        f"{_possible(counts)}"
    )


def _pipeline_cut(plan: LoadPlan, config: Config) -> str | None:
    layers = _first_number(config, "num_hidden_layers", "n_layer")
    return _too_many_stages(plan, layers) if layers and plan.pp > layers else None


def _too_many_stages(plan: LoadPlan, layers: int) -> str:
    return (
        f"own-pp{plan.pp} has more devices than {plan.model.name!r} has layers: {layers}. "
        f"Take at most own-pp{layers}."
    )


def _offload_in_place(plan: LoadPlan) -> str | None:
    """Refuse to offload to the memory that the model computes in."""
    if plan.offload != "cpu" or plan.device_kind != "cpu":
        return None
    return "the weights are in the host's memory already. Take 'offload-disk' here, or a GPU."


def _offload_with_changed_layers(plan: LoadPlan) -> str | None:
    change = _changed_or_compiled_by(plan)
    if plan.offload is None or not change:
        return None
    return f"offloaded weights come and go at each layer, which {change} does not follow. Keep one."


def _changed_or_compiled_by(plan: LoadPlan) -> str:
    return _changed_by(plan) or ("a compiled graph" if plan.compile is not None else "")


def _offload_over_devices(plan: LoadPlan) -> str | None:
    if plan.offload is None or plan.spread <= 1:
        return None
    return (
        "offloaded weights are read by one device. "
        "Leave out the parts that take several, or 'offload'."
    )


def _together(plan: LoadPlan) -> str | None:
    """Refuse what a cut model is not combined with."""
    cut = "+".join(_cutting_parts(plan))
    if not cut:
        return None
    return first_reason(check(plan, cut) for check in _CUT_CHECKS)


def _changed_and_cut(plan: LoadPlan, cut: str) -> str | None:
    change = _changed_by(plan)
    if not change:
        return None
    return (
        f"{change} works on whole layers, and {cut} leaves parts of them on each device. "
        "'dpN' keeps whole models."
    )


def _cut_by_library_and_otherwise(plan: LoadPlan, _cut: str) -> str | None:
    if not is_by_library(plan) or plan.tp >= plan.spread:
        return None
    return (
        f"transformers' tensor parallelism takes all the ranks of a model here. "
        f"Take 'own-tp{plan.tp}', which goes with other parallel parts."
    )


def _tensor_part(plan: LoadPlan) -> str:
    return f"{'own-' if plan.tp_by == 'own' else ''}tp{plan.tp}"


def _cutting_parts(plan: LoadPlan) -> Iterator[str]:
    """Yield the parts of a plan that leave parts of a model on each device."""
    if plan.tp > 1:
        yield _tensor_part(plan)
    if plan.fsdp > 1:
        yield f"fsdp{plan.fsdp}"
    if plan.pp > 1:
        yield f"own-pp{plan.pp}"


def _cut_cache(plan: LoadPlan, cut: str) -> str | None:
    if plan.cache not in {"int8", "fp8"}:
        return None
    return (
        f"the {plan.cache} cache is not divided with the heads or layers of {cut}. "
        "Take the plain or the static cache."
    )


def _cut_and_compiled(plan: LoadPlan, cut: str) -> str | None:
    if plan.compile is None or plan.fsdp * plan.pp == 1:
        return None
    return (
        f"{cut} gathers or sends between layers in Python, which is not compiled. "
        "'tpN' and 'own-tpN' can be."
    )


def _stages_under_autocast(plan: LoadPlan, cut: str) -> str | None:
    if plan.autocast_dtype is None or plan.pp == 1:
        return None
    return (
        f"under autocast the dtype between the stages of {cut} is not fixed. "
        "Take a full precision such as 'bf16'."
    )


_CUT_CHECKS = (
    _changed_and_cut,
    _cut_by_library_and_otherwise,
    _cut_cache,
    _cut_and_compiled,
    _stages_under_autocast,
)


def _changed_by(plan: LoadPlan) -> str:
    """Name what changes or replaces layers of the loaded model; empty where nothing does."""
    if plan.quantization is not None:
        return f"quantization ({plan.quantization})"
    if plan.pruning is not None:
        return f"pruning ({plan.pruning})"
    if plan.adapters:
        return "an adapter"
    return "assisted decoding" if plan.assist is not None else ""


def _model(plan: LoadPlan) -> str | None:
    if plan.tp * plan.fsdp * plan.pp == 1:
        return None
    if plan.model.kind not in (*SPLIT_KINDS, "scripted"):
        kinds = ", ".join(SPLIT_KINDS)
        return (
            f"a model of kind {plan.model.kind!r} is loaded whole. "
            f"Cut over devices are: {kinds}; 'dpN' takes any."
        )
    config = known_config(plan) or {}
    model_type = config.get("model_type")
    if is_by_library(plan) and model_type in OWN_PLANS:
        return has_no_plan(plan, plan.model.name, model_type)
    return does_not_divide(plan, config) or (is_not_written(plan) if is_by_library(plan) else None)


def _divided_by_tensor(config: Config) -> dict[str, int]:
    """Count what tensor parallelism divides: query heads, KV heads, the width of the MLP.

    What the config does not tell is left out.
    """
    return {name: n for name, n in _heads_and_columns(config).items() if n}


def _heads_and_columns(config: Config) -> dict[str, int]:
    """Return the counts of the heads and the MLP; 0 for what the config does not tell."""
    heads = _first_number(config, "num_attention_heads", "n_head")
    return {
        "heads": heads,
        "KV heads": _kv_heads(config, heads),
        "columns of the MLP": _first_number(config, "intermediate_size", "ffn_hidden_size"),
    }


def _is_first_falcon(config: Config) -> bool:
    """Whether a config is of the first Falcon architecture, which names its KV heads otherwise."""
    return config.get("model_type") == "falcon" and not config.get("new_decoder_architecture")


def _kv_heads(config: Config, heads: int) -> int:
    if _is_first_falcon(config):
        return 1 if config.get("multi_query", True) else heads
    return _first_number(config, "num_key_value_heads", "num_kv_heads") or heads


def _first_number(config: Config, *keys: str) -> int:
    """Return the number under the first of these keys that has one; 0 where none has."""
    return next((int(config[key]) for key in keys if config.get(key)), 0)


def _possible(counts: Iterable[int]) -> str:
    """Say which numbers of devices divide all these counts."""
    divisors = _divisors(math.gcd(*counts))
    if not divisors:
        return "No N does; 'fsdpN' and 'own-ppN' cut it otherwise."
    return f"N that do: {', '.join(map(str, divisors))}."


def _divisors(number: int) -> list[int]:
    """Return the divisors of a number from 2 to `MOST_DEVICES`."""
    return [n for n in range(2, min(number, MOST_DEVICES) + 1) if number % n == 0]


_CHECKS = (
    _offload_in_place,
    _offload_with_changed_layers,
    _offload_over_devices,
    _together,
    _model,
)

ALL = (refusal,)
