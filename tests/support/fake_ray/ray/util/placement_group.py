"""Placement groups of the fake: bundles in turn over the nodes."""

from __future__ import annotations

import ray


class _Group:
    def __init__(self, bundles: list[dict[str, int]]) -> None:
        self.bundles = bundles

    def wait(self, _timeout_s: float) -> bool:
        return not ray.busy()


def placement_group(bundles: list[dict[str, int]], strategy: str) -> _Group:
    assert strategy in {"PACK", "SPREAD"}
    return _Group(bundles)


def placement_group_table(group: _Group) -> dict[str, dict[int, str]]:
    return {"bundles_to_node_id": ray.reserve(group.bundles)}


def remove_placement_group(_group: _Group) -> None:
    pass
