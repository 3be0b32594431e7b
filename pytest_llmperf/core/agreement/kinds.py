"""Kinds of variant: what a candidate differs in from its reference, and the rule for it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from msgspec.structs import replace

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.quantization import METHODS
from pytest_llmperf.errors import UsageError, did_you_mean

KIND_OPTION = "agreement"
"""The load-plan option by which a strategy part names its kind of variant (a key of KINDS)."""

RECOVERY = 0.95
"""Share of the reference's task accuracy that a variant without a token rule is to keep.

A test may name another.
"""


class Kind(NamedTuple):
    """A row of the table.

    A `rule` of "" is no default: `give` then says what a test has to give. `source` is where the
    numbers come from.
    """

    variant: str
    rule: str
    source: str
    give: str = ""


_CLOSE = "containment: vLLM's `check_logprobs_close`, 5 log-probabilities over 32 tokens"
_FP8 = "containment: vLLM's fp8 tests, 8 log-probabilities over 4 tokens"
_NOISE = "noise: that of the dtype on this model, measured when its reference is made"
_DAMAGES = "margins chosen here; benchmarks/agreement_damages.py holds them against damages"
_DAMAGED = "30 % magnitude pruning is rejected"
_TASK = (
    "and hold its task accuracy too: "
    f"pytest_llmperf.recovery(candidate, reference) >= {RECOVERY:g}, "
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
        "containment(k=5, horizon=32)+perplexity(1.01, two_sided)+sqnr(60)+kl(1e-05)",
        f"{_CLOSE}; the rest chosen here: loops in fp32 are at 90 dB and more",
    ),
    "fp16": Kind(
        "fp16, also under autocast",
        (
            "containment(k=5, horizon=32)+perplexity(1.01, two_sided)"
            "+dtype_noise(margin=2.5, kl=0.0001, sqnr=45)+end(0.05)"
        ),
        f"{_CLOSE}; {_NOISE}; {_DAMAGES}",
    ),
    "bf16": Kind(
        "bf16, also under autocast",
        (
            "containment(k=5, horizon=32)+perplexity(1.01, two_sided)"
            "+dtype_noise(margin=2.5, kl=0.003, sqnr=30)+end(0.2)"
        ),
        f"{_CLOSE}; {_NOISE}; {_DAMAGES}",
    ),
    "parallel": Kind(
        "several devices against one, same dtype",
        (
            "containment(k=5, horizon=32)+perplexity(1.01, two_sided)"
            "+dtype_noise(margin=5, kl=0.006, sqnr=27)"
        ),
        f"{_CLOSE}; twice the noise of one device; {_DAMAGES}",
    ),
    "assisted": Kind(
        "assisted decoding against plain, same 16-bit dtype",
        (
            "containment(k=5, horizon=32)+perplexity(1.01, two_sided)"
            "+dtype_noise(margin=5, kl=0.006, sqnr=27)"
        ),
        f"{_CLOSE}; near ties flip with the number of tokens in a step; {_DAMAGES}",
    ),
    "adapter-merged": Kind(
        "adapter merged against unmerged, 16-bit",
        (
            "containment(k=5, horizon=32)+perplexity(1.01, two_sided)"
            "+dtype_noise(margin=5, kl=0.006, sqnr=27)"
        ),
        f"{_CLOSE}; the sum is rounded once more than the two products; {_DAMAGES}",
    ),
    "kv-8-bit": Kind(
        "8-bit KV cache",
        "containment(k=8, horizon=4)+perplexity(1.03)+sqnr(15)",
        f"{_FP8}; the rest chosen here, as of 8-bit weights",
    ),
    "8-bit": Kind(
        "fp8, 8-bit weights or weights and activations",
        "containment(k=8, horizon=4)+perplexity(1.03)+sqnr(18)",
        f"{_FP8}; int8 of the built-in model has 20 dB, and {_DAMAGED}",
    ),
    "4-bit": Kind(
        "4-bit weights",
        "perplexity(2)+kl(0.8)+sqnr(6)",
        "chosen here: nf4 and fp4 of the built-in model have 1.4 and 1.8, 0.33 and 0.55 nats, "
        "10 and 7 dB; a large model is better, and its test gives smaller limits",
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
"""Kind of variant -> rule, the coarser kinds below.

A variant that is of several kinds takes the rule of the lowest.
"""

DEFAULT_RULES: dict[str, str] = {name: kind.rule for name, kind in KINDS.items()}
"""Kind of variant -> the text of its rule, "" where the limits are the test's own budget."""

