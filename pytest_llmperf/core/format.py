"""Numbers as text: significant digits, decimal prefixes, intervals.

The only place where units are converted. Pure.
"""

from __future__ import annotations

import math

MISSING = "–"  # noqa: RUF001  # the dash that stands for an empty cell
NOT_MEASURABLE = "n/m"

_TIME = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_SIZE = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
_ENERGY = ((1e3, "kJ"), (1.0, "J"), (1e-3, "mJ"))
_SCALES = {"s": _TIME, "B": _SIZE, "bytes": _SIZE, "J": _ENERGY}
_FRACTIONS = frozenset({"1", "fraction", "share"})
_RATIOS = frozenset({"x", "ratio"})
_HUGE = 1e7
_TINY = 1e-4
_SKEW = 1.5  # a side this much longer than the other: one "±" would hide where the mass lies


def format_number(value: float, digits: int = 3) -> str:
    """`value` with `digits` significant digits.

    Whole above 10**digits, exponent form beyond 1e7 and below 1e-4.
    """
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    if abs(value) >= _HUGE or abs(value) < _TINY:
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.{max(0, digits - 1 - int(exponent))}f}"


def format_value(value: float, unit: str, digits: int = 3) -> str:
    """A number and its unit, prefixed where the unit takes prefixes: `format_value(0.0831, "s")` is "83.1 ms".

    Shares ("1") are shown in %, ratios ("x") as "1.08x", sizes in decimal units. A unit that is not known is appended.
    """
    if unit in _FRACTIONS:
        return format_percent(value, digits)
    if unit in _RATIOS:
        return f"{format_number(value, digits)}x"
    scale, name = _scale(value, unit, digits)
    text = f"{value:.0f}" if name == "B" else format_number(value / scale, digits)
    return f"{text} {name}" if name else text


def format_percent(share: float, digits: int = 3) -> str:
    """A share (0 to 1) in %. What is below 1 is never rounded up to "100 %"."""
    texts = (format_number(100 * share, n) for n in range(digits, digits + 3))
    # Per cent.
    text = next((t for t in texts if share >= 1 or float(t) < 100), ">99.9")  # noqa: PLR2004
    return f"{text} %"


def format_interval(value: float, low: float | None, high: float | None, unit: str = "") -> str:
    """The interval of `value`: "±1.1 %" of the value, or "[low, high] unit" where it is lopsided.

    "" without an interval.
    """
    if low is None or high is None:
        return ""
    below, above = value - low, high - value
    lopsided = (
        max(below, above) > _SKEW * min(below, above)
        and _percent_of(value, max(below, above)) >= 0.1  # noqa: PLR2004
    )
    if value <= 0 or lopsided or not all(map(math.isfinite, (value, low, high))):
        return _bracket(low, high, unit)
    return f"±{format_number(_percent_of(value, max(below, above, 0.0)), 2)} %"


def format_estimate(value: float, low: float | None, high: float | None, unit: str) -> str:
    """Value, unit and interval: "14.2 tok/s ±1.1 %"."""
    return f"{format_value(value, unit)} {format_interval(value, low, high, unit)}".rstrip()


def format_duration(seconds: float) -> str:
    """A span for people: "8 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if seconds < 1:
        return format_value(seconds, "s", 2) if seconds > 0 else "0 s"
    if whole < 120:  # noqa: PLR2004  # below two minutes, seconds read better
        return f"{whole} s"
    if whole < 7200:  # noqa: PLR2004  # below two hours, minutes and seconds
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def scale_of(value: float, unit: str) -> tuple[float, str]:
    """What one of the unit is in which a value of this size reads best, and its name: an axis is in one unit."""
    if unit in _FRACTIONS:
        return 0.01, "%"
    return (1.0, "x") if unit in _RATIOS else _scale(value, unit, 3)


def _scale(value: float, unit: str, digits: int) -> tuple[float, str]:
    """The largest prefix that leaves at least 1 after rounding, else the smallest."""
    scales = _SCALES.get(unit)
    if scales is None or value == 0 or not math.isfinite(value):
        return 1.0, unit
    rounded = abs(float(f"{value:.{digits - 1}e}"))
    return next((row for row in scales if rounded >= row[0]), scales[-1])


def _bracket(low: float, high: float, unit: str) -> str:
    """Both ends in one unit, that of the larger.

    Without a unit the reader has it from the value beside it.
    """
    if unit in _FRACTIONS:
        return f"[{format_number(100 * low)}, {format_number(100 * high)}] %"
    largest = max(low, high, key=abs)
    scale, name = _scale(largest, unit, 3)
    text = f"[{format_number(low / scale)}, {format_number(high / scale)}]"
    if unit in _RATIOS:
        return f"{text}x"
    return f"{text} {name}" if name else text


def _percent_of(value: float, part: float) -> float:
    return 100 * part / abs(value) if value else math.inf
