"""What a measurement gives to a test: an `Estimate`, or `NotMeasurable`.

Comparing an Estimate makes a claim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeGuard

from msgspec import Struct
from msgspec.structs import replace

from pytest_llmperf.core.format import format_value
from pytest_llmperf.core.verdicts import stats
from pytest_llmperf.errors import NotMeasured, UsageError

if TYPE_CHECKING:
    from pytest_llmperf.core.verdicts.judge import Finding

Kind = Literal["timing", "exact", "bootstrap"]
Direction = Literal["higher", "lower", "none"]


class Estimate(Struct, frozen=True, kw_only=True, eq=False, repr_omit_defaults=True):
    """A measured quantity with its interval.

    `samples` are kept where the value is their center (`statistic` "median"), so that two estimates
    that share `pair` can be compared pair by pair. `factor` is what the measured value was
    multiplied by. `at_least` is how many samples give the interval both ends. `against` names the
    other side of a ratio. `counted` is what the n of a bootstrapped value are. A timing, exact or
    bootstrapped value says how it may be compared (`core.verdicts.judge`). Infinite ends mean that
    nothing bounds the value.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    unit: str
    direction: Direction = "none"
    confidence: float = stats.CONFIDENCE
    kind: Kind = "timing"
    samples: tuple[float, ...] = ()
    pair: str | None = None
    tolerance: float = 0.0
    subject: str = ""
    context: str = ""
    statistic: str = "median"
    factor: float = 1.0
    at_least: int = stats.MIN_PAIRS
    against: str = ""
    counted: str = "prompt"

    def __post_init__(self) -> None:
        if any(
            math.isnan(x) for x in (self.value, self.low, self.high, self.factor, *self.samples)
        ):
            raise UsageError(
                f"{self.name}: NaN is no measurement. What cannot be measured is NotMeasurable(name, reason)."
            )
        if not self.low <= self.value <= self.high:
            raise UsageError(
                f"{self.name}: the value {self.value!r} lies outside of its interval [{self.low!r}, {self.high!r}]."
            )

    @classmethod
    def exact(
        cls,
        name: str,
        value: float,
        unit: str,
        *,
        direction: Direction = "none",
        tolerance: float = 0.0,
        **origin: Any,
    ) -> Estimate:
        """A quantity without noise, such as bytes of memory.

        `tolerance` is relative; `origin` is `subject` and `context`.
        """
        return cls(
            name=name,
            value=value,
            low=value,
            high=value,
            n=1,
            unit=unit,
            direction=direction,
            kind="exact",
            tolerance=tolerance,
            **origin,
        )

    @classmethod
    def of_samples(
        cls,
        name: str,
        samples: tuple[float, ...],
        unit: str,
        *,
        direction: Direction = "none",
        pair: str | None = None,
        subject: str = "",
        context: str = "",
    ) -> Estimate:
        """The median of timing samples with its 99 % interval. Raises ValueError without samples."""
        low, high = stats.center_interval(samples)
        return cls(
            name=name,
            value=stats.median(samples),
            low=low,
            high=high,
            n=len(samples),
            unit=unit,
            direction=direction,
            samples=samples,
            pair=pair,
            subject=subject,
            context=context,
        )

    @property
    def title(self) -> str:
        """'throughput of bf16', or the name alone; a multiple says so: '2 x throughput of bf16'."""
        named = f"{self.name} of {self.subject}" if self.subject else self.name
        return named if self.factor == 1 else f"{self.factor:.4g} x {named}"

    def __bool__(self) -> bool:
        better = "<=" if self.direction == "lower" else ">="
        raise UsageError(
            f"{self.title} is {self}: it is neither true nor false, so `assert` holds nothing about it. Compare it with a number "
            f"or with another estimate, for example `assert … {better} {self.value:.3g}`.",
        )

    def __float__(self) -> float:
        return float(self.value)

    def __str__(self) -> str:
        text = format_value(self.value, self.unit, 4)
        if self.kind == "exact":
            return text
        return f"{text} {interval_text(self)} {100 * self.confidence:g} %, n={self.n}"

    def __repr__(self) -> str:
        return f"<{self.title}: {self}>"

    def __format__(self, spec: str) -> str:
        return format(self.value, spec) if spec else str(self)

    def __round__(self, ndigits: int | None = None) -> float:
        return round(self.value, ndigits)

    def __int__(self) -> int:
        return int(self.value)

    def __mul__(self, factor: object) -> Estimate:
        if not is_number(factor):
            return NotImplemented
        by = _positive(self, float(factor))
        samples = tuple(x * by for x in self.samples)
        return replace(
            self,
            value=self.value * by,
            low=self.low * by,
            high=self.high * by,
            samples=samples,
            factor=self.factor * by,
        )

    __rmul__ = __mul__

    def __truediv__(self, other: object) -> Estimate:
        if isinstance(other, Estimate):
            return ratio(self, other)
        if not is_number(other):
            return NotImplemented
        return self * (1 / _positive(self, float(other)))

    def __lt__(self, other: object) -> Finding:
        return _claim("<", self, other)

    def __le__(self, other: object) -> Finding:
        return _claim("<=", self, other)

    def __gt__(self, other: object) -> Finding:
        return _claim(">", self, other)

    def __ge__(self, other: object) -> Finding:
        return _claim(">=", self, other)

    # Struct's own equality is off (eq=False): these two are claims about the value, or False for
    # what is no number.

    # A Finding is true or false, like a bool.
    def __eq__(self, other: object) -> Finding:  # type: ignore[override]
        return _claim("==", self, other) if _comparable(other) else NotImplemented

    def __ne__(self, other: object) -> Finding:  # type: ignore[override]
        return _claim("!=", self, other) if _comparable(other) else NotImplemented

    def __hash__(self) -> int:
        return id(self)


