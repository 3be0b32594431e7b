"""Agreement rules as data: criteria that must all hold, and their text form.

Which one a variant gets is in `core.agreement.kinds`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import NamedTuple

from msgspec import Struct

from pytest_llmperf.core.agreement.criteria import (
    CRITERIA,
    FLAGS,
    NEEDS_LOGITS,
    WHOLE_NUMBERS,
    Compared,
)
from pytest_llmperf.core.agreement.kinds import DEFAULT_RULES, KINDS, kind_of
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.verdicts.estimate import Estimate
from pytest_llmperf.errors import UsageError, did_you_mean


class Criterion(Struct, frozen=True):
    """One criterion: a row of the table, and its numbers in the row's order."""

    name: str
    values: tuple[float, ...] = ()

    def __str__(self) -> str:
        if not self.values:
            return self.name
        pairs = dict(zip(CRITERIA[self.name].parameters, self.values, strict=True))
        flags = [key for key in pairs if key in FLAGS and pairs[key]]
        numbers = {key: value for key, value in pairs.items() if key not in FLAGS}
        if len(numbers) == 1:
            shown = [f"{value:g}" for value in numbers.values()]
        else:
            shown = [f"{key}={value:g}" for key, value in numbers.items()]
        return f"{self.name}({', '.join((*shown, *flags))})"

    def broken(self, agreement: Compared) -> str | None:
        """Say why the criterion does not hold; None where it does."""
        return CRITERIA[self.name].broken(agreement, *self.values)

    def measured(self, agreement: Compared) -> MeasuredCriterion | None:
        """Return what the criterion limits, with its interval; None where it has none."""
        quantity = CRITERIA[self.name].quantity
        estimate = getattr(agreement, quantity) if quantity else None
        return MeasuredCriterion(self, estimate) if isinstance(estimate, Estimate) else None


class MeasuredCriterion(NamedTuple):
    """A criterion with one limit, and the estimate that it limits."""

    criterion: Criterion
    estimate: Estimate

    @property
    def is_open(self) -> bool:
        """Whether the interval holds the limit."""
        limit, *flags = self.criterion.values
        limits = (limit, 1 / limit) if any(flags) else (limit,)
        return any(self.estimate.low < edge < self.estimate.high for edge in limits)


class Rule(Struct, frozen=True):
    """Criteria that must all hold. Without any, nothing can be judged: see `Agreement.ok`."""

    criteria: tuple[Criterion, ...] = ()
    kind: str = ""

    def __str__(self) -> str:
        return "+".join(map(str, self.criteria)) or "none"

    @property
    def needs_noise_floor(self) -> bool:
        """Whether the reference has to be compared with itself."""
        return self.names("noise_floor")

    def names(self, criterion: str) -> bool:
        """Whether a criterion of this name is among them."""
        return any(row.name == criterion for row in self.criteria)

    def reasons(self, agreement: Compared) -> tuple[str, ...]:
        """Say why the rule does not hold; empty when it does.

        Logits that are not finite never hold.
        """
        if agreement.not_finite:
            n_bad, n_prompts = len(agreement.not_finite), agreement.n_prompts
            return (f"logits are not finite in {n_bad} of {n_prompts} prompts",)
        if agreement.partial:
            silent = self._of_missing_logits(agreement.partial)
            if silent:
                return silent
        reasons = (criterion.broken(agreement) for criterion in self.criteria)
        return tuple(reason for reason in reasons if reason is not None)

    def measured(self, agreement: Compared) -> tuple[MeasuredCriterion, ...]:
        """Return what the criteria limit, where that has an interval."""
        measured = (criterion.measured(agreement) for criterion in self.criteria)
        return tuple(row for row in measured if row is not None)

    def _of_missing_logits(self, partial: str) -> tuple[str, ...]:
        """Name the criteria that cannot be measured without the logits of all tokens."""
        return tuple(
            f"{criterion}: not measurable: {partial}"
            for criterion in self.criteria
            if criterion.name in NEEDS_LOGITS
        )

    @property
    def missing(self) -> str:
        """What a test has to give where there is nothing to hold."""
        kind = KINDS.get(self.kind)
        if kind is None:
            return _budget_text("the agreement rule is empty", KINDS["pruned"].give)
        return _budget_text(
            f"a variant of kind {self.kind!r} has no default agreement rule", kind.give
        )


