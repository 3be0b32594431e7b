"""What a test needs of GPUs: its marker, or the devices of its load plans, whichever is more."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.devices.selection import GpuPool, Need, Shortfall, need_of, shortfall
from pytest_llmperf.names import GPUS_MARK


def need_of_test(item: pytest.Item, plans: Sequence[LoadPlan]) -> Need | None:
    """Return None for a test that needs no GPU. Raises UsageError for the marker's arguments."""
    marked = need_of([(mark.args, mark.kwargs) for mark in item.iter_markers(GPUS_MARK)])
    ranks = max((plan.ranks for plan in plans if _is_on_gpu(plan)), default=0)
    if marked is None:
        return Need(least=ranks, most=ranks) if ranks else None
    most = None if marked.most is None else max(marked.most, ranks)
    return msgspec.structs.replace(marked, least=max(marked.least, ranks), most=most)


def shortfall_of(need: Need, pool: GpuPool, plans: Sequence[LoadPlan]) -> Shortfall | None:
    """Return why a test cannot run with this pool; None when it can."""
    short = shortfall(need, pool)
    if short is None and plans and not any(map(_is_on_gpu, plans)):
        text = f"needs {need}, and --llmperf-device=cpu or device='cpu' keeps its models on the CPU"
        return Shortfall(needs=need.least, pool=len(pool.gpus), eligible=0, text=text)
    return short


def _is_on_gpu(plan: LoadPlan) -> bool:
    return plan.device.startswith("cuda")
