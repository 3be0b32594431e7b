"""What the cluster's driver uses of Ray, without a cluster.

Each actor is an object in the driver's own process. `FAKE_RAY` is JSON:
`{"nodes": [[CPUs, GPUs], …]}`, and "busy" where somebody else holds everything. Without it, no
cluster runs.
It names itself in versions, so that nothing measured with it can be taken for a run on Ray.
"""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

__version__ = "0+fake"

exceptions = SimpleNamespace(RayError=type("RayError", (Exception,), {}))
_state: dict[str, Any] = {}


def init(*, address: str, **_options: object) -> None:
    if "FAKE_RAY" not in os.environ:
        raise ConnectionError(
            f"Could not find any running Ray instance at {address}. "
            "Please specify the one to connect to."
        )
    _state.update(json.loads(os.environ["FAKE_RAY"]))


def shutdown() -> None:
    _state.clear()


def nodes() -> list[dict[str, Any]]:
    return [
        {
            "NodeID": f"node{i}",
            "Alive": True,
            "NodeManagerAddress": "127.0.0.1",
            "NodeManagerHostname": f"host{i}",
            "Resources": {"CPU": float(cpus), "GPU": float(gpus)},
        }
        for i, (cpus, gpus) in enumerate(_state["nodes"])
    ]


def available_resources() -> dict[str, float]:
    return {} if _state.get("busy") else {"CPU": sum(cpus for cpus, _ in _state["nodes"])}


class _Method:
    def __init__(self, bound: Any) -> None:
        self._bound = bound

    def remote(self, *arguments: object) -> Future[Any]:
        """Run in a thread of its own, as Ray does in another process."""
        done: Future[Any] = Future()

        def run() -> None:
            try:
                done.set_result(self._bound(*arguments))
            # The boundary of the process: all errors travel.
            except Exception as error:  # noqa: BLE001
                done.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return done


class _Actor:
    def __init__(self, instance: object) -> None:
        self._instance = instance

    def __getattr__(self, name: str) -> _Method:
        return _Method(getattr(self._instance, name))


class _Remote:
    def __init__(self, made: Any) -> None:
        self._made = made

    def options(self, **_options: object) -> _Remote:
        return self

    def remote(self, *arguments: object) -> Any:
        return (
            _Actor(self._made(*arguments))
            if isinstance(self._made, type)
            else _Method(self._made).remote(*arguments)
        )


def remote(made: Any) -> _Remote:
    return _Remote(made)


def get(found: Any, timeout: float | None = None) -> Any:
    return (
        [each.result(timeout) for each in found]
        if isinstance(found, list)
        else found.result(timeout)
    )


def kill(_actor: _Actor) -> None:
    """The driver has ended what ran in it."""


def reserve(bundles: list[dict[str, int]]) -> dict[int, str]:
    """Bundles by node, in turn over the nodes that have room."""
    room = {
        f"node{i}": {"CPU": cpus, "GPU": gpus} for i, (cpus, gpus) in enumerate(_state["nodes"])
    }
    placed = {}
    for index, bundle in enumerate(bundles):
        able = [
            node
            for node, free in room.items()
            if all(free[name] >= n for name, n in bundle.items())
        ]
        node = max(able, key=lambda each: room[each]["CPU"])
        room[node] = {name: free - bundle.get(name, 0) for name, free in room[node].items()}
        placed[index] = node
    return placed


def busy() -> bool:
    return bool(_state.get("busy"))
