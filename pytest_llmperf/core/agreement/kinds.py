"""Kinds of variant: what a candidate differs in from its reference, and the agreement rule that goes with it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from msgspec.structs import replace

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.errors import UsageError, did_you_mean

KIND_OPTION = "agreement"
"""The load-plan option by which a strategy part names its kind of variant (a key of KINDS)."""

RECOVERY = 0.95
"""Share of the reference's task accuracy that a variant without a token rule is to keep, where its test names no other."""


class Kind(NamedTuple):
    """A row of the table. `rule` "" has no default: `give` then says what a test has to give.

    `source` is of the numbers.
    """

    variant: str
    rule: str
    source: str
    give: str = ""


_CLOSE = "containment: vLLM's `check_logprobs_close`, 5 log-probabilities over 32 tokens"
_FP8 = "containment: vLLM's fp8 tests, 8 log-probabilities over 4 tokens"
_SCALED = "a matrix scaled by 1.05 is rejected"
_DAMAGED = "30 % magnitude pruning is rejected"
_TASK = (
    f"and hold its task accuracy too: pytest_llmperf.recovery(candidate, reference) >= {RECOVERY:g}, "
    "over as many items as pytest_llmperf.accuracy_gate asks for"
)
_PERPLEXITY = f"Name one, for example agreement(baseline, rule='perplexity(1.10)'), {_TASK}."

KINDS: dict[str, Kind] = {
    "same": Kind("the same plan, loaded or run again", "exact", "greedy decoding has one answer"),
    "assisted-fp32": Kind(
        "assisted decoding against plain, both fp32",
        "exact",
        "assistance proposes tokens, the model's own greedy choice decides",
    ),
    "adapter-merged-fp32": Kind(
        "adapter merged against unmerged, fp32",
        "logits(0.001)",
        "the same sum in another order; chosen here",
    ),
    "fp32": Kind(
        "fp32 with another cache, loop or attention",
        "containment(k=5, horizon=32)+perplexity(1.01)+sqnr(40)",
        f"{_CLOSE}; the rest chosen here: {_SCALED}",
    ),
    "fp16": Kind(
        "fp16, also under autocast",
        "containment(k=5, horizon=32)+perplexity(1.01)+sqnr(40)",
        f"{_CLOSE}; the rest chosen here: {_SCALED}",
    ),
    "bf16": Kind(
        "bf16, also under autocast",
        "containment(k=5, horizon=32)+perplexity(1.01)+sqnr(20)",
        f"{_CLOSE}; the rest chosen here: {_DAMAGED}",
    ),
    "parallel": Kind(
        "several devices against one, same dtype",
        "containment(k=5, horizon=32)+perplexity(1.01)",
        f"{_CLOSE}; perplexity chosen here",
    ),
    "assisted": Kind(
        "assisted decoding against plain, same 16-bit dtype",
        "containment(k=5, horizon=32)",
        f"{_CLOSE}; near ties flip with the number of tokens in a step",
    ),
    "adapter-merged": Kind(
        "adapter merged against unmerged, 16-bit", "containment(k=5, horizon=32)", _CLOSE
    ),
    "kv-8-bit": Kind(
        "8-bit KV cache",
        "containment(k=8, horizon=4)",
        f"{_FP8}; teacher-forced passes keep no cache, so perplexity would say nothing of it",
    ),
    "8-bit": Kind(
        "fp8, 8-bit weights or weights and activations",
        "containment(k=8, horizon=4)+perplexity(1.03)+sqnr(20)",
        f"{_FP8}; the rest chosen here: {_DAMAGED}",
    ),
    "4-bit": Kind(
        "4-bit weights",
        "",
        f"perplexity is the test's budget; recovery >= {RECOVERY:g} chosen here",
        _PERPLEXITY,
    ),
    "pruned": Kind(
        "pruned weights", "", "perplexity and recovery are the test's budget", _PERPLEXITY
    ),
    "adapter": Kind(
        "an adapter against another, or against none",
        "",
        "it is trained to answer otherwise",
        f"Compare it with the same adapter unmerged or in fp32, {_TASK}.",
    ),
}
"""Kind of variant -> rule, the coarser kinds below: a variant that is of several kinds takes the rule of the lowest."""

