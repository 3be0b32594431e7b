"""Which model stored points are of, where a series holds several. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar


class _OfModel(Protocol):
    """A point or a record."""

    @property
    def session_id(self) -> str:
        """The session that measured it."""

    @property
    def model(self) -> str:
        """The name of its model."""


OfModel = TypeVar("OfModel", bound=_OfModel)


def are_several(points: Iterable[_OfModel]) -> bool:
    """Tell whether one session measured several models of the series.

    Models of equal weights share a series. Where no session measured two of them, their names do
    not matter, as where a folder was renamed.
    """
    models: dict[str, str] = {}
    return any(models.setdefault(one.session_id, one.model) != one.model for one in points)


def by_model(points: Sequence[OfModel]) -> dict[str, list[OfModel]]:
    """Return the points of each model, in their order; all under "" where they are not told apart.

    Without points it is empty.
    """
    if not are_several(points):
        return {"": list(points)} if points else {}
    models: dict[str, list[OfModel]] = {}
    for point in points:
        models.setdefault(point.model, []).append(point)
    return models


def of_model(points: Sequence[OfModel], model: str) -> list[OfModel]:
    """Return the points of this model, or all of them where models are not told apart."""
    models = by_model(points)
    return models.get("", []) or models.get(model, [])
