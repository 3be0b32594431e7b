"""Several devices for one model, and weights that wait on the host or on disk."""

from __future__ import annotations

import re
from functools import partial

from pytest_llmperf.core.effective import OWN_TENSOR_PARALLEL, Effective, Promise, Shard
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.errors import UsageError
from pytest_llmperf.strategies.base import Part

TOLERANCE = 0.02
"""What a rank may hold above its analytic share of the weights: buffers, uneven shards' padding."""

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
"""Backend of the collectives by kind of device."""

_PLAIN_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")


RENAMED = {"pp": "own-pp"}
"""Parts that no engine has in its library, and this project's own in their place."""


def _number_of_devices(
    name: str, field: str, fixed: dict[str, object], argument: str
) -> dict[str, object]:
    if not _is_plain_number(argument) or int(argument) < 2:  # noqa: PLR2004 - several
        raise UsageError(
            f"strategy part {name + argument!r}: the number of devices is a whole number of at "
            f"least 2, for example {name + '2'!r}. On one device leave the part out.",
        )
    return {field: int(argument), **fixed}


def _is_plain_number(text: str) -> bool:
    """Whether a text is at most nine digits, without leading zeros."""
    return bool(_PLAIN_NUMBER.fullmatch(text))


def spread(name: str, field: str, plan: LoadPlan) -> tuple[Promise, ...]:
    """Promise that every rank is there, on a device of its own, and holds its share of the plan.

    Of tensor parallelism also promise who carries it out.
    """
    part = f"{name}{getattr(plan, field)}"
    checks = {
        f"{plan.ranks} ranks take part": _missing_ranks,
        "each rank has a device of its own": _shared_devices,
        "each rank holds its share of the weights": _wrong_bytes,
    }
    if field == "tp":
        checks[f"tensor parallelism is carried out by {_carrier(plan)}"] = _wrong_carrier
    return tuple(
        Promise(text, partial(check, plan=plan), part=part) for text, check in checks.items()
    )


def most_bytes(shard: Shard, plan: LoadPlan) -> float:
    """Return what one rank may hold of its pipeline stage.

    That is the stage over its shards, and what each of these keeps whole.
    """
    n_shards = plan.tp * plan.fsdp
    split_bytes = shard.stage_bytes / n_shards
    return (1 + TOLERANCE) * (split_bytes + shard.kept_bytes * (1 - 1 / n_shards))


def _carrier(plan: LoadPlan) -> str:
    return OWN_TENSOR_PARALLEL if plan.tp_by == "own" else f"the library of engine {plan.engine!r}"


def _wrong_carrier(effective: Effective, plan: LoadPlan) -> str | None:
    """Return who carries out tensor parallelism, where it is not the one that was asked for."""
    carrier = effective.tensor_parallel
    if carrier and (carrier == OWN_TENSOR_PARALLEL) == (plan.tp_by == "own"):
        return None
    return f"tensor parallelism is carried out by {carrier or 'nobody'}, not by {_carrier(plan)}"


def _missing_ranks(effective: Effective, plan: LoadPlan) -> str | None:
    ranks = [shard.rank for shard in effective.shards]
    if ranks == list(range(plan.ranks)) and effective.ranks == plan.ranks:
        return None
    return f"{len(ranks)} ranks hold a part of the model ({ranks}), asked for {plan.ranks}"


def _shared_devices(effective: Effective, plan: LoadPlan) -> str | None:
    kind = plan.device.partition(":")[0]
    if (reason := _wrong_backend(effective, kind)) is not None:
        return reason
    devices = [shard.device for shard in effective.shards]
    n_devices = len(set(devices))
    if kind != "cpu" and n_devices < len(devices):
        return f"{len(devices)} ranks share {n_devices} devices: {', '.join(devices)}"
    return None


def _wrong_backend(effective: Effective, kind: str) -> str | None:
    backends = {shard.backend for shard in effective.shards}
    wrong = sorted(backends - {BACKENDS[kind]}) if kind in BACKENDS else []
    if not wrong:
        return None
    return f"collectives go through {', '.join(wrong)}, {BACKENDS[kind]} is wanted on {kind}"


def _wrong_bytes(effective: Effective, plan: LoadPlan) -> str | None:
    """Return what is wrong where one rank holds too much, or all of them together too little."""
    shards = effective.shards
    model_bytes = max((shard.whole_bytes for shard in shards), default=0)
    is_too_much = any(shard.bytes > most_bytes(shard, plan) for shard in shards)
    all_bytes = sum(shard.bytes for shard in shards)
    if not is_too_much and all_bytes >= model_bytes * plan.dp * (1 - TOLERANCE):
        return None
    by_rank = ", ".join(_bytes_of_rank(shard, plan) for shard in shards)
    return f"the ranks do not hold their shares of the {model_bytes / 1e6:.3f} MB model: {by_rank}"


def _bytes_of_rank(shard: Shard, plan: LoadPlan) -> str:
    most = most_bytes(shard, plan)
    return f"rank {shard.rank} {shard.bytes / 1e6:.3f} MB (at most {most / 1e6:.3f})"


def offloaded(name: str, place: str) -> Promise:
    """Promise that the weights lie in `place` and not on the device that computes."""
    return Promise(
        f"weights wait in {place}", lambda effective: _not_offloaded(effective, place), part=name
    )


def _not_offloaded(effective: Effective, place: str) -> str | None:
    waiting = effective.offloaded_bytes.get(place, 0)
    if waiting and waiting >= sum(effective.offloaded_bytes.values()) * (1 - TOLERANCE):
        return None
    parameters = (group for group in effective.tensors if group.kind == "parameter")
    on_devices = {group.device: group.bytes for group in parameters} or "nothing"
    return f"{waiting / 1e6:.3f} MB of weights wait in {place}; on devices: {on_devices}"


def _numbered(name: str, summary: str, *, field: str = "", **fixed: object) -> Part:
    """Return a part whose number sets `field` (its name, where none is named), beside `fixed`."""
    field = field or name
    return Part(
        name=name,
        kind="parallel",
        summary=summary,
        fields={},
        promises=partial(spread, name, field),
        argument=partial(_number_of_devices, name, field, fixed),
        example="2",
        numbered=True,
    )


def _offload(place: str, summary: str) -> Part:
    name = f"offload-{place}"
    promises = (offloaded(name, place),)
    return Part(
        name=name,
        kind="parallel",
        summary=summary,
        fields={"offload": place},
        promises=lambda _plan: promises,
    )


PARTS = (
    _numbered(
        "tp",
        "tensor parallel, carried out by the engine's library: each layer's matrices are cut over "
        "N devices, by the model's own plan",
        tp_by="library",
    ),
    _numbered(
        "own-tp",
        "tensor parallel, carried out by pytest-llmperf, which nobody deploys: for models that "
        "have no plan or no checkpoint",
        field="tp",
        tp_by="own",
    ),
    _numbered(
        "fsdp", "FSDP2: N devices hold a part of each layer, and gather a layer while it is used"
    ),
    _numbered(
        "own-pp",
        "pipeline parallel, carried out by pytest-llmperf, which nobody deploys: N devices hold "
        "consecutive layers",
        field="pp",
    ),
    _numbered("dp", "data parallel: N devices hold the whole model and divide the batch"),
    _offload("cpu", "weights wait in the host's memory and go to the device layer by layer"),
    _offload("disk", "weights wait on disk and are read layer by layer"),
)