DEFAULT_RULES: dict[str, str] = {name: kind.rule for name, kind in KINDS.items()}
"""Kind of variant -> the text of its rule; "" has no default: its limits are the test's own budget.
"""

QUANTIZATION_KINDS: dict[str, str] = {
    **dict.fromkeys(("int8", "int8wo", "fp8", "w8a8"), "8-bit"),
    **dict.fromkeys(("nf4", "fp4", "int4wo", "gptq", "awq", "w4a16"), "4-bit"),
}
"""Name of a quantization part -> kind.

One that is not here (a checkpoint's own scheme) counts as the coarsest, 4-bit.
"""

_DTYPE_KINDS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_COARSEST_LAST = tuple(KINDS)
_EIGHT_BIT_CACHES = ("int8", "fp8")


def kind_of(candidate: LoadPlan, reference: LoadPlan) -> str:
    """A key of KINDS: the coarsest of what the two plans differ in.

    Autocast counts by the dtype it computes in. A dtype that the plan leaves to the checkpoint
    ("auto") may be any, and takes the rule of the coarsest. Two dtypes take the rule of the
    coarser. Raises UsageError for an unknown kind option.
    """
    if candidate == reference:
        return "same"
    named = candidate.option(KIND_OPTION)
    if named is not None:
        if named not in KINDS:
            raise UsageError(
                f"kind of variant {named!r} has no rule.{did_you_mean(str(named), KINDS)} Kinds: {', '.join(KINDS)}.",
            )
        return str(named)
    dtype = max((_dtype_kind(plan) for plan in (candidate, reference)), key=_COARSEST_LAST.index)
    kinds = [*_kinds(candidate, reference, dtype)] or [dtype]
    return max(kinds, key=_COARSEST_LAST.index)


def _kinds(candidate: LoadPlan, reference: LoadPlan, dtype: str) -> Iterator[str]:
    """The kind of each difference.

    Fields that both share are none: nf4 against nf4 with another cache differs in the cache.
    """
    merged = (
        candidate.adapters == reference.adapters
        and candidate.merge_adapters != reference.merge_adapters
    )
    same_dtype = _dtype_kind(candidate) == _dtype_kind(reference)
    if candidate.pruning != reference.pruning:
        yield "pruned"
    if candidate.adapters != reference.adapters:
        yield "adapter"
    # Merging into quantized weights rounds them again.
    if candidate.quantization != reference.quantization or merged:
        yield from (
            _quantization_kind(plan.quantization)
            for plan in (candidate, reference)
            if plan.quantization is not None
        )
    if candidate.cache != reference.cache and {candidate.cache, reference.cache} & set(
        _EIGHT_BIT_CACHES
    ):
        yield "kv-8-bit"
    if merged:
        yield "adapter-merged-fp32" if dtype == "fp32" else "adapter-merged"
    if candidate.assist != reference.assist and same_dtype:
        yield "assisted-fp32" if dtype == "fp32" else "assisted"
    if (
        candidate.ranks != reference.ranks or candidate.offload != reference.offload
    ) and same_dtype:
        yield "parallel"
    if _differ_otherwise(candidate, reference):
        yield dtype


def _differ_otherwise(candidate: LoadPlan, reference: LoadPlan) -> bool:
    """Whether they differ in more than how tokens are proposed, where adapters lie, and over how many ranks they are spread."""
    alike = replace(
        candidate,
        strategy=reference.strategy,
        assist=reference.assist,
        merge_adapters=reference.merge_adapters,
        **{
            name: getattr(reference, name)
            for name in ("ranks", "tp", "fsdp", "pp", "dp", "offload")
        },
    )
    return alike != reference


def _dtype_kind(plan: LoadPlan) -> str:
    return _DTYPE_KINDS.get(plan.autocast_dtype or plan.weights_dtype, "bf16")


def _quantization_kind(text: str) -> str:
    return QUANTIZATION_KINDS.get(text.partition(":")[0], "4-bit")