class Refuses:
    """Comparing it, calculating with it, converting it and asking whether it is true raise what `refuse` raises."""

    def refuse(self) -> NoReturn:
        """Raise the error that says why."""
        raise NotImplementedError

    def __lt__(self, other: object) -> bool:
        self.refuse()

    def __le__(self, other: object) -> bool:
        self.refuse()

    def __gt__(self, other: object) -> bool:
        self.refuse()

    def __ge__(self, other: object) -> bool:
        self.refuse()

    def __eq__(self, other: object) -> bool:
        self.refuse()

    def __ne__(self, other: object) -> bool:
        self.refuse()

    def __bool__(self) -> bool:  # noqa: PLE0304 - it never returns
        self.refuse()

    def __float__(self) -> float:
        self.refuse()

    def __int__(self) -> int:
        self.refuse()

    def __round__(self, ndigits: int = 0) -> float:
        self.refuse()

    def __hash__(self) -> int:
        return id(self)

    def _arithmetic(self, _: object) -> NoReturn:
        self.refuse()

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = (
        __floordiv__
    ) = __pow__ = _arithmetic

    def _unary(self) -> NoReturn:
        self.refuse()

    __neg__ = __abs__ = _unary


@dataclass(frozen=True, eq=False, repr=False)
class NotMeasurable(Refuses):
    """A quantity that could not be measured, and why.

    Using it in any way raises NotMeasured; it is never 0 and never a pass.
    """

    name: str
    reason: str

    def refuse(self) -> NoReturn:
        """Raise NotMeasured with the reason."""
        raise NotMeasured(
            f"{self.name} could not be measured: {self.reason}. Claim something else here, or skip the test where it is missing.",
        )

    def __getattr__(self, attribute: str) -> NotMeasurable:
        """A part (`.p95`) of what was not measured was not measured either."""
        # Protocols that ask what an object can do (copy, pickle, pytest) need a plain no.
        if attribute.startswith("_"):
            raise AttributeError(attribute)
        return NotMeasurable(f"{self.name}.{attribute}", self.reason)

    def __repr__(self) -> str:
        return f"<{self.name}: not measurable: {self.reason}>"


