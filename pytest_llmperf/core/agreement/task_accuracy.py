"""Task accuracy and recovery with their intervals. Pure.

The same items are put to candidate and reference, so that only those matter which one of them alone
answers correctly (McNemar 1947).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from pytest_llmperf.core.metrics.quantities import TABLE
from pytest_llmperf.core.verdicts.distributions import binomial_cdf, t_quantile
from pytest_llmperf.core.verdicts.estimate import Estimate
from pytest_llmperf.core.verdicts.stats import CONFIDENCE
from pytest_llmperf.errors import UsageError

_NORMAL_FREEDOM = 1e9
"""Degrees of freedom with which Student's t is the normal."""
_BISECTIONS = 40


def accuracy(correct: Sequence[bool], *, subject: str = "", context: str = "") -> Estimate:
    """Return the share of items answered correctly, with Clopper's and Pearson's 99 % interval.

    Raises UsageError without items.
    """
    answers = checked_answers(correct)
    n, n_correct = len(answers), sum(answers)
    interval = _clopper_pearson(n_correct, n)
    return _estimate(
        "task.accuracy", n_correct / n, interval, n=n, subject=subject, context=context
    )


def recovery(
    candidate: Sequence[bool],
    reference: Sequence[bool] | float,
    *,
    subject: str = "",
    context: str = "",
    against: str = "",
) -> Estimate:
    """Return the candidate's accuracy over the reference's, with a 99 % interval.

    0.95 keeps 95 % of what the reference could do. `reference` is its answers to the same items, in
    the same order (interval of Bonett and Price 2006 for a ratio of paired proportions), or its
    accuracy as a number that is taken as exact (Clopper and Pearson over that number).

    Raises:
        UsageError: no items, sides of unlike length, or a reference that answered nothing
            correctly.

    """
    answers = checked_answers(candidate)
    if isinstance(reference, int | float):
        value, interval = _recovery_of_rate(answers, float(reference))
    else:
        value, interval = _recovery_of_answers(answers, checked_answers(reference, len(answers)))
    return _estimate(
        "task.recovery",
        value,
        interval,
        n=len(answers),
        subject=subject,
        context=context,
        against=against,
    )


def _recovery_of_rate(
    candidate: Sequence[bool], reference: float
) -> tuple[float, tuple[float, float]]:
    rate = checked_share("the reference's accuracy", reference)
    n, n_correct = len(candidate), sum(candidate)
    low, high = _clopper_pearson(n_correct, n)
    return n_correct / n / rate, (low / rate, high / rate)


def _recovery_of_answers(
    candidate: Sequence[bool], reference: Sequence[bool]
) -> tuple[float, tuple[float, float]]:
    if not any(reference):
        raise UsageError(
            f"the reference answers none of {len(reference)} items correctly: "
            "there is nothing to recover. Take an easier task."
        )
    return sum(candidate) / sum(reference), _paired_ratio(candidate, reference)


def answer_spread(candidate: Sequence[bool], reference: Sequence[bool]) -> float:
    """Return the share of items that exactly one side answers correctly.

    It is what `accuracy_gate` needs to know of a pair of models.
    """
    answers = checked_answers(candidate)
    n = len(answers)
    return sum(discordant(answers, checked_answers(reference, n))) / n


# Answers


def checked_answers(correct: Sequence[bool], n: int | None = None) -> tuple[bool, ...]:
    """Return the answers as they are. Raises UsageError for none, for others, and for not `n`."""
    answers = tuple(map(_checked_answer, correct))
    if not answers:
        raise UsageError("no items: an accuracy of nothing says nothing. Give the task's items.")
    if n is not None and len(answers) != n:
        raise UsageError(
            f"{len(answers)} items were answered, {n} are expected: "
            "both sides and the gate need the same items."
        )
    return answers


def _checked_answer(answer: object) -> bool:
    if answer not in (0, 1):
        raise UsageError(f"answers are True or False for each item, {answer!r} is neither.")
    return bool(answer)


def checked_share(name: str, value: float | None) -> float:
    """Return a share as it is. Raises UsageError where it is not above 0 and at most 1."""
    if not isinstance(value, int | float) or not 0 < value <= 1:
        raise UsageError(
            f"{name} is {value!r}: a share of the items above 0 and at most 1 is needed."
        )
    return float(value)


def discordant(candidate: Sequence[bool], reference: Sequence[bool]) -> tuple[int, int]:
    """Count the items that the candidate lost (the reference alone is right), and those it won."""
    outcomes = Counter(zip(candidate, reference, strict=True))
    return outcomes[False, True], outcomes[True, False]


# Intervals


def _clopper_pearson(k: int, n: int) -> tuple[float, float]:
    """Return the exact interval of a share of which k of n were counted."""
    tail = (1 - CONFIDENCE) / 2
    low = 0.0 if k == 0 else _root(lambda p: 1 - binomial_cdf(k - 1, n, p) >= tail)
    high = 1.0 if k == n else _root(lambda p: binomial_cdf(k, n, p) <= tail)
    return low, high


def _root(is_reached: Callable[[float], bool]) -> float:
    """Return the smallest p in [0, 1] for which `is_reached` holds, which stays so above it."""
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if is_reached(middle) else (middle, high)
    return high


def _paired_ratio(candidate: Sequence[bool], reference: Sequence[bool]) -> tuple[float, float]:
    """Return the interval of a ratio of paired proportions (Bonett and Price 2006, equation 8).

    It is made of Wilson intervals of both shares, narrowed by how much the two have in common.
    """
    a, b = sum(candidate), sum(reference)
    _, won = discordant(candidate, reference)
    m = b + won  # items that at least one side answers
    z = _narrowed_z(candidate, reference, m)
    low_a, high_a = _wilson(a, m, z)
    low_b, high_b = _wilson(b, m, z)
    return min(low_a / high_b, a / b), max(high_a / low_b, a / b)


def _narrowed_z(candidate: Sequence[bool], reference: Sequence[bool], m: int) -> float:
    """Return the normal's quantile, narrowed by what both sides of m items have in common."""
    a, b = sum(candidate), sum(reference)
    error = math.sqrt((sum(discordant(candidate, reference)) + 2) / ((a + 1) * (b + 1)))
    z = t_quantile(1 - (1 - CONFIDENCE) / 2, _NORMAL_FREEDOM)
    return z * error / (_log_error(a, m) + _log_error(b, m))


def _log_error(k: int, n: int) -> float:
    """Return the standard error of the log of a share k/n, as if it were alone."""
    return math.sqrt((1 - (k + 1) / (n + 2)) / (k + 1))


def _wilson(k: int, n: int, z: float) -> tuple[float, float]:
    """Return Wilson's interval of a share k/n."""
    middle = 2 * k + z * z
    half = z * math.sqrt(z * z + 4 * k * (1 - k / n))
    scale = 2 * (n + z * z)
    return max(0.0, (middle - half) / scale), (middle + half) / scale


def _estimate(
    name: str,
    value: float,
    interval: tuple[float, float],
    *,
    n: int,
    subject: str,
    context: str,
    against: str = "",
) -> Estimate:
    row = TABLE[name]
    low, high = interval
    return Estimate(
        name=row.name,
        value=value,
        low=min(low, value),
        high=max(high, value),
        n=n,
        unit=row.unit,
        direction=row.direction,
        kind="bootstrap",
        subject=subject,
        context=context,
        at_least=2,
        against=against,
        counted="item",
    )
