"""The highest rate at which a server keeps its SLO: doubling, then bisection. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

from pytest_llmperf.errors import UsageError

MAX_DOUBLINGS = 12


class Probe(Struct, frozen=True, kw_only=True):
    """One rate that was tried.

    `sustained`: the required share of its requests met the SLO, and the server kept up; else `why`
    not.
    """

    rate: float
    attainment: float
    sustained: bool
    why: str = ""


class RateSearch(Struct, frozen=True, kw_only=True):
    """The outcome of a search, in requests a second.

    `highest` is the highest rate that was sustained, or None. `lowest_broken` is the lowest one
    that was not, or None if the search ended before one was found.
    """

    probes: tuple[Probe, ...]

    @property
    def highest(self) -> float | None:
        """The highest rate that was sustained, below every one that broke.

        A rate above one that broke is not believed: chance let it pass.
        """
        limit = math.inf if self.lowest_broken is None else self.lowest_broken
        rates = (probe.rate for probe in self.probes if probe.sustained and probe.rate < limit)
        return max(rates, default=None)

    @property
    def lowest_broken(self) -> float | None:
        """The lowest rate that was not sustained."""
        probe = self._lowest_broken_probe()
        return None if probe is None else probe.rate

    def __str__(self) -> str:
        """For example: 'highest rate within the SLO: 5.66/s (8/s is not: …), 4 loads'."""
        highest = "none that was tried" if self.highest is None else f"{self.highest:.3g}/s"
        broken = self._lowest_broken_probe()
        limit = "no limit was found"
        if broken is not None:
            limit = f"{broken.rate:.3g}/s is not: {broken.why}"
        return f"highest rate within the SLO: {highest} ({limit}), {len(self.probes)} loads"

    def _lowest_broken_probe(self) -> Probe | None:
        broken = (probe for probe in self.probes if not probe.sustained)
        return min(broken, key=lambda probe: probe.rate, default=None)


def next_rate(probes: Sequence[Probe], *, first: float, within: float) -> float | None:
    """Return the rate to try next, or None when the search is over.

    Doubles from `first` while the rate is sustained and halves while it is not, each at most twelve
    times; between a sustained and a broken rate it takes their geometric mean, until they are
    within a factor of 1 + `within`.
    """
    if not probes:
        return first
    search = RateSearch(probes=tuple(probes))
    low, high = search.highest, search.lowest_broken
    if low is not None and high is not None:
        return _between(low, high, within) if len(probes) <= 2 * MAX_DOUBLINGS else None
    if len(probes) > MAX_DOUBLINGS:
        return None
    if high is None:
        return 2 * max(probe.rate for probe in probes)
    return high / 2


def _between(low: float, high: float, within: float) -> float | None:
    """Return the geometric mean, or None where the two are near enough."""
    return None if high <= low * (1 + within) else math.sqrt(low * high)


def check(first: float, attainment: float, within: float) -> None:
    """Raise UsageError for numbers that no rate can be searched with."""
    _require("start", first)
    _require("attainment", attainment, highest=1.0)
    _require("within", within)


def _require(name: str, value: float, *, highest: float = math.inf) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= highest or math.isinf(value):
        limit = "" if math.isinf(highest) else f" and at most {highest:g}"
        raise UsageError(f"highest_rate({name}={value!r}): a number above 0{limit} is needed.")
