"""Amounts as people write them on a command line: sizes, times, shares and ratios with their units.

Pure.
"""

from __future__ import annotations

import math
import re

from pytest_llmperf import units
from pytest_llmperf.errors import UsageError

_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-z%µ]*)")
_SIZES = {
    "B": 1.0,
    **{
        name: float(getattr(units, name))
        for name in ("KB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB")
    },
}
_TIMES = {"us": units.us, "µs": units.us, "ms": units.ms, "s": units.s}


def size_bytes(text: str) -> float:
    """Read the bytes of '8GB' (10^9) or '8 GiB' (2^30). Raises UsageError without a unit."""
    return _amount(text, _SIZES, "size", "8GB")


def duration_s(text: str) -> float:
    """Read the seconds of '200ms'. Raises UsageError without a unit."""
    return _amount(text, _TIMES, "time", "200ms")


def share(text: str) -> float:
    """Read a share of 0 to 1 from '0.98' or '98%'. Raises UsageError."""
    number, unit = _split(text, "a share", "0.98 or 98%")
    value = number / 100 if unit == "%" else number
    if unit not in ("", "%") or not 0 <= value <= 1:
        raise UsageError(f"{text!r} is not a share between 0 and 1, such as 0.98 or 98%.")
    return value


def ratio(text: str) -> float:
    """Read a factor from '+1%' (1.01) or '1.01'.

    Raises UsageError for one that is not positive, and for '1%' without its sign.
    """
    number, unit = _split(text, "a ratio", "+1% or 1.01")
    if unit == "%" and text.strip()[0] in "+-":
        number = 1 + number / 100
    elif unit not in ("", "x"):
        raise UsageError(f"{text!r} is not a ratio, such as +1% (one per cent more) or 1.01.")
    if number <= 0:
        raise UsageError(f"{text!r} is not a ratio above 0, such as +1% or 1.01.")
    return number


def _amount(text: str, scale: dict[str, float], kind: str, example: str) -> float:
    number, unit = _split(text, f"a {kind}", example)
    factors = {name.lower(): factor for name, factor in scale.items()}
    factor = factors.get(unit.lower())
    if factor is None or number <= 0:
        raise UsageError(
            f"{text!r} is not a {kind} above 0 with a unit, such as {example}. "
            f"Units: {', '.join(scale)}."
        )
    return number * factor


def _split(text: str, kind: str, example: str) -> tuple[float, str]:
    match = _NUMBER.fullmatch(text.strip())
    if match is None or not math.isfinite(float(match[1])):
        raise UsageError(f"{text!r} is not {kind}, such as {example}.")
    return float(match[1]), match[2]
