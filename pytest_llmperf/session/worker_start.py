"""Starts what holds one model: worker processes, or a host inside of this process."""

from __future__ import annotations

import sys

from pytest_llmperf import engines
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.settings.settings import Settings
from pytest_llmperf.workers.place import Place
from pytest_llmperf.workers.pool import Channel


def start_worker(plan: LoadPlan, settings: Settings, place: Place) -> Channel:
    """Start one process a rank, or a host in this process where that was asked for and can be.

    Raises as `Place.start`.
    """
    if settings.in_process and engines.engine(plan.engine).load_capabilities().fits_in_process(
        plan
    ):
        # A worker's code, only where the worker is this process.
        from pytest_llmperf.worker.host import Host  # noqa: PLC0415
        from pytest_llmperf.workers.in_process import InProcess  # noqa: PLC0415

        return InProcess(Host())
    # Only when a model is loaded.
    from pytest_llmperf.workers.ranks import Ranks  # noqa: PLC0415

    group = place.start(plan, settings.pythons.get(plan.engine, sys.executable))
    return group if plan.ranks == 1 else Ranks(group, plan)