def ratio(a: Estimate, b: Estimate) -> Estimate:
    """The ratio a / b as an Estimate in "x". Paired where both carry the same pair.

    Raises UsageError for unlike units and for values that are not positive.
    """
    require_same_unit(a, b)
    if min(a.value, b.value) <= 0:
        raise UsageError(
            f"{a.title} / {b.title}: a ratio needs positive values, these are {a.value:g} and {b.value:g}. "
            "Compare each with a limit.",
        )
    both_exact = a.kind == b.kind == "exact"
    log = _exact_log_ratio(a, b) if both_exact else log_ratio(a, b)
    paired = is_paired(a, b)
    return Estimate(
        name=a.name if a.name == b.name else f"{a.name}/{b.name}",
        value=math.exp(log.center),
        low=math.exp(log.low) if log.low > -math.inf else 0.0,
        high=math.exp(log.high) if log.high < math.inf else math.inf,
        n=log.n,
        unit="x",
        direction=a.direction,
        confidence=min(a.confidence, b.confidence),
        kind=a.kind if a.kind == b.kind else "timing",
        samples=tuple(x / y for x, y in zip(a.samples, b.samples, strict=True)) if paired else (),
        pair=a.pair if paired else None,
        tolerance=max(a.tolerance, b.tolerance),
        subject=a.subject,
        context=a.context,
        against=b.subject or b.name,
    )


def log_ratio(a: Estimate, b: Estimate) -> stats.LogRatio:
    """Interval of log(a / b): from the pairs, else from both sides' samples, else from both intervals.

    The last is MOVER (Donner and Zou 2012), for quantities without samples of their own, such as a 95th percentile.
    """
    confidence = min(a.confidence, b.confidence)
    if is_paired(a, b) or (a.samples and b.samples):
        return stats.log_ratio_interval(
            a.samples, b.samples, paired=is_paired(a, b), confidence=confidence
        )
    center = math.log(a.value / b.value)
    low = math.hypot(_log(a.value, a.low), _log(b.high, b.value))
    high = math.hypot(_log(a.high, a.value), _log(b.value, b.low))
    return stats.LogRatio(center, center - low, center + high, min(a.n, b.n))


def is_paired(a: Estimate, b: Estimate) -> bool:
    """Measured together, repetition by repetition."""
    return a.pair is not None and a.pair == b.pair and 0 < len(a.samples) == len(b.samples)


def require_same_unit(a: Estimate, b: Estimate) -> None:
    """Raise UsageError for quantities that cannot be compared."""
    if a.unit != b.unit:
        raise UsageError(
            f"{a.title} is in {a.unit!r} and {b.title} in {b.unit!r}: they cannot be compared."
        )


def is_number(value: object) -> TypeGuard[float]:
    """A real number, but not a bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def interval_text(estimate: Estimate, digits: int = 4) -> str:
    """'[111.8, 113.1]' in the unit that the value is shown in.

    Ends that need another unit carry it.
    """
    suffix = _suffix(format_value(estimate.value, estimate.unit, digits))
    ends = [format_value(end, estimate.unit, digits) for end in (estimate.low, estimate.high)]
    return f"[{', '.join(end.removesuffix(suffix) if _suffix(end) == suffix else end for end in ends)}]"


def _suffix(text: str) -> str:
    return "x" if text.endswith("x") else text[len(text.split(" ", 1)[0]) :]


def _exact_log_ratio(a: Estimate, b: Estimate) -> stats.LogRatio:
    center = math.log(a.value / b.value)
    return stats.LogRatio(center, center, center, 1)


def _log(above: float, below: float) -> float:
    """log(above / below) of two ends of an interval; infinite where one of them bounds nothing."""
    return math.log(above / below) if below > 0 and above < math.inf else math.inf


def _positive(estimate: Estimate, factor: float) -> float:
    if not 0 < factor < math.inf:
        raise UsageError(
            f"{estimate.title} cannot be scaled by {factor!r}: a positive, finite factor is needed."
        )
    return factor


def _comparable(other: object) -> bool:
    return isinstance(other, Estimate | Refuses) or is_number(other)


def _claim(op: str, left: Estimate, right: object) -> Finding:
    # Judge needs the types of this module.
    from pytest_llmperf.core.verdicts import judge  # noqa: PLC0415

    return judge.claim(op, left, right)