def _budget_text(problem: str, give: str) -> str:
    return f"{problem}: its loss is a budget of yours. {give}"


def parse_rule(text: str) -> Rule:
    """Read the rule of a text such as 'containment(k=5, horizon=32)+perplexity(1.01)'.

    Raises:
        UsageError: an unknown or repeated criterion, or a number that is missing, unknown, or not
            positive.
    """
    criteria = tuple(_criterion(part.strip(), text) for part in text.split("+"))
    counts = Counter(criterion.name for criterion in criteria)
    for name, count in counts.items():
        if count > 1:
            raise UsageError(
                f"agreement rule {text!r} holds {name!r} twice. Give each criterion once."
            )
    return Rule(criteria)


def default_rule(candidate: LoadPlan, reference: LoadPlan) -> Rule:
    """Return the rule of the candidate's kind of variant, as far as the plans tell it."""
    kind = kind_of(candidate, reference)
    text = DEFAULT_RULES[kind]
    return Rule(parse_rule(text).criteria if text else (), kind)


# The text form


def _criterion(part: str, text: str) -> Criterion:
    match = re.fullmatch(r"(\w+)\s*(?:\((.*)\))?", part)
    name = match.group(1) if match else part
    if match is None or name not in CRITERIA:
        all_criteria = f"Criteria: {', '.join(map(_signature, CRITERIA))}; join several with '+'."
        near = did_you_mean(name, CRITERIA, otherwise=all_criteria)
        raise UsageError(f"agreement rule {text!r}: criterion {part!r} is not known.{near}")
    arguments = _arguments(name, _parts(match.group(2) or ""), text)
    return Criterion(name, _values(name, arguments, text))


def _parts(inside: str) -> list[str]:
    return [part.strip() for part in inside.split(",") if part.strip()]


def _values(name: str, arguments: dict[str, str], text: str) -> tuple[float, ...]:
    """Return the numbers in the order of the criterion's parameters."""
    return tuple(
        _number(name, key, arguments.get(key, default), text)
        for key, default in CRITERIA[name].parameters.items()
    )


def _arguments(name: str, parts: list[str], text: str) -> dict[str, str]:
    """Return the numbers by parameter name: positional ones first, then named ones."""
    parameters = list(CRITERIA[name].parameters)
    arguments: dict[str, str] = {}
    for position, part in enumerate(parts):
        key, value = _named_argument(part, parameters[position : position + 1])
        if key not in parameters or key in arguments:
            raise UsageError(
                f"agreement rule {text!r}: {name} does not take {part!r}. "
                f"It reads {_signature(name)}."
            )
        arguments[key] = value
    return arguments


def _named_argument(part: str, parameter: list[str]) -> tuple[str, str]:
    """Return 'k=5', or the 5 of the parameter at its position, as a name and a number.

    A number beyond the last parameter has its own text for a name, which is none.
    """
    key, equals, value = part.partition("=")
    if equals:
        return key.strip(), value
    if part in FLAGS:
        return part, "1"
    return (parameter[0] if parameter else part), part


def _number(name: str, key: str, value: str | float | None, text: str) -> float:
    number = _parsed(value)
    if key in FLAGS and number in (0, 1):
        return number
    whole = key in WHOLE_NUMBERS
    if number > 0 and math.isfinite(number) and (not whole or number == math.trunc(number)):
        return number
    needed = "a whole number of at least 1" if whole else "a positive number"
    raise UsageError(
        f"agreement rule {text!r}: {key} of {name} is "
        f"{'missing' if value is None else repr(value)}, {needed} is needed. "
        f"It reads {_signature(name)}."
    )


def _parsed(value: str | float | None) -> float:
    """Return the number; NaN where there is none."""
    try:
        return math.nan if value is None else float(value)
    except ValueError:
        return math.nan


def _signature(name: str) -> str:
    parameters = ", ".join(
        key if default is None or key in FLAGS else f"{key}={default:g}"
        for key, default in CRITERIA[name].parameters.items()
    )
    return f"{name}({parameters})" if parameters else name
