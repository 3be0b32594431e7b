"""Which metrics are gated, and how much worse each may become."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping

from pytest_llmperf.core.benchmark import TIME
from pytest_llmperf.core.metrics.quantities import leaves
from pytest_llmperf.core.misspelt import METRIC_MEANINGS
from pytest_llmperf.errors import UsageError, did_you_mean

DEFAULT_LIMITS: dict[str, float] = {
    "throughput": 0.03,
    "ttft.p50": 0.03,
    "memory.weights": 0.01,
    TIME.name: 0.03,
}
"""Metric -> the share that it may be worse by.

Each further noisy metric makes all the others harder to fail (Holm).
"""

COUNTED = frozenset({"memory.weights", "memory.kv_cache", "memory.kv_tokens"})
"""Metrics that are counted, not measured: one session is enough to compare them with."""

_OFF = frozenset({"", "off", "no", "false", "0"})
_ON = frozenset({"on", "yes", "true", "1"})
_HOW = "Write METRIC:LIMIT,…, for example throughput:5%,ttft.p50:10%, or nothing for the defaults"


def parse_gate(text: str) -> dict[str, float] | None:
    """The limits of `--llmperf-gate[=METRIC:LIMIT,…]`; None where nothing is gated.

    Raises UsageError.
    """
    if text.strip().lower() in _OFF:
        return None
    if text.strip().lower() in _ON:
        return dict(DEFAULT_LIMITS)
    if _is_path(text):
        raise UsageError(
            f"--llmperf-gate={text!r} is a path: pytest took it for the option's value. "
            f"Write --llmperf-gate=throughput:5%, or put --llmperf-gate behind {text!r}."
        )
    return parse_limits(text, "--llmperf-gate")


def _is_path(text: str) -> bool:
    """Whether a text names tests, and no metrics: no metric ends in .py or has a slash."""
    file = text.partition("::")[0]
    is_folder = os.path.isdir(file)  # noqa: PTH112 - no name is too long to be asked for
    return file.endswith(".py") or "/" in file or (is_folder and file not in gateable())


def parse_limits(text: str, option: str) -> dict[str, float]:
    """The limits of `METRIC:LIMIT,…`; a metric without a limit has its default.

    Raises UsageError that names the option.
    """
    return checked_limits(
        dict(_one(item, option) for item in text.split(",") if item.strip()), option
    )


def gateable() -> list[str]:
    """Names of the metrics that have a worse side: those of a run, and the time of a benchmark."""
    return [name for name, row in (*leaves(), (TIME.name, TIME)) if row.direction != "none"]


def checked_limits(limits: Mapping[object, object], where: str) -> dict[str, float]:
    """Limits by metric, each a share between 0 and 1.

    Raises UsageError that names `where` they were written.
    """
    known = gateable()
    checked: dict[str, float] = {}
    for name, limit in limits.items():
        if not isinstance(name, str) or name not in known:
            raise UsageError(f"{where}: metric {name!r} is not known.{_hint(str(name), known)}")
        checked[name] = _share(name, limit, where)
    return checked


def _hint(name: str, known: Collection[str]) -> str:
    return did_you_mean(
        name, known, METRIC_MEANINGS, otherwise=f"{_HOW}. Metrics: {', '.join(known)}."
    )


def _share(name: str, limit: object, where: str) -> float:
    share = _of_text(limit) if isinstance(limit, str) else limit
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise UsageError(
            f"{where}: the limit of {name} is {limit!r}. "
            "Write it as '5%' or 0.05, above 0 and below 100 %."
        )
    return float(share)


def _of_text(text: str) -> float | None:
    """The share of a text such as '5%' or '0.05'; None for one that has no number."""
    try:
        return float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        return None


def _one(item: str, option: str) -> tuple[str, float]:
    name, colon, limit = item.strip().partition(":")
    if not colon:
        return name, DEFAULT_LIMITS.get(name, DEFAULT_LIMITS["throughput"])
    share = _of_text(limit)
    if share is None:
        raise UsageError(f"{option}: {item.strip()!r} has no limit that is a number. {_HOW}.")
    return name, share
