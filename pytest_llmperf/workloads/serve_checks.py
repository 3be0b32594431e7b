"""What a Serve workload may not be: each check raises UsageError with the value. Pure."""

from __future__ import annotations

from typing import Any

from pytest_llmperf.core.arrivals import PATTERNS
from pytest_llmperf.core.metrics.slo import Slo
from pytest_llmperf.errors import UsageError, did_you_mean
from pytest_llmperf.workloads.checks import is_count, is_number
from pytest_llmperf.workloads.conversations import Conversations
from pytest_llmperf.workloads.prompts import PromptSet
from pytest_llmperf.workloads.traffic import Traffic

GENERATORS = ("aiperf", "guidellm")
"""Load generators of other projects that may send the requests."""

Work = Any
"""A Serve. It checks itself when it is made, so that its type cannot be imported here."""

_KINDS = (
    ("prompts", PromptSet, "PromptSet"),
    ("slo", Slo | None, "Slo"),
    ("traffic", Traffic | None, "Traffic"),
    ("conversations", Conversations | None, "Conversations"),
)


def check(work: Work) -> None:
    """Raise UsageError for a workload that cannot be sent."""
    _check_counts(work)
    _check_numbers(work)
    _check_loop(work)
    _check_arrivals(work)
    _check_prompts(work)
    if work.conversations is not None and (work.traffic is not None or work.generator):
        raise UsageError(
            "Serve(conversations=…): traffic= and generator= have requests of their own. Keep one."
        )
    if work.generator:
        _check_generator(work)


def _check_counts(work: Work) -> None:
    for name in ("max_new_tokens", "prompt_tokens", "concurrency", "requests"):
        value = getattr(work, name)
        is_unset = value is None and name != "max_new_tokens"
        if not is_unset and not is_count(value):
            raise UsageError(f"Serve({name}={value!r}): a whole number of at least 1 is needed.")


def _check_numbers(work: Work) -> None:
    for name in ("rate", "duration", "burstiness", "timeout"):
        value = getattr(work, name)
        if value is not None and not (is_number(value) and value > 0):
            raise UsageError(f"Serve({name}={value!r}): a number above 0 is needed.")
    if not (is_number(work.ramp_up) and work.ramp_up >= 0):
        raise UsageError(f"Serve(ramp_up={work.ramp_up!r}): seconds are needed, 0 or more.")
    if work.duration is not None and work.ramp_up >= work.duration:
        raise UsageError(
            f"Serve(ramp_up={work.ramp_up:g}, duration={work.duration:g}): "
            "nothing is left to be counted."
        )


def _check_loop(work: Work) -> None:
    is_closed = work.concurrency is not None
    talks = work.conversations
    has_starts = talks is not None and bool(talks.starts_s)
    is_open = work.rate is not None or work.traffic is not None or (has_starts and not is_closed)
    if is_closed and is_open:
        raise UsageError(
            "Serve(): concurrency= is a closed loop, rate= and traffic= are open ones. Keep one."
        )
    if not is_closed and not is_open:
        raise UsageError(
            "Serve(): how is it loaded? Give rate= (requests a second), concurrency=, or traffic=."
        )
    ends = (work.requests, work.duration, work.traffic, work.conversations)
    if all(end is None for end in ends):
        raise UsageError("Serve(): when does it end? Give duration= (seconds) or requests=.")


def _check_arrivals(work: Work) -> None:
    if work.arrivals not in PATTERNS:
        all_patterns = f"Patterns: {', '.join(PATTERNS)}."
        near = did_you_mean(str(work.arrivals), PATTERNS, otherwise=all_patterns)
        raise UsageError(f"Serve(arrivals={work.arrivals!r}) is not known.{near}")
    if work.burstiness != 1 and work.arrivals != "gamma":
        raise UsageError(
            f"Serve(burstiness={work.burstiness:g}) is of arrivals='gamma', "
            f"not of {work.arrivals!r}."
        )


def _check_prompts(work: Work) -> None:
    for name, kind, title in _KINDS:
        value = getattr(work, name)
        if not isinstance(value, kind):
            raise UsageError(f"Serve({name}={value!r}): a {title} is needed.")
    if work.prompt_tokens is None and not work.prompts.texts:
        raise UsageError(
            "Serve(prompt_tokens=None): synthetic prompts have no length of their own; "
            "give one, or texts."
        )


def _check_generator(work: Work) -> None:
    if work.generator not in GENERATORS:
        all_generators = f"Generators: {', '.join(GENERATORS)}."
        near = did_you_mean(str(work.generator), GENERATORS, otherwise=all_generators)
        raise UsageError(f"Serve(generator={work.generator!r}) is not known.{near}")
    needs_count = work.concurrency is not None or work.generator == "guidellm"
    if needs_count and work.requests is None and work.traffic is None:
        raise UsageError(
            f"Serve(generator={work.generator!r}): give requests=, "
            "so that what it did can be counted."
        )
    if work.generator == "guidellm" and (work.traffic is not None or work.arrivals == "gamma"):
        raise UsageError(
            "Serve(generator='guidellm'): it draws its own arrivals, 'poisson' or 'constant'. "
            "aiperf plays others."
        )
