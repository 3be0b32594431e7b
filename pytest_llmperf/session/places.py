"""Where a session loads its models, and whether other programs' work on this host matters there.

Nobody else asks whether a cluster is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pytest_llmperf import engines
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.settings.settings import Settings
from pytest_llmperf.workers.place import Place
from pytest_llmperf.workers.pool import worker_logs
from pytest_llmperf.workers.this_host import ThisHost, occupies_device


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


def looks_at_load(plans: Sequence[LoadPlan], settings: Settings) -> bool:
    """Whether models work on the cores of this host, so that other programs on them disturb.

    Of what a test measures in its own process, and of a server that runs by itself, nothing is
    marked either.
    """
    on_cpu = all(plan.device == "cpu" for plan in plans)
    return on_cpu and not settings.cluster and any(map(_works_here, plans))


def _works_here(plan: LoadPlan) -> bool:
    started = plan.engine in engines.TABLE and not plan.option("url")
    return started and occupies_device(plan)


def allows_load(settings: Settings) -> bool:
    """Whether a run counts although other programs worked beside it.

    Side by side with another version it does: only pairs that load hits alike are compared.
    """
    return settings.allow_load or settings.against is not None
