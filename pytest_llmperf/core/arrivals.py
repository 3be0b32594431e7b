"""When the requests of an open loop are due: offsets in seconds from its start.

Pure, and equal for equal seeds.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice, takewhile

PATTERNS = ("poisson", "constant", "gamma")


def gaps_s(pattern: str, rate: float, *, burstiness: float = 1.0, seed: int = 0) -> Iterator[float]:
    """Yield endless gaps between requests, of mean 1 / rate.

    "constant" gaps are equal. "gamma" gaps have shape `burstiness` (below 1: bursts, above 1: more
    even than chance). "poisson" gaps are exponential, which is a gamma of shape 1. vLLM's `bench
    serve --burstiness` does the same.
    """
    if pattern == "constant":
        while True:
            yield 1.0 / rate
    draw = random.Random(f"arrivals|{seed}")  # noqa: S311 - a load pattern, not a secret
    shape = 1.0 if pattern == "poisson" else burstiness
    while True:
        yield draw.gammavariate(shape, 1.0 / (rate * shape))


def offsets_s(
    pattern: str,
    rate: float,
    *,
    requests: int | None,
    duration_s: float | None,
    burstiness: float = 1.0,
    seed: int = 0,
) -> tuple[float, ...]:
    """Return when each request is due: the first at 0, then one after each gap.

    There are `requests` of them, or all that are due before `duration_s`.
    """
    due = _running(gaps_s(pattern, rate, burstiness=burstiness, seed=seed))
    if duration_s is not None:
        due = takewhile(lambda offset: offset < duration_s, due)
    return tuple(due if requests is None else islice(due, requests))


def rescaled(timestamps_s: tuple[float, ...], rate: float | None) -> tuple[float, ...]:
    """Return a recorded trace from its first request on.

    With `rate`, it is stretched so that its mean rate is that.
    """
    first, span = timestamps_s[0], timestamps_s[-1] - timestamps_s[0]
    factor = 1.0
    if rate is not None and span > 0:
        factor = (len(timestamps_s) - 1) / span / rate
    return tuple((timestamp - first) * factor for timestamp in timestamps_s)


def _running(gaps: Iterator[float]) -> Iterator[float]:
    offset = 0.0
    while True:
        yield offset
        offset += next(gaps)
