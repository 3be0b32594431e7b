"""Where along its depth a candidate leaves the reference's noise floor. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property

from msgspec import Struct

MARGIN = 2.0
"""How often the noise floor an output may differ: rounding in another order makes 1.4 of it."""

SMALLEST = {"float32": 1e-5, "float16": 5e-4, "bfloat16": 4e-3}
"""What is called noise whatever the floor is: sums in another order, and one step of the dtype."""


class ModuleError(Struct, frozen=True, array_like=True):
    """How far a module's output is from the reference's: norm of the difference / that of it."""

    name: str
    error: float


class LayerFigure(Struct, frozen=True, kw_only=True):
    """A module's output: the candidate's error, and that of the reference in its dtype."""

    name: str
    error: float
    floor: float

    def __str__(self) -> str:
        return f"{self.name}: error {self.error:.2g}, noise floor {self.floor:.2g}"


class Layers(Struct, frozen=True, kw_only=True):
    """The outputs of a pass without a cache, layer by layer, against the reference's.

    `layers` are in the order in which they run: embedding, layers, final norm, output head.
    `inside` are the modules inside of the first layer that is out of the floor. `dtype` is what the
    candidate computes in. Where nothing could be looked at, `reason` says why.
    """

    layers: tuple[LayerFigure, ...] = ()
    inside: tuple[LayerFigure, ...] = ()
    dtype: str = ""
    reason: str = ""

    @property
    def first(self) -> LayerFigure | None:
        """The first layer whose output leaves the noise floor; None where none does."""
        return self._first_of(self.layers)

    @property
    def first_inside(self) -> LayerFigure | None:
        """The first module inside of that layer which does."""
        return self._first_of(self.inside)

    def leaves_floor(self, figure: LayerFigure) -> bool:
        """Whether an error is more than noise."""
        smallest = SMALLEST.get(self.dtype, SMALLEST["bfloat16"])
        return not figure.error <= max(MARGIN * figure.floor, smallest)

    def _first_of(self, figures: Sequence[LayerFigure]) -> LayerFigure | None:
        return next(filter(self.leaves_floor, figures), None)

    def __str__(self) -> str:
        if self.reason:
            return f"no layer was looked at: {self.reason}"
        if self.first is None:
            return (
                f"none of {len(self.layers)} layers leaves the noise floor of {self.dtype} in a "
                "pass without a cache: what differs is the loop, its cache or its batching"
            )
        inside = f"; inside of it first {self.first_inside}" if self.first_inside else ""
        return f"the first layer out of the noise floor of {self.dtype} is {self.first}{inside}"

    def lines(self) -> list[str]:
        """Return the figures along the depth for a report, with those inside of the first."""
        rows = [f"layers: {self}"]
        for figure in self.layers:
            rows.append(f"  {self._row(figure)}")
            if figure == self.first:
                rows += [f"    {self._row(module)}" for module in self.inside]
        return rows

    def _row(self, figure: LayerFigure) -> str:
        return f"{figure}{'  <- out' if self.leaves_floor(figure) else ''}"

    def summary(self) -> dict[str, object]:
        """Return plain values for a record."""
        first = self.first
        return {
            "text": str(self),
            "first": None if first is None else first.name,
            "layers": [_plain(figure) for figure in self.layers],
            "inside": [_plain(figure) for figure in self.inside],
        }


class LooksAtLayers:
    """Of an agreement: its layers are looked at when they are first asked for."""

    _look: Callable[[], Layers] | None = None

    @cached_property
    def reasons(self) -> tuple[str, ...]:
        """Why the rule does not hold."""
        return ()

    @cached_property
    def layers(self) -> Layers:
        """Where along the depth the candidate leaves the reference's noise floor.

        The reference runs for it again: not before it is asked for, or `.ok` does not hold.
        """
        if self._look is None:
            return Layers(reason="this is not the agreement of a model that can be asked again")
        return self._look()

    @property
    def where(self) -> str:
        """In which layer it begins, where the rule does not hold; empty where it does."""
        return str(self.layers) if self._look and self.reasons else ""

    def layer_lines(self) -> list[str]:
        """Return the figures of the layers for a report, where they were looked at."""
        return self.layers.lines() if "layers" in vars(self) else []


def _plain(figure: LayerFigure) -> dict[str, object]:
    return {"name": figure.name, "error": _finite(figure.error), "floor": _finite(figure.floor)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def figures(
    errors: Sequence[ModuleError], floors: Sequence[ModuleError]
) -> tuple[LayerFigure, ...]:
    """Pair the errors of modules with their floors, in the order of the floors."""
    by_name = {module.name: module.error for module in errors}
    return tuple(
        LayerFigure(name=floor.name, error=by_name[floor.name], floor=floor.error)
        for floor in floors
        if floor.name in by_name
    )
