"""Several devices for one model: `tpN`, `fsdpN`, `ppN`, `dpN`, and weights that wait on the host or on disk."""

from __future__ import annotations

from collections.abc import Callable

from pytest_llmperf.core.effective import Effective, Promise, Shard
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.errors import UsageError
from pytest_llmperf.strategies.base import Part

TOLERANCE = 0.02
"""What a rank may hold above its analytic share of the weights: buffers, padding of uneven shards.
"""

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
"""Collectives' backend by kind of device."""


def _number(name: str) -> Callable[[str], dict[str, object]]:
    def fields(argument: str) -> dict[str, object]:
        if (
            not argument.isascii()
            or not argument.isdigit()
            or argument != str(int(argument))
            or int(argument) < 2  # noqa: PLR2004
        ):
            raise UsageError(
                f"strategy part {name + argument!r}: the number of devices is a whole number of at least 2, "
                f"for example {name + '2'!r}. On one device leave the part out.",
            )
        return {name: int(argument)}

    return fields


def spread(name: str) -> Callable[[LoadPlan], tuple[Promise, ...]]:
    """Every rank is there, on a device and a backend of its own, and holds what the plan's split gives it."""
    return lambda plan: (
        Promise(
            f"{plan.ranks} ranks take part",
            lambda e: _missing_ranks(e, plan),
            part=f"{name}{getattr(plan, name)}",
        ),
        Promise(
            "each rank has a device of its own",
            lambda e: _shared_devices(e, plan),
            part=f"{name}{getattr(plan, name)}",
        ),
        Promise(
            "each rank holds its share of the weights",
            lambda e: _wrong_bytes(e, plan),
            part=f"{name}{getattr(plan, name)}",
        ),
    )


def most_bytes(shard: Shard, plan: LoadPlan) -> float:
    """What one rank may hold: the model over its shards, and what each of these keeps whole.

    The stage of a pipeline.
    """
    cut = plan.tp * plan.fsdp
    return (1 + TOLERANCE) * (shard.stage_bytes / cut + shard.kept_bytes * (1 - 1 / cut))


def _missing_ranks(effective: Effective, plan: LoadPlan) -> str | None:
    found = [shard.rank for shard in effective.shards]
    if found == list(range(plan.ranks)) and effective.ranks == plan.ranks:
        return None
    return f"{len(found)} ranks hold a part of the model ({found}), asked for {plan.ranks}"


def _shared_devices(effective: Effective, plan: LoadPlan) -> str | None:
    kind = plan.device.partition(":")[0]
    wrong = [s for s in effective.shards if s.backend != BACKENDS.get(kind, s.backend)]
    if wrong:
        return f"collectives go through {', '.join(sorted({s.backend for s in wrong}))}, {BACKENDS[kind]} is wanted on {kind}"
    devices = [shard.device for shard in effective.shards]
    if kind != "cpu" and len(set(devices)) < len(devices):
        return f"{len(devices)} ranks share {len(set(devices))} devices: {', '.join(devices)}"
    return None


def _wrong_bytes(effective: Effective, plan: LoadPlan) -> str | None:
    """Too much on one rank, or too little on all of them together."""
    over = [shard for shard in effective.shards if shard.bytes > most_bytes(shard, plan)]
    whole = max((shard.whole_bytes for shard in effective.shards), default=0)
    held = sum(shard.bytes for shard in effective.shards)
    if not over and held >= whole * plan.dp * (1 - TOLERANCE):
        return None
    each = ", ".join(
        f"rank {s.rank} {s.bytes / 1e6:.3f} MB (at most {most_bytes(s, plan) / 1e6:.3f})"
        for s in effective.shards
    )
    return f"the ranks do not hold their shares of the {whole / 1e6:.3f} MB model: {each}"


def offloaded(name: str, place: str) -> Promise:
    """The weights lie in `place` and not on the device that computes."""

    def broken(effective: Effective) -> str | None:
        held = {
            group.device: group.bytes for group in effective.tensors if group.kind == "parameter"
        }
        waiting = effective.offloaded_bytes.get(place, 0)
        if waiting and waiting >= sum(effective.offloaded_bytes.values()) * (1 - TOLERANCE):
            return None
        return f"{waiting / 1e6:.3f} MB of weights wait in {place}; on devices: {held or 'nothing'}"

    return Promise(f"weights wait in {place}", broken, part=name)


def _numbered(name: str, summary: str) -> Part:
    return Part(
        name=name,
        kind="parallel",
        summary=summary,
        fields={},
        promises=spread(name),
        argument=_number(name),
        example="2",
        numbered=True,
    )


def _offload(place: str, summary: str) -> Part:
    name = f"offload-{place}"
    made = (offloaded(name, place),)
    return Part(
        name=name,
        kind="parallel",
        summary=summary,
        fields={"offload": place},
        promises=lambda _plan: made,
    )


PARTS = (
    _numbered(
        "tp",
        "tensor parallel: each layer's matrices are cut over N devices, by the model's own plan",
    ),
    _numbered(
        "fsdp", "FSDP2: N devices hold a part of each layer, and gather a layer while it is used"
    ),
    _numbered("pp", "pipeline parallel: N devices hold consecutive layers"),
    _numbered("dp", "data parallel: N devices hold the whole model and divide the batch"),
    _offload("cpu", "weights wait in the host's memory and go to the device layer by layer"),
    _offload("disk", "weights wait on disk and are read layer by layer"),
)
