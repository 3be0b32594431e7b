"""Chooses where a session loads its models: nobody else asks whether a cluster is named."""

from __future__ import annotations

from collections.abc import Callable

from pytest_llmperf.settings.settings import Settings
from pytest_llmperf.workers.place import Place
from pytest_llmperf.workers.pool import worker_logs
from pytest_llmperf.workers.this_host import ThisHost


def place_of_models(
    settings: Settings, host: ThisHost, progress: Callable[[str, str, float | None], None]
) -> Place:
    """Return the cluster of `--llmperf-cluster`, to which nothing is said yet, or this host."""
    if not settings.cluster:
        return host
    from pytest_llmperf.cluster.cluster import Cluster  # noqa: PLC0415 - only where one is named

    return Cluster(
        settings.cluster,
        gpus=settings.gpus,
        wait_s=settings.wait_s,
        log_dir=worker_logs(settings.root),
        on_wait=lambda what: progress("waiting for the cluster", what, None),
    )
