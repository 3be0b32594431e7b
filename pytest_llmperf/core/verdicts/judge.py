"""Whether data support a claim, contradict it, or cannot tell.

Pure but for one list: `claims` collects what a test claims.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from pytest_llmperf.core.format import format_percent, format_value
from pytest_llmperf.core.verdicts import stats
from pytest_llmperf.core.verdicts.estimate import (
    Estimate,
    Refuses,
    interval_text,
    is_number,
    is_paired,
    ratio,
    require_same_unit,
)
from pytest_llmperf.errors import UsageError

FLOOR = 0.03
"""A timing that misses its bound by less than this share is not failed (docs/decisions/0004)."""


class Outcome(StrEnum):
    """What became of a claim. The values are what records hold."""

    PASS = "PASS"  # noqa: S105 - not a password
    FAIL = "FAIL"
    UNDECIDED = "UNDECIDED"
    NOT_COMPARABLE = "NOT COMPARABLE"
    INVALID = "INVALID"
    WAIVED = "WAIVED"


class Finding(Struct, frozen=True, kw_only=True):
    """A judged claim.

    True when it passed or its failure is waived; undecided, it is true unless `strict`.

    `text` says what was seen and claimed, `detail` where, and what could have been seen. `margin`
    is log(value / bound) in the direction of the claim (positive: holds), None where one of them is
    not positive. `smallest_visible` is relative for timings, absolute for bootstrapped quantities,
    None for exact ones. `more_samples` is how many more would decide, None when decided or when no
    number of samples would.
    """

    outcome: Outcome
    text: str
    detail: str
    margin: float | None = None
    left: str = ""
    right: str = ""
    smallest_visible: float | None = None
    more_samples: int | None = None
    strict: bool = False

    def __bool__(self) -> bool:
        if self.outcome in (Outcome.UNDECIDED, Outcome.NOT_COMPARABLE):
            return not self.strict
        return self.outcome in (Outcome.PASS, Outcome.WAIVED)

    def __repr__(self) -> str:
        return f"<{self.outcome.value}: {self.text}; {self.detail}>"


class _Claims(NamedTuple):
    strict: bool
    floor: float
    findings: list[Finding]


class _Case(NamedTuple):
    """A claim made ready: an interval of something, and the bound it is held against, in one unit."""

    seen: Estimate
    bound: float
    what: str
    counted: str
    relative_to: str = ""


_Compare = Callable[[float, float], bool]
_OPERATORS: dict[str, _Compare] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
_current: ContextVar[_Claims | None] = ContextVar("llmperf_claims", default=None)


@contextmanager
def claims(*, strict: bool = False, floor: float | None = None) -> Iterator[list[Finding]]:
    """Collect each claim made inside, once, when it is made. `strict`: undecided is false.

    `floor` replaces FLOOR.
    """
    token = _current.set(_Claims(strict, FLOOR if floor is None else floor, []))
    current = _current.get()
    assert current is not None  # noqa: S101 - set one line above
    try:
        yield current.findings
    finally:
        _current.reset(token)


def claim(op: str, left: object, right: object) -> Finding:
    """Judge a comparison that a test makes, and keep it for the reports."""
    return keep(decide(op, left, right))


def keep(finding: Finding) -> Finding:
    """Add a claim that was judged elsewhere (an agreement rule) to those of the running test."""
    current = _current.get()
    if current is not None:
        current.findings.append(finding)
    return finding


def decide(op: str, left: object, right: object) -> Finding:
    """Judge `left op right`, at least one of which is an Estimate, the other one or a number in its unit.

    PASS: the whole interval supports the claim. FAIL: the whole interval contradicts it, and the value misses the bound
    by more than the floor (timings only). Exact quantities are compared as they are, within their tolerance.

    Raises:
        NotMeasured: a side was not measured.
        UsageError: units differ, a bound is not a finite number, a noisy quantity is compared for equality.

    """
    op, case = _case(op, left, right)
    context = _current.get() or _Claims(strict=False, floor=FLOOR, findings=[])
    if case.seen.kind == "exact":
        return _exact(op, case, context.strict)
    if op in ("==", "!="):
        raise UsageError(
            f"{case.what} is a noisy quantity, and two such are never equal: claim <= or >= instead of {op}."
        )
    return _noisy(op, case, context)


def explain(op: str, left: object, right: object) -> list[str]:
    """The two lines that a failed assert shows.

    None where the comparison is no claim (`in`, `is`, other types).
    """
    sides = (left, right)
    if (
        op not in _OPERATORS
        or not all(isinstance(x, Estimate) or is_number(x) for x in sides)
        or not any(isinstance(x, Estimate) for x in sides)
    ):
        return []
    finding = decide(op, left, right)
    return [finding.text, finding.detail]


# From two sides to a case


def _case(op: str, left: object, right: object) -> tuple[str, _Case]:
    for side in (left, right):
        if isinstance(side, Refuses):
            side.refuse()
    if not isinstance(left, Estimate) or (
        isinstance(right, Estimate) and left.factor != 1 and right.factor == 1
    ):
        op, left, right = _MIRRORED[op], right, left
    if not isinstance(left, Estimate):
        raise UsageError(f"{left!r} {op} {right!r} compares no estimate.")
    if isinstance(right, Estimate):
        return op, _against_estimate(left, right)
    return op, _against_number(left, right)


def _against_number(seen: Estimate, bound: object) -> _Case:
    if not is_number(bound) or not math.isfinite(bound):
        raise UsageError(
            f"{seen.title} is compared with {bound!r}: a finite number in {seen.unit!r} or another estimate is needed.",
        )
    return _Case(seen, float(bound), seen.title, _count(seen), seen.against)


def _against_estimate(a: Estimate, b: Estimate) -> _Case:
    """The ratio of the two for positive quantities; their difference for the rest (dB, a KL of 0)."""
    require_same_unit(a, b)
    own, other = _unscaled(a), _unscaled(b)
    if a.kind == b.kind == "exact" and min(a.value, b.value) <= 0:
        return _Case(a, b.value, a.title, _counts(a, b))
    if a.unit == "dB" or min(a.value, b.value) <= 0 or "bootstrap" in (a.kind, b.kind):
        return _Case(_shifted(a, b), b.value, a.title, _count(a))
    other_title = b.subject if b.subject and b.name == a.name else _unscaled(b).title
    counted = f"{min(a.n, b.n)} pairs, interleaved" if is_paired(a, b) else _counts(a, b)
    return _Case(_quotient(own, other), b.factor / a.factor, own.title, counted, other_title)


def _quotient(a: Estimate, b: Estimate) -> Estimate:
    seen = ratio(a, b)
    context = (
        a.context if a.context == b.context or not b.context else f"{a.context} against {b.context}"
    )
    return _with(seen, context=context, at_least=max(a.at_least, b.at_least))


def _shifted(a: Estimate, b: Estimate) -> Estimate:
    """`a` with the interval that it has against `b`: both uncertainties, independent, around their difference."""
    low = a.value - math.hypot(a.value - a.low, b.high - b.value)
    high = a.value + math.hypot(a.high - a.value, b.value - b.low)
    kind = (
        "exact"
        if a.kind == b.kind == "exact"
        else "bootstrap"
        if "bootstrap" in (a.kind, b.kind)
        else "timing"
    )
    return _with(a, low=low, high=high, kind=kind)


def _unscaled(estimate: Estimate) -> Estimate:
    return estimate if estimate.factor == 1 else _with(estimate * (1 / estimate.factor), factor=1.0)


def _with(estimate: Estimate, **changes: object) -> Estimate:
    return replace(estimate, **changes)


def _count(seen: Estimate) -> str:
    if seen.kind == "exact":
        return "one reading" if seen.tolerance else "exact"
    if seen.kind == "bootstrap":
        return f"{seen.n} {seen.counted}s"
    return (
        f"{seen.n} pairs, interleaved"
        if seen.against and seen.pair is not None
        else f"{seen.n} samples"
    )


def _counts(a: Estimate, b: Estimate) -> str:
    if a.kind == b.kind == "exact":
        return "one reading each" if max(a.tolerance, b.tolerance) else "exact"
    return f"{a.n} and {b.n} samples"


# From a case to a finding


def _exact(op: str, case: _Case, strict: bool) -> Finding:
    slack = case.seen.tolerance * abs(case.bound)
    value = case.seen.value
    if op in ("==", "!="):
        holds = (abs(value - case.bound) <= slack) == (op == "==")
    else:
        holds = _OPERATORS[op](value, case.bound + (slack if op in ("<", "<=") else -slack))
    detail = _joined(
        case.seen.context,
        f"tolerance {format_percent(case.seen.tolerance, 2)}" if slack else "compared exactly",
    )
    return _finding(op, case, Outcome.PASS if holds else Outcome.FAIL, detail, strict=strict)


def _noisy(op: str, case: _Case, context: _Claims) -> Finding:
    seen, bound = case.seen, case.bound
    floor = context.floor if seen.kind == "timing" else 0.0
    near, far = (seen.low, seen.high) if op in (">", ">=") else (seen.high, seen.low)
    half, distance = _scales(seen, bound)
    visible = f"smallest visible difference {_visible_text(seen, half)}"
    supported, contradicted = _OPERATORS[op](near, bound), not _OPERATORS[op](far, bound)
    missed = _missed(op, seen.value, bound)
    if supported or (contradicted and missed > floor):
        outcome = Outcome.PASS if supported else Outcome.FAIL
        return _finding(
            op, case, outcome, _joined(seen.context, visible), half=half, strict=context.strict
        )
    more = (
        None
        if 0 < missed <= floor
        else stats.samples_needed(seen.n, half, distance, at_least=seen.at_least)
    )
    detail = _joined(seen.context, visible, f"undecided: {_why(more, missed, floor, case)}")
    return _finding(
        op, case, Outcome.UNDECIDED, detail, half=half, more=more, strict=context.strict
    )


def _finding(
    op: str,
    case: _Case,
    outcome: Outcome,
    detail: str,
    *,
    half: float | None = None,
    more: int | None = None,
    strict: bool,
) -> Finding:
    left, right = _left_text(case), _bound_text(op, case)
    visible = (
        half
        if half is None or case.seen.kind == "bootstrap"
        else stats.smallest_visible_change(half)
    )
    return Finding(
        outcome=outcome,
        text=f"{left}, claimed {right}  ({case.counted})",
        detail=detail,
        margin=_margin(op, case.seen.value, case.bound),
        left=left,
        right=right,
        smallest_visible=visible,
        more_samples=more,
        strict=strict,
    )


def _scales(seen: Estimate, bound: float) -> tuple[float, float]:
    """Half the interval and the value's distance from the bound: logs for timings, as they are for bootstrapped values."""
    if seen.kind == "bootstrap":
        return (seen.high - seen.low) / 2, abs(seen.value - bound)
    if seen.low <= 0 or math.isinf(seen.high):
        return math.inf, math.inf
    return math.log(seen.high / seen.low) / 2, abs(
        math.log(seen.value / bound)
    ) if bound > 0 else math.inf


