"""Named, and not looked at: the fake places bundles itself."""

from __future__ import annotations


class PlacementGroupSchedulingStrategy:
    def __init__(self, group: object, placement_group_bundle_index: int) -> None:
        self.group, self.index = group, placement_group_bundle_index


class NodeAffinitySchedulingStrategy:
    def __init__(self, node: str, *, soft: bool) -> None:
        self.node, self.soft = node, soft