QUANTIZATION_KINDS: dict[str, str] = {
    name: f"{method.bits}-bit" for name, method in METHODS.items()
}
"""Name of a quantization part -> kind.

One that is not here (a checkpoint's own scheme) counts as the coarsest, 4-bit.
"""

_DTYPE_KINDS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_COARSEST_LAST = tuple(KINDS)
_EIGHT_BIT_CACHES = frozenset({"int8", "fp8"})
_PLACEMENT = ("ranks", "tp", "tp_by", "fsdp", "pp", "dp", "offload")


def kind_of(candidate: LoadPlan, reference: LoadPlan) -> str:
    """Return a key of KINDS: the coarsest of what the two plans differ in.

    Autocast counts by the dtype it computes in. A dtype that the plan leaves to the checkpoint
    ("auto") may be any, and takes the rule of the coarsest. Two dtypes take the rule of the
    coarser. Raises UsageError for an unknown kind option.
    """
    if candidate == reference:
        return "same"
    option = candidate.option(KIND_OPTION)
    if option is not None:
        return _known_kind(option)
    dtype = _coarsest(map(_dtype_kind, (candidate, reference)))
    return _coarsest(_kinds(candidate, reference, dtype) or (dtype,))


def _known_kind(kind: object) -> str:
    if kind not in KINDS:
        near = did_you_mean(str(kind), KINDS, otherwise=f"Kinds: {', '.join(KINDS)}.")
        raise UsageError(f"kind of variant {kind!r} has no rule.{near}")
    return str(kind)


def _coarsest(kinds: Iterable[str]) -> str:
    return max(kinds, key=_COARSEST_LAST.index)


def _kinds(candidate: LoadPlan, reference: LoadPlan, dtype: str) -> tuple[str, ...]:
    """Return the kind of each difference.

    Fields that both share are none: nf4 against nf4 with another cache differs in the cache.
    """
    return (
        *_weight_kinds(candidate, reference, dtype),
        *_cache_kinds(candidate, reference),
        *_placement_kinds(candidate, reference, dtype),
        *((dtype,) if _differ_otherwise(candidate, reference) else ()),
    )


def _weight_kinds(candidate: LoadPlan, reference: LoadPlan, dtype: str) -> Iterator[str]:
    same_adapters = candidate.adapters == reference.adapters
    merged = same_adapters and candidate.merge_adapters != reference.merge_adapters
    if candidate.pruning != reference.pruning:
        yield "pruned"
    if not same_adapters:
        yield "adapter"
    # Merging into quantized weights rounds them again.
    if candidate.quantization != reference.quantization or merged:
        yield from _quantization_kinds(candidate, reference)
    if merged:
        yield "adapter-merged-fp32" if dtype == "fp32" else "adapter-merged"


def _quantization_kinds(*plans: LoadPlan) -> Iterator[str]:
    for plan in plans:
        if plan.quantization is not None:
            yield _quantization_kind(plan.quantization)


def _cache_kinds(candidate: LoadPlan, reference: LoadPlan) -> Iterator[str]:
    caches = {candidate.cache, reference.cache}
    if len(caches) > 1 and caches & _EIGHT_BIT_CACHES:
        yield "kv-8-bit"


def _placement_kinds(candidate: LoadPlan, reference: LoadPlan, dtype: str) -> Iterator[str]:
    """Yield how tokens are proposed and over what the model is spread, for plans of one dtype."""
    if _dtype_kind(candidate) != _dtype_kind(reference):
        return
    if candidate.assist != reference.assist:
        yield "assisted-fp32" if dtype == "fp32" else "assisted"
    if candidate.ranks != reference.ranks or candidate.offload != reference.offload:
        yield "parallel"


def _differ_otherwise(candidate: LoadPlan, reference: LoadPlan) -> bool:
    """Whether they differ in more than the proposal of tokens, adapters' place, and ranks."""
    alike = replace(
        candidate,
        strategy=reference.strategy,
        assist=reference.assist,
        merge_adapters=reference.merge_adapters,
        **{name: getattr(reference, name) for name in _PLACEMENT},
    )
    return alike != reference


def _dtype_kind(plan: LoadPlan) -> str:
    return _DTYPE_KINDS.get(plan.autocast_dtype or plan.weights_dtype, "bf16")


def _quantization_kind(text: str) -> str:
    return QUANTIZATION_KINDS.get(text.partition(":")[0], "4-bit")
