"""Starts the worker processes of one model, on this host or on a cluster's."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.devices.held import Gpus
from pytest_llmperf.settings.settings import Settings
from pytest_llmperf.workers.pool import Channel, worker_logs

if TYPE_CHECKING:
    from pytest_llmperf.cluster.cluster import Cluster
    from pytest_llmperf.workers.group import WorkerGroup


def start_worker(
    plan: LoadPlan, settings: Settings, gpus: Gpus, cluster: Cluster | None
) -> Channel:
    """Start one process a rank. Raises WorkerError where they do not start."""
    # Only when a model is loaded.
    from pytest_llmperf.workers.ranks import Ranks  # noqa: PLC0415

    python = settings.pythons.get(plan.engine, sys.executable)
    group: WorkerGroup
    if cluster is not None:
        group = cluster.start(plan, python)
    else:
        group = _start_here(plan, python, settings, gpus)
    return group if plan.ranks == 1 else Ranks(group, plan)


def _start_here(plan: LoadPlan, python: str, settings: Settings, gpus: Gpus) -> WorkerGroup:
    # Sockets and processes, only when a model is loaded.
    from pytest_llmperf.workers.cores import worker_environment  # noqa: PLC0415
    from pytest_llmperf.workers.group import WorkerGroup  # noqa: PLC0415

    return WorkerGroup.start(
        ranks=plan.ranks,
        python=python,
        log_dir=worker_logs(settings.root),
        env=worker_environment(gpus, plan),
        name=f"{plan.engine}-{plan.model.name}-{plan.strategy}",
    )
