"""The highest rate at which a server keeps its SLO: doubling until it does not, then halving the interval. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

from pytest_llmperf.errors import UsageError

MAX_DOUBLINGS = 12


class Probe(Struct, frozen=True, kw_only=True):
    """One load that was tried.

    `kept`: the asked share of its requests met the SLO, and the server kept up; else `why` not.
    """

    rate: float
    attainment: float
    kept: bool
    why: str = ""


class RateSearch(Struct, frozen=True, kw_only=True):
    """The outcome of a search: `highest` is the highest rate that was seen to be kept (requests a second), or None.

    `lowest_broken` is the lowest one that was not, or None if the search ended before one was found.
    """

    probes: tuple[Probe, ...]

    @property
    def highest(self) -> float | None:
        """A rate above one that broke is not believed: chance let it pass."""
        broken = self.lowest_broken
        return max(
            (p.rate for p in self.probes if p.kept and (broken is None or p.rate < broken)),
            default=None,
        )

    @property
    def lowest_broken(self) -> float | None:
        """The lowest rate that was not kept."""
        return min((p.rate for p in self.probes if not p.kept), default=None)

    def __str__(self) -> str:
        """For example: 'highest rate within the SLO: 5.66/s (8/s is not: …), 4 loads'."""
        broken = min((p for p in self.probes if not p.kept), key=lambda p: p.rate, default=None)
        found = "none that was tried" if self.highest is None else f"{self.highest:.3g}/s"
        limit = (
            f" ({broken.rate:.3g}/s is not: {broken.why})" if broken else " (no limit was found)"
        )
        return f"highest rate within the SLO: {found}{limit}, {len(self.probes)} loads"


def next_rate(probes: Sequence[Probe], *, first: float, within: float) -> float | None:
    """The rate to try next, or None when the search is over.

    Doubles from `first` while the rate is kept and halves while it is not, each at most twelve
    times; between a kept and a broken rate it takes their geometric mean, until they are within a
    factor of 1 + `within`.
    """
    if not probes:
        return first
    search = RateSearch(probes=tuple(probes))
    low, high = search.highest, search.lowest_broken
    if len(probes) > 2 * MAX_DOUBLINGS:
        return None
    if high is None:
        return max(p.rate for p in probes) * 2 if len(probes) <= MAX_DOUBLINGS else None
    if low is None:
        return high / 2 if len(probes) <= MAX_DOUBLINGS else None
    return None if high <= low * (1 + within) else math.sqrt(low * high)


def check(first: float, attainment: float, within: float) -> None:
    """Raise UsageError for what cannot be searched for."""
    numbers = {
        "start": (first, math.inf),
        "attainment": (attainment, 1.0),
        "within": (within, math.inf),
    }
    for name, (value, most) in numbers.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 < value <= most
            or math.isinf(value)
        ):
            limit = "" if math.isinf(most) else f" and at most {most:g}"
            raise UsageError(f"highest_rate({name}={value!r}): a number above 0{limit} is needed.")