def _missed(op: str, value: float, bound: float) -> float:
    """By which share of the bound the value misses it; 0 when it does not."""
    if _OPERATORS[op](value, bound):
        return 0.0
    return abs(value - bound) / abs(bound) if bound else math.inf


def _margin(op: str, value: float, bound: float) -> float | None:
    if value <= 0 or bound <= 0:
        return None
    log = math.log(value / bound)
    if op in ("==", "!="):
        return -abs(log) if op == "==" else abs(log)
    return log if op in (">", ">=") else -log


# Words


def _why(more: int | None, missed: float, floor: float, case: _Case) -> str:
    if 0 < missed <= floor:
        return f"the miss of {format_percent(missed, 2)} is within the practical floor of {format_percent(floor, 2)}"
    if more is None:
        return "the value lies too near the bound for any number of samples"
    noun = (
        case.seen.counted
        if case.seen.kind == "bootstrap"
        else "pair"
        if "pairs" in case.counted
        else "sample"
    )
    return f"about {more} more {noun}{'s' if more != 1 else ''} would decide"


def _visible_text(seen: Estimate, half: float) -> str:
    if math.isinf(half):
        return f"unknown (the interval has no end below {seen.at_least} samples)"
    return (
        format_value(half, seen.unit, 2)
        if seen.kind == "bootstrap"
        else format_percent(stats.smallest_visible_change(half), 2)
    )


def _digits(case: _Case) -> int:
    """Three digits; more where an exact value and a bound that differ would read the same."""
    seen, bound = case.seen, case.bound
    if seen.kind != "exact" or seen.value == bound:
        return 3
    return next(
        (
            d
            for d in range(3, 15)
            if format_value(seen.value, seen.unit, d) != format_value(bound, seen.unit, d)
        ),
        15,
    )


def _left_text(case: _Case) -> str:
    value = format_value(case.seen.value, case.seen.unit, _digits(case))
    reference = f" {case.relative_to}" if case.relative_to else ""
    interval = "" if case.seen.kind == "exact" else f" {interval_text(case.seen, 3)}"
    return f"{case.what} is {value}{reference}{interval}"


def _bound_text(op: str, case: _Case) -> str:
    return f"{op} {format_value(case.bound, case.seen.unit, _digits(case))}"


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
