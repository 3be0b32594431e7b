"""In which dtype a model multiplies its weights, module by module."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from pytest_llmperf.core.effective import ComputeGroup
from pytest_llmperf.engines.transformers.observed.calls import Product
from pytest_llmperf.engines.transformers.observed.groups import is_declared_float32


class _Kind(NamedTuple):
    """What the modules of one ComputeGroup share."""

    dtype: str
    output: str
    are_linear: bool
    declared: bool


def compute_groups(model: Any, products: Iterable[Product]) -> tuple[ComputeGroup, ...]:
    """Return the products by dtype, those with most weights first.

    A layer that gives out another dtype than it computed in is a kind of its own.
    """
    groups: dict[_Kind, list[Product]] = defaultdict(list)
    for product in products:
        declared = product.dtype == "float32" and is_declared_float32(model, product.module)
        kind = _Kind(product.dtype, product.output, product.is_linear, declared)
        groups[kind].append(product)
    total = sum(product.work for group in groups.values() for product in group)
    counted = (_group(kind, group, total) for kind, group in groups.items())
    return tuple(sorted(counted, key=lambda group: -group.share))


def most_computed(groups: Iterable[ComputeGroup]) -> str:
    """Return the dtype of most products with weights; "unknown" where none was seen."""
    shares: dict[str, float] = defaultdict(float)
    for group in groups:
        shares[group.dtype] += group.share
    return max(shares, key=lambda dtype: shares[dtype], default="unknown")


def _group(kind: _Kind, products: list[Product], total: int) -> ComputeGroup:
    return ComputeGroup(
        dtype=kind.dtype,
        output=kind.output,
        modules=len({product.module for product in products}),
        share=sum(product.work for product in products) / total if total else 0.0,
        linear=kind.are_linear,
        fixed_dtype=kind.declared,
        example=products[0].module,
    )
