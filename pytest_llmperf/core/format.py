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
_SKEW = 1.5
"""Where one side is this much longer than the other, one "±" would hide where the mass lies."""
_NEGLIGIBLE_PERCENT = 0.1
_TWO_MINUTES_S = 120
_TWO_HOURS_S = 7200


def format_number(value: float, digits: int = 3) -> str:
    """Write `value` with `digits` significant digits.

    It is a whole number above 10**digits, and in exponent form beyond 1e7 and below 1e-4.
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
    """Write a number and its unit: `format_value(0.0831, "s")` is "83.1 ms".

    Times, sizes and energies take prefixes, sizes decimal ones. Shares ("1") are shown in %, and
    ratios ("x") as "1.08x". A unit that is not known is appended.
    """
    if unit in _FRACTIONS:
        return format_percent(value, digits)
    if unit in _RATIOS:
        return f"{format_number(value, digits)}x"
    scale, name = _scale(value, unit, digits)
    text = f"{value:.0f}" if name == "B" else format_number(value / scale, digits)
    return f"{text} {name}" if name else text


def format_percent(share: float, digits: int = 3) -> str:
    """Write a share (0 to 1) in %. A share below 1 is never rounded up to "100 %"."""
    for n in range(digits, digits + 3):
        text = format_number(100 * share, n)
        if share >= 1 or float(text) < 100:  # noqa: PLR2004 - per cent
            return f"{text} %"
    return ">99.9 %"


def format_interval(value: float, low: float | None, high: float | None, unit: str = "") -> str:
    """Write the interval of `value`: "±1.1 %", or "[low, high] unit" where it is lopsided.

    "" without an interval.
    """
    if low is None or high is None:
        return ""
    finite = all(map(math.isfinite, (value, low, high)))
    if value <= 0 or not finite or _is_lopsided(value, low, high):
        return _bracket(low, high, unit)
    longer = max(value - low, high - value, 0.0)
    return f"±{format_number(_percent_of(value, longer), 2)} %"


def _is_lopsided(value: float, low: float, high: float) -> bool:
    shorter, longer = sorted((value - low, high - value))
    return longer > _SKEW * shorter and _percent_of(value, longer) >= _NEGLIGIBLE_PERCENT


def format_estimate(value: float, low: float | None, high: float | None, unit: str) -> str:
    """Write value, unit and interval: "14.2 tok/s ±1.1 %"."""
    return f"{format_value(value, unit)} {format_interval(value, low, high, unit)}".rstrip()


def format_duration(seconds: float) -> str:
    """Write a span for people: "8 s", "3 min 20 s", "2 h 5 min"."""
    if seconds <= 0:
        return "0 s"
    if seconds < 1:
        return format_value(seconds, "s", 2)
    whole = round(seconds)
    minutes, hours = whole // 60, whole // 3600
    if whole < _TWO_MINUTES_S:
        return f"{whole} s"
    if whole < _TWO_HOURS_S:
        return f"{minutes} min {whole % 60} s"
    return f"{hours} h {minutes % 60} min"


def short_duration(seconds: float) -> str:
    """Return seconds as `format_duration` does, and what is less than one as '<1 s'."""
    return format_duration(seconds) if seconds >= 1 else "<1 s"


def scale_of(value: float, unit: str) -> tuple[float, str]:
    """Return the unit in which a value of this size reads best: its size, and its name.

    All values of an axis are written in one unit.
    """
    if unit in _FRACTIONS:
        return 0.01, "%"
    return (1.0, "x") if unit in _RATIOS else _scale(value, unit, 3)


def _scale(value: float, unit: str, digits: int) -> tuple[float, str]:
    """Return the largest prefix that leaves at least 1 after rounding, else the smallest."""
    scales = _SCALES.get(unit)
    if scales is None or value == 0 or not math.isfinite(value):
        return 1.0, unit
    rounded = abs(float(f"{value:.{digits - 1}e}"))
    for size, name in scales:
        if rounded >= size:
            return size, name
    return scales[-1]


def _bracket(low: float, high: float, unit: str) -> str:
    """Write both ends in one unit, that of the larger.

    Without a unit the reader has it from the value beside it.
    """
    if unit in _FRACTIONS:
        return f"[{format_number(100 * low)}, {format_number(100 * high)}] %"
    scale, name = _scale(max(low, high, key=abs), unit, 3)
    text = f"[{format_number(low / scale)}, {format_number(high / scale)}]"
    if unit in _RATIOS:
        return f"{text}x"
    return f"{text} {name}" if name else text


def _percent_of(value: float, part: float) -> float:
    return 100 * part / abs(value) if value else math.inf
