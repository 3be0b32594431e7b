"""What a plan's ranks reserve of a cluster's hosts, or why they cannot. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pytest_llmperf.cluster.messages import Bundle, Node
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.errors import UsageError

_MANY = 2**20


def bundles(plan: LoadPlan, nodes: Sequence[Node], cluster: str) -> tuple[Bundle, ...]:
    """Return one bundle for each rank of the plan.

    The bundles are equal: the ranks of a model wait for the slowest.

    On GPUs a bundle is one GPU with its host's share of CPUs. On CPUs it is the largest number of
    CPUs that each rank can have, so that a single rank has the largest host alone.

    Raises:
        UsageError: the cluster does not have as many, whoever holds them.
    """
    on_gpus = plan.device.startswith("cuda")
    size = _cpus_beside_a_gpu(nodes) if on_gpus else _cpus_of_a_rank(nodes, plan.ranks)
    if size is None or (on_gpus and sum(int(node.gpus) for node in nodes) < plan.ranks):
        raise UsageError(_too_few(plan, nodes, cluster))
    return (Bundle(cpus=size, gpus=int(on_gpus)),) * plan.ranks


def together(plan: LoadPlan) -> bool:
    """Whether the ranks share a host where they can.

    GPUs talk faster there; ranks on CPUs take cores from each other.
    """
    return plan.device.startswith("cuda")


def hosts(equal: Sequence[Bundle], nodes: Sequence[Node], *, close: bool) -> tuple[Node, ...]:
    """Return the hosts that these equal bundles are on while nobody else holds any.

    `close` puts a bundle beside others where it can, else on the emptiest host.
    """
    room = {node.id: _room(node, equal[0]) for node in nodes}
    used: Counter[str] = Counter()
    sign = 1 if close else -1
    for _ in equal:
        able = [node for node in room if room[node] > used[node]]
        if not able:
            break
        best = max(able, key=lambda node: (sign * used[node], room[node]))
        used[best] += 1
    return tuple(node for node in nodes if used[node.id])


def described(nodes: Sequence[Node]) -> str:
    """Return the cluster's hosts in words, with what Ray lends of each."""
    texts = [f"{node.name} ({node.address}): {_lent(node)}" for node in nodes]
    return "; ".join(texts) or "no host that is alive"


def _lent(node: Node) -> str:
    return f"{_count(int(node.cpus), 'CPU')}, {_count(int(node.gpus), 'GPU')}"


def _room(node: Node, bundle: Bundle) -> int:
    """Return how many such bundles a host has room for."""
    by_cpus = int(node.cpus) // bundle.cpus if bundle.cpus else _MANY
    return min(by_cpus, int(node.gpus) // bundle.gpus) if bundle.gpus else by_cpus


def _cpus_beside_a_gpu(nodes: Sequence[Node]) -> int | None:
    return min((int(node.cpus) // int(node.gpus) for node in nodes if node.gpus >= 1), default=None)


def _cpus_of_a_rank(nodes: Sequence[Node], ranks: int) -> int | None:
    sizes = range(max((int(node.cpus) for node in nodes), default=0), 0, -1)
    return next(
        (size for size in sizes if sum(int(node.cpus) // size for node in nodes) >= ranks), None
    )


def _too_few(plan: LoadPlan, nodes: Sequence[Node], cluster: str) -> str:
    kind, field = ("GPU", "gpus") if plan.device.startswith("cuda") else ("CPU", "cpus")
    total = sum(int(getattr(node, field)) for node in nodes)
    fewer = f"Take a strategy of at most {_count(total, 'rank')}, or add hosts"
    advice = fewer if total else "Add hosts that lend some"
    return (
        f"strategy {plan.strategy!r} has {_count(plan.ranks, 'rank')}, each of which needs a "
        f"{kind}; --llmperf-cluster={cluster!r} lends {_count(total, kind)} ({described(nodes)}). "
        f"{advice} ('ray start --address=… --num-{field}=N')."
    )


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
