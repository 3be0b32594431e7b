"""What a scripted model says of itself: what its plan asks for, or the script's lies."""

from __future__ import annotations

import hashlib
import math
from typing import Any

from msgspec import Struct, structs

from pytest_llmperf.core.effective import AdapterGroup, Effective, LinearGroup, TensorGroup
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.trace import MemoryGauges, StepCost
from pytest_llmperf.engines.scripted import pruning, ranks
from pytest_llmperf.engines.scripted.options import ScriptedOptions
from pytest_llmperf.errors import UsageError, did_you_mean

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
N_LINEARS = 7
ADAPTER_RANK = 8
PROCESS_BYTES = 100_000_000
RESERVE_STEP_BYTES = 2 * 2**20
_CACHES = {
    "static": "StaticCache",
    "dynamic": "DynamicCache",
    "int8": "Cache of int8",
    "fp8": "QuantizedCache of float8_e4m3fn",
}


class Claims:
    """What a scripted model says to be in effect, in memory, and in a step.

    `plan` is the plan that it claims to follow; `using` are the adapters in force.
    """

    def __init__(self, plan: LoadPlan, options: ScriptedOptions, *, padding_side: str) -> None:
        lies = _lies(options)
        self.plan = structs.replace(plan, **_fields_of(LoadPlan, lies))
        self.using = self.plan.adapter_names[:1]
        dtype = self.plan.weights_dtype
        self.dtype = "float32" if dtype == "auto" else dtype
        self.elements = options.weights_bytes // DTYPE_BYTES["float32"] // ranks.cut(plan)
        self._options = options
        self._padding_side = padding_side
        self._overrides = _fields_of(Effective, lies)

    @property
    def weights_bytes(self) -> int:
        """Bytes of the weights on this rank, in the dtype in effect."""
        return self.elements * DTYPE_BYTES[self.dtype]

    def effective(self, *, ran: bool) -> Effective:
        """Return what is in effect; the cache and the graphs exist once the model `ran`."""
        run_facts = self._run_facts() if ran else {}
        return structs.replace(self._loaded_facts(), **run_facts | self._overrides)

    def memory(self, kv_bytes: int) -> MemoryGauges:
        """Return the gauges of a run with a KV cache of so many bytes; 0 stands for no run."""
        weights = self.weights_bytes
        peak = weights + kv_bytes + (self._options.activations_bytes if kv_bytes else 0)
        reasons = {"device": "a scripted device has no driver"}
        if not kv_bytes:
            reasons["kv_cache"] = "read outside a run"
        return MemoryGauges(
            weights=weights,
            peak=peak,
            growth=peak - weights,
            reserved=math.ceil(peak / RESERVE_STEP_BYTES) * RESERVE_STEP_BYTES,
            process=peak + PROCESS_BYTES,
            device=None,
            kv_cache=kv_bytes or None,
            reasons=reasons,
        )

    def step(self) -> StepCost:
        """Return what a decode step reads and computes."""
        return StepCost(
            weight_bytes_read=self.weights_bytes,
            kv_bytes_per_token=self._options.kv_bytes_per_token,
            flops_per_token=2.0 * self.elements,
            attention_flops_per_token_per_position=0.0,
            compute_dtype=self._compute_dtype,
        )

    @property
    def _compute_dtype(self) -> str:
        return self.plan.autocast_dtype or self.dtype

    def _loaded_facts(self) -> Effective:
        plan = self.plan
        weights: dict[str, Any] = {
            "dtype": self.dtype,
            "elements": self.elements,
            "bytes": self.weights_bytes,
        }
        tensors = TensorGroup(kind="parameter", device=plan.device, tensors=N_LINEARS, **weights)
        return Effective(
            engine="scripted",
            model_class="ScriptedModel",
            # Weights that wait elsewhere are not on the device.
            tensors=(tensors,) if plan.offload is None else (),
            linears=(LinearGroup(cls="Linear", layers=N_LINEARS, **weights),),
            compute_dtype=self._compute_dtype,
            autocast_dtype=plan.autocast_dtype,
            checkpoint_dtype="float32",
            attention=plan.attention or "sdpa",
            cache="",
            compile_mode=None,
            compiled_graphs=0,
            decode_loop="scripted",
            padding_side=self._padding_side,
            device=plan.device,
            **self._parts(),
        )

    def _parts(self) -> dict[str, Any]:
        """Return the fields of the plan's parts: ranks, offload, adapters, pruning."""
        plan, weights_bytes = self.plan, self.weights_bytes
        return {
            "ranks": plan.ranks,
            "tensor_parallel": ranks.carrier(plan),
            "shards": ranks.shards(plan, weights_bytes),
            "offloaded_bytes": {} if plan.offload is None else {plan.offload: weights_bytes},
            "adapters": tuple(name for name in self.using if name != "base"),
            "resident_adapters": _adapters(plan),
            **pruning.fields(plan, self.elements, N_LINEARS),
        }

    def _run_facts(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "cache": _CACHES[plan.cache],
            "compile_mode": plan.compile,
            "compiled_graphs": int(plan.compile is not None),
            "assistance": plan.assist or "",
            "batching": plan.batching or "static",
        }


def hash_of(*parts: object) -> str:
    """Return a short hash of the parts' texts."""
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:16]


def _adapters(plan: LoadPlan) -> tuple[AdapterGroup, ...]:
    """Return adapters of rank 8 in every layer, as their files hold them."""
    return tuple(
        AdapterGroup(
            name=name,
            rank=ADAPTER_RANK,
            layers=N_LINEARS,
            elements=0,
            tensors=2 * N_LINEARS,
            tensors_equal=2 * N_LINEARS,
            content_hash=hash_of(name),
            active=index == 0,
            merged=bool(plan.merge_adapters),
        )
        for index, name in enumerate(plan.adapter_names)
    )


def _lies(options: ScriptedOptions) -> dict[str, Any]:
    """Return the fields that the script lies about. Raises UsageError for an unknown one."""
    lies = {name: _value(text) for name, text in options.lies}
    known = {*LoadPlan.__struct_fields__, *Effective.__struct_fields__}
    for name in lies:
        if name not in known:
            raise UsageError(
                f"scripted model option lie={name!r}: not in LoadPlan or Effective."
                f"{did_you_mean(name, known)}"
            )
    dtype = lies.get("weights_dtype", "float32")
    if dtype not in DTYPE_BYTES:
        raise UsageError(
            f"scripted model option lie=weights_dtype:{dtype}: known are {', '.join(DTYPE_BYTES)}."
        )
    return lies


def _value(text: str) -> Any:
    if text == "none":
        return None
    return int(text) if text.isdecimal() else text


def _fields_of(struct: type[Struct], values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in struct.__struct_fields__}
