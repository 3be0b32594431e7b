"""Parallel plans that the transformers engine cannot load, with the reason, from configs and tables. Nothing is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.names import ARCHITECTURES, BUILTIN
from pytest_llmperf.engines.models.safetensors_header import read_json
from pytest_llmperf.errors import UsageError

Config = Mapping[str, Any]

SPLIT_KINDS = ("arch", "builtin", "folder", "hub")
"""Kinds of model whose weights are read, or made, a part at a time."""


def refuse(plan: LoadPlan) -> str | None:
    """The first reason against the parallel parts of a plan, or None."""
    return _offload(plan) or _together(plan) or _model(plan)


def rows_of_a_replica(batch: int, replicas: int) -> int:
    """How many rows of a batch each replica takes.

    Raises UsageError for a batch that cannot be divided.
    """
    if batch % replicas:
        raise UsageError(
            f"a batch of {batch} cannot be divided over the {replicas} replicas of dp{replicas}. "
            f"Take a multiple of {replicas}, for example batch={-(-batch // replicas) * replicas}.",
        )
    return batch // replicas


def does_not_divide(plan: LoadPlan, config: Config) -> str | None:
    """Why tensor or pipeline parallelism cannot cut a model of this config, with the numbers that can; None where it can."""
    if plan.tp > 1:
        counts = {name: n for name, n in _cut(config).items() if n}
        wrong = [f"{n} {name}" for name, n in counts.items() if n % plan.tp]
        if wrong:
            return f"tp{plan.tp} does not divide {' and '.join(wrong)} of {plan.model.name!r}. {_possible(counts.values())}"
    layers = int(config.get("num_hidden_layers") or config.get("n_layer") or 0)
    if layers and plan.pp > layers:
        return f"pp{plan.pp} has more devices than {plan.model.name!r} has layers: {layers}. Take at most pp{layers}."
    return None


def known_config(plan: LoadPlan) -> Config | None:
    """The model's config as far as names and files tell; None for one that is not on this machine."""
    model = plan.model
    if model.kind == "arch":
        row = ARCHITECTURES[model.location]
        return {"model_type": row.model_type, **row.config}
    if model.kind == "builtin":
        row = BUILTIN[model.location].architecture
        return {"model_type": row.model_type, **row.config}
    path = Path(model.location) / "config.json"
    return read_json(path) if model.kind == "folder" and path.is_file() else None


def _offload(plan: LoadPlan) -> str | None:
    if plan.offload is None:
        return None
    if plan.offload == "cpu" and plan.device.partition(":")[0] == "cpu":
        return "the weights are in the host's memory already. Take 'offload-disk' here, or a GPU."
    changed = _changes(plan)
    if changed or plan.compile is not None:
        return f"offloaded weights come and go at each layer, which {changed or 'a compiled graph'} does not follow. Keep one."
    if plan.spread > 1:
        return "offloaded weights are read by one device. Leave out the parts that take several, or 'offload'."
    return None


def _together(plan: LoadPlan) -> str | None:
    """What a cut model is not combined with."""
    cut = "+".join(f"{name}{n}" for name in ("tp", "fsdp", "pp") if (n := getattr(plan, name)) > 1)
    if not cut:
        return None
    changed = _changes(plan)
    if changed:
        return f"{changed} works on whole layers, and {cut} leaves parts of them on each device. 'dpN' keeps whole models."
    if plan.cache in {"int8", "fp8"}:
        return f"the {plan.cache} cache is not divided with the heads or layers of {cut}. Take the plain or the static cache."
    if plan.compile is not None and plan.fsdp * plan.pp > 1:
        return (
            f"{cut} gathers or sends between layers in Python, which is not compiled. 'tpN' can be."
        )
    if plan.autocast_dtype is not None and plan.pp > 1:
        return f"under autocast the dtype between the stages of {cut} is not fixed. Take a full precision such as 'bf16'."
    return None


def _changes(plan: LoadPlan) -> str:
    """What changes or replaces layers of the loaded model."""
    found = (
        (plan.quantization is not None, f"quantization ({plan.quantization})"),
        (plan.pruning is not None, f"pruning ({plan.pruning})"),
        (bool(plan.adapters), "an adapter"),
        (plan.assist is not None, "assisted decoding"),
    )
    return next((text for holds, text in found if holds), "")


def _model(plan: LoadPlan) -> str | None:
    if plan.tp * plan.fsdp * plan.pp == 1:
        return None
    if plan.model.kind not in (*SPLIT_KINDS, "scripted"):
        kinds = ", ".join(SPLIT_KINDS)
        return f"a model of kind {plan.model.kind!r} is loaded whole. Cut over devices are: {kinds}; 'dpN' takes any."
    config = known_config(plan)
    return None if config is None else does_not_divide(plan, config)


def _cut(config: Config) -> dict[str, int]:
    """What tensor parallelism divides: query heads, KV heads, the width of the MLP."""
    heads = int(config.get("num_attention_heads") or config.get("n_head") or 0)
    return {
        "heads": heads,
        "KV heads": _kv_heads(config, heads),
        "columns of the MLP": int(
            config.get("intermediate_size") or config.get("ffn_hidden_size") or 0
        ),
    }


def _kv_heads(config: Config, heads: int) -> int:
    if config.get("model_type") == "falcon" and not config.get("new_decoder_architecture"):
        return 1 if config.get("multi_query", True) else heads
    return int(config.get("num_key_value_heads") or config.get("num_kv_heads") or heads)


def _possible(counts: Any) -> str:
    common = math.gcd(*counts)
    able = [n for n in range(2, min(common, 1024) + 1) if common % n == 0]
    return (
        f"N that do: {', '.join(map(str, able))}."
        if able
        else "No N does; 'fsdpN' and 'ppN' cut it otherwise."
    )


ALL = (refuse,)
