"""What a measurement gives to a test: an `Estimate`, or `NotMeasurable`.

Comparing two Estimates makes a claim, and dividing them makes a ratio. Both are judged in
`core.verdicts.judge`, which needs the types of this file. This circle of two files is inherent, so
`_judge` imports that file when the first comparison is made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol, TypeGuard

from msgspec import Struct
from msgspec.structs import replace

from pytest_llmperf.core.format import format_value
from pytest_llmperf.core.misspelt import Suggests
from pytest_llmperf.core.verdicts import stats
from pytest_llmperf.core.verdicts.processes import ALIKE, Processes, center_interval
from pytest_llmperf.errors import NotMeasured, UsageError

if TYPE_CHECKING:
    from pytest_llmperf.core.verdicts.judge import Finding

Kind = Literal["timing", "exact", "bootstrap"]
Direction = Literal["higher", "lower", "none"]


class _Judge(Protocol):
    """What an Estimate needs of `core.verdicts.judge`."""

    def claim(self, op: str, left: object, right: object) -> Finding:
        """Judge a comparison."""

    def ratio(self, a: Estimate, b: Estimate) -> Estimate:
        """Divide two estimates."""


class Estimate(Suggests, Struct, frozen=True, kw_only=True, eq=False, repr_omit_defaults=True):
    """A measured quantity with its interval.

    `samples` are kept where the value is their center (`statistic` "median"), so that two estimates
    that share `pair` can be compared pair by pair. `factor` is what the measured value was
    multiplied by. `at_least` is how many samples give the interval both ends. `against` names the
    other side of a ratio. `disturbed`: other programs worked beside it, which makes it worse.
    `counted` names what the `n` of a bootstrapped value counts. `kind`
    decides how the value may be compared (`core.verdicts.judge`). An infinite end means that
    nothing bounds the value on that side. `processes` are those that the samples are of.
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
    disturbed: bool = False
    processes: Processes = ALIKE

    def __post_init__(self) -> None:
        numbers = (self.value, self.low, self.high, self.factor, *self.samples)
        if any(map(math.isnan, numbers)):
            raise UsageError(
                f"{self.name}: NaN is not a measurement. "
                "What cannot be measured is NotMeasurable(name, reason)."
            )
        if not self.low <= self.value <= self.high:
            raise UsageError(
                f"{self.name}: the value {self.value!r} lies outside of its interval "
                f"[{self.low!r}, {self.high!r}]."
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
        """Make a quantity without noise, such as bytes of memory.

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
        disturbed: bool = False,
        processes: Processes = ALIKE,
    ) -> Estimate:
        """Return the median of timing samples with its 99 % interval, over their processes.

        Raises ValueError without samples.
        """
        low, high = center_interval(samples, processes)
        return cls(
            name=name,
            value=median(samples),
            low=low,
            high=high,
            n=len(samples),
            unit=unit,
            direction=direction,
            samples=samples,
            pair=pair,
            subject=subject,
            context=context,
            disturbed=disturbed,
            processes=processes,
        )

    @property
    def title(self) -> str:
        """Name the quantity: 'throughput of bf16', or '2 x throughput of bf16' for a multiple."""
        title = f"{self.name} of {self.subject}" if self.subject else self.name
        return title if self.factor == 1 else f"{self.factor:.4g} x {title}"

    @property
    def unscaled(self) -> Estimate:
        """The quantity as it was measured, without the factor of a multiple."""
        if self.factor == 1:
            return self
        return replace(self * (1 / self.factor), factor=1.0)

    def __bool__(self) -> bool:
        better = "<=" if self.direction == "lower" else ">="
        raise UsageError(
            f"{self.title} is {self}: it is neither true nor false, so `assert` holds nothing "
            "about it. Compare it with a number or with another estimate, for example "
            f"`assert … {better} {self.value:.3g}`.",
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
        multiplier = _positive(self, float(factor))
        return replace(
            self,
            value=self.value * multiplier,
            low=self.low * multiplier,
            high=self.high * multiplier,
            samples=tuple(sample * multiplier for sample in self.samples),
            factor=self.factor * multiplier,
        )

    __rmul__ = __mul__

    def __truediv__(self, other: object) -> Estimate:
        if isinstance(other, Estimate):
            return _judge().ratio(self, other)
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

    # Struct's own equality is off (eq=False). These two are claims about the value, and leave what
    # is not a number to the other side. A Finding is true or false, like a bool.

    def __eq__(self, other: object) -> Finding:  # type: ignore[override]
        return _claim("==", self, other) if _comparable(other) else NotImplemented

    def __ne__(self, other: object) -> Finding:  # type: ignore[override]
        return _claim("!=", self, other) if _comparable(other) else NotImplemented

    def __hash__(self) -> int:
        return id(self)


class Refuses:
    """An object that cannot be compared, calculated with, converted, or asked whether it is true.

    Each of these raises what `refuse` raises.
    """

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
            f"{self.name} could not be measured: {self.reason}. "
            "Claim something else here, or skip the test where it is missing.",
        )

    def __getattr__(self, attribute: str) -> NotMeasurable:
        """Return a part, such as `.p95`, which was not measured either."""
        # Protocols that ask what an object can do (copy, pickle, pytest) need a plain no.
        if attribute.startswith("_"):
            raise AttributeError(attribute)
        return NotMeasurable(f"{self.name}.{attribute}", self.reason)

    def __repr__(self) -> str:
        return f"<{self.name}: not measurable: {self.reason}>"


def is_number(value: object) -> TypeGuard[float]:
    """Tell whether `value` is a real number, and not a bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def interval_text(estimate: Estimate, digits: int = 4) -> str:
    """Write an interval: '[111.8, 113.1]', in the unit that the value is shown in.

    An end that needs another unit carries it.
    """
    value_unit = _unit_of(format_value(estimate.value, estimate.unit, digits))
    ends = [
        _without_unit(format_value(end, estimate.unit, digits), value_unit)
        for end in (estimate.low, estimate.high)
    ]
    return f"[{', '.join(ends)}]"


def _without_unit(text: str, unit: str) -> str:
    return text.removesuffix(unit) if _unit_of(text) == unit else text


def _unit_of(text: str) -> str:
    """Return the end of a formatted value, with the space before it: ' tok/s', or 'x'."""
    return "x" if text.endswith("x") else text[len(text.split(" ", 1)[0]) :]


def _positive(estimate: Estimate, factor: float) -> float:
    if not 0 < factor < math.inf:
        raise UsageError(
            f"{estimate.title} cannot be scaled by {factor!r}: a positive, finite factor is needed."
        )
    return factor


def _comparable(other: object) -> bool:
    return isinstance(other, Estimate | Refuses) or is_number(other)


def _claim(op: str, left: Estimate, right: object) -> Finding:
    return _judge().claim(op, left, right)


def _judge() -> _Judge:
    # The one lazy import of the circle that the head of this file explains.
    from pytest_llmperf.core.verdicts import judge  # noqa: PLC0415

    return judge
