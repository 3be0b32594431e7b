"""Whether data support a claim, contradict it, or cannot tell.

Pure, but that `claims` collects what a test claims. `Estimate` makes a claim of each comparison
through an import in a function, since this file needs its type: a circle of two files.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from operator import truediv
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from pytest_llmperf.core.format import format_percent
from pytest_llmperf.core.verdicts import processes, stats
from pytest_llmperf.core.verdicts.case import (
    EQUALITIES,
    Case,
    count_text,
    counts_text,
    pairs_text,
)
from pytest_llmperf.core.verdicts.estimate import Estimate, Kind, Refuses, is_number
from pytest_llmperf.errors import UsageError

FLOOR = 0.03
"""A timing that misses its bound by less than this share is not failed (docs/decisions/0004)."""

_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
_EXPLAINABLE = 64
"""How many comparisons are remembered for `explain`: more than one assert chains."""


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

    `text` says what was measured and claimed, `detail` where, and what could have been seen.
    `margin` is log(value / bound) in the direction of the claim (positive: it holds), None where
    one of the two is not positive. `smallest_visible` is relative for timings, absolute for
    bootstrapped quantities, and None for exact ones. `more_samples` is how many more would decide,
    None when decided or when no number of samples would. A test that passes is warned of `caution`.
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
    caution: str = ""

    def __bool__(self) -> bool:
        if self.outcome in (Outcome.UNDECIDED, Outcome.NOT_COMPARABLE):
            return not self.strict
        return self.outcome in (Outcome.PASS, Outcome.WAIVED)

    def __repr__(self) -> str:
        return f"<{self.outcome.value}: {self.text}; {self.detail}>"


class _Comparison(NamedTuple):
    """A comparison as it was written, and the Finding that was made of it."""

    op: str
    left: object
    right: object
    finding: Finding

    def is_of(self, op: str, left: object, right: object) -> bool:
        """Whether these very objects were compared so, or the other way round."""
        if self.op == op and self.left is left and self.right is right:
            return True
        return self.op == _MIRRORED.get(op) and self.left is right and self.right is left


class _OpenClaims(NamedTuple):
    """How claims are judged at the moment, and those made so far."""

    strict: bool
    floor: float
    findings: list[Finding]
    comparisons: deque[_Comparison]

    @classmethod
    def start(cls, *, strict: bool = False, floor: float | None = None) -> _OpenClaims:
        """Begin with none."""
        return cls(strict, FLOOR if floor is None else floor, [], deque(maxlen=_EXPLAINABLE))


_outside = _OpenClaims.start()
_current: ContextVar[_OpenClaims | None] = ContextVar("llmperf_claims", default=None)


@contextmanager
def claims(*, strict: bool = False, floor: float | None = None) -> Iterator[list[Finding]]:
    """Collect each claim made inside, once, when it is made.

    With `strict`, an undecided claim is false. `floor` replaces FLOOR.
    """
    opened = _OpenClaims.start(strict=strict, floor=floor)
    token = _current.set(opened)
    try:
        yield opened.findings
    finally:
        _current.reset(token)


def claim(op: str, left: object, right: object) -> Finding:
    """Judge a comparison that a test makes, and keep it for the reports and for `explain`."""
    finding = keep(decide(op, left, right))
    _open_claims().comparisons.append(_Comparison(op, left, right, finding))
    return finding


def keep(finding: Finding) -> Finding:
    """Add a claim that was judged elsewhere (an agreement rule) to those of the running test."""
    current = _current.get()
    if current is not None:
        current.findings.append(finding)
    return finding


def explain(op: str, left: object, right: object) -> list[str]:
    """Return the two lines that a failed assert shows, of the Finding made of these very objects.

    There are none where the comparison made no claim (`in`, `is`, other types).
    """
    for comparison in reversed(_open_claims().comparisons):
        if comparison.is_of(op, left, right):
            return [comparison.finding.text, comparison.finding.detail]
    return []


def _open_claims() -> _OpenClaims:
    return _current.get() or _outside


def decide(op: str, left: object, right: object) -> Finding:
    """Judge `left op right`: one side is an Estimate, the other one too or a number in its unit.

    PASS: the whole interval supports the claim. FAIL: the whole interval contradicts it, and the
    value misses the bound by more than the floor (timings only). Exact quantities are compared as
    they are, within their tolerance. A timing of one process, where nobody knows how much others
    differ, decides nothing within 5 % of the bound.

    Raises:
        NotMeasured: a side was not measured.
        UsageError: units differ, a bound is not a finite number, a noisy quantity is compared for
            equality.

    """
    case = _case(op, left, right)
    rules = _open_claims()
    if case.measured.kind == "exact":
        return _decide_exact(case, rules)
    if case.op in EQUALITIES:
        raise UsageError(
            f"{case.title} is a noisy quantity, and two such are never equal: "
            f"claim <= or >= instead of {case.op}."
        )
    return _decide_noisy(case, rules)


# From two sides to a case


def _case(op: str, left: object, right: object) -> Case:
    for side in (left, right):
        if isinstance(side, Refuses):
            side.refuse()
    if _reads_better_mirrored(left, right):
        return _case(_MIRRORED[op], right, left)
    if not isinstance(left, Estimate):
        raise UsageError(f"{left!r} {op} {right!r} compares no estimate.")
    if isinstance(right, Estimate):
        return _case_of_two(op, left, right)
    return _case_of_number(op, left, right)


def _reads_better_mirrored(left: object, right: object) -> bool:
    """Whether the right side alone is what was measured: the left is a number or a multiple."""
    if not isinstance(right, Estimate):
        return False
    return not isinstance(left, Estimate) or (left.factor != 1 and right.factor == 1)


def _case_of_number(op: str, measured: Estimate, bound: object) -> Case:
    if not is_number(bound) or not math.isfinite(bound):
        raise UsageError(
            f"{measured.title} is compared with {bound!r}: "
            f"a finite number in {measured.unit!r} or another estimate is needed.",
        )
    return Case(op, measured, float(bound), measured.title, count_text(measured), measured.against)


def _case_of_two(op: str, a: Estimate, b: Estimate) -> Case:
    """Compare by ratio for positive quantities, by difference for the rest (dB, a KL of 0)."""
    require_same_unit(a, b)
    both_positive = min(a.value, b.value) > 0
    if a.kind == b.kind == "exact" and not both_positive:
        return Case(op, a, b.value, a.title, counts_text(a, b))
    if a.unit == "dB" or not both_positive or "bootstrap" in (a.kind, b.kind):
        return Case(op, _shifted(a, b), b.value, a.title, count_text(a))
    return _case_of_ratio(op, a, b)


def _case_of_ratio(op: str, a: Estimate, b: Estimate) -> Case:
    plain_a, plain_b = a.unscaled, b.unscaled
    paired = is_paired(a, b)
    return Case(
        op,
        _quotient(plain_a, plain_b),
        bound=b.factor / a.factor,
        title=plain_a.title,
        sample_size=pairs_text(_quotient(plain_a, plain_b)) if paired else counts_text(a, b),
        relative_to=b.subject if b.subject and b.name == a.name else plain_b.title,
    )


def _quotient(a: Estimate, b: Estimate) -> Estimate:
    """Divide two estimates, keeping the context and the needed samples of both."""
    context = a.context
    if b.context and b.context != a.context:
        context = f"{a.context} against {b.context}"
    return replace(ratio(a, b), context=context, at_least=max(a.at_least, b.at_least))


def _shifted(a: Estimate, b: Estimate) -> Estimate:
    """Give `a` the interval that it has against `b`: both uncertainties, taken as independent."""
    low = a.value - math.hypot(a.value - a.low, b.high - b.value)
    high = a.value + math.hypot(a.high - a.value, b.value - b.low)
    return replace(a, low=low, high=high, kind=_noisier_kind(a.kind, b.kind))


def _noisier_kind(a: Kind, b: Kind) -> Kind:
    if "bootstrap" in (a, b):
        return "bootstrap"
    return "exact" if a == b == "exact" else "timing"


def ratio(a: Estimate, b: Estimate) -> Estimate:
    """Return the ratio a / b as an Estimate in "x", paired where both carry the same pair.

    Raises UsageError for unlike units and for values that are not positive.
    """
    require_same_unit(a, b)
    _require_positive(a, b)
    log = log_ratio(a, b)
    quotient = Estimate(
        name=a.name if a.name == b.name else f"{a.name}/{b.name}",
        value=math.exp(log.center),
        low=math.exp(log.low),
        high=stats.exp_or_inf(log.high),
        n=log.n,
        unit="x",
        direction=a.direction,
        confidence=min(a.confidence, b.confidence),
        kind=a.kind if a.kind == b.kind else "timing",
        tolerance=max(a.tolerance, b.tolerance),
        subject=a.subject,
        context=a.context,
        against=b.subject or b.name,
        disturbed=a.disturbed or b.disturbed,
    )
    if is_paired(a, b):
        return _paired(quotient, a, b)
    return replace(quotient, processes=a.processes.merged(b.processes))


def _paired(quotient: Estimate, a: Estimate, b: Estimate) -> Estimate:
    ratios = tuple(map(truediv, a.samples, b.samples))
    both = processes.of_both(a.processes, b.processes)
    return replace(quotient, samples=ratios, pair=a.pair, processes=both, disturbed=False)


def log_ratio(a: Estimate, b: Estimate) -> stats.LogRatio:
    """Return the interval of log(a / b).

    It comes from the pairs, else from both sides' samples, else from both intervals. The ratio of
    exact values has no width.
    """
    if a.kind == b.kind == "exact":
        center = math.log(a.value / b.value)
        return stats.LogRatio(center, center, center, 1)
    if not a.samples or not b.samples:
        return _log_ratio_of_intervals(a, b)
    confidence = min(a.confidence, b.confidence)
    return processes.log_ratio_interval(
        a.samples,
        b.samples,
        (a.processes, b.processes),
        paired=is_paired(a, b),
        confidence=confidence,
    )


def _log_ratio_of_intervals(a: Estimate, b: Estimate) -> stats.LogRatio:
    """Combine two intervals by MOVER (Donner and Zou 2012).

    It is for quantities without samples of their own, such as a 95th percentile.
    """
    center = math.log(a.value / b.value)
    below = math.hypot(_log_gap(a.value, a.low), _log_gap(b.high, b.value))
    above = math.hypot(_log_gap(a.high, a.value), _log_gap(b.value, b.low))
    return stats.LogRatio(center, center - below, center + above, min(a.n, b.n))


def is_paired(a: Estimate, b: Estimate) -> bool:
    """Tell whether both were measured together, repetition by repetition."""
    return a.pair is not None and a.pair == b.pair and 0 < len(a.samples) == len(b.samples)


def require_same_unit(a: Estimate, b: Estimate) -> None:
    """Raise UsageError for quantities that cannot be compared."""
    if a.unit != b.unit:
        raise UsageError(
            f"{a.title} is in {a.unit!r} and {b.title} in {b.unit!r}: they cannot be compared."
        )


def _require_positive(a: Estimate, b: Estimate) -> None:
    if min(a.value, b.value) <= 0:
        raise UsageError(
            f"{a.title} / {b.title}: a ratio needs positive values, "
            f"these are {a.value:g} and {b.value:g}. Compare each with a limit.",
        )


def _log_gap(upper: float, lower: float) -> float:
    return math.log(upper / lower) if lower > 0 and upper < math.inf else math.inf


# From a case to a finding


def _decide_exact(case: Case, rules: _OpenClaims) -> Finding:
    outcome = Outcome.PASS if case.holds_exactly else Outcome.FAIL
    tolerance = format_percent(case.measured.tolerance, 2)
    comparison = f"tolerance {tolerance}" if case.slack else "compared exactly"
    return _finding(case, outcome, rules, comparison)


def _decide_noisy(case: Case, rules: _OpenClaims) -> Finding:
    floor = rules.floor if case.measured.kind == "timing" else 0.0
    visible = f"smallest visible difference {case.visible_text}"
    if case.is_due_to_load:
        return _undecided(case, rules, visible, case.load_text)
    if case.rests_on_one_process and case.is_near:
        return _undecided(case, rules, visible, case.one_process_text)
    if case.is_supported:
        return _finding(case, Outcome.PASS, rules, visible)
    if case.is_contradicted and case.missed_share > floor:
        return _finding(case, Outcome.FAIL, rules, visible)
    if 0 < case.missed_share <= floor:
        return _undecided(case, rules, visible, case.within_floor_text(floor))
    finding = _undecided(case, rules, visible, case.more_samples_text)
    return replace(finding, more_samples=case.more_samples)


def _undecided(case: Case, rules: _OpenClaims, visible: str, reason: str) -> Finding:
    return _finding(case, Outcome.UNDECIDED, rules, visible, f"undecided: {reason}")


def _finding(case: Case, outcome: Outcome, rules: _OpenClaims, *details: str) -> Finding:
    return Finding(
        outcome=outcome,
        text=f"{case.measured_text}, claimed {case.bound_text}  ({case.sample_size})",
        detail="; ".join(filter(None, (case.measured.context, *details))),
        margin=case.margin,
        left=case.measured_text,
        right=case.bound_text,
        smallest_visible=case.smallest_visible,
        strict=rules.strict,
    )
