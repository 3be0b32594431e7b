"""Load on a server: requests that come at a rate (open loop) or one after another on several lines (closed loop). Values only."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from pytest_llmperf.core.arrivals import PATTERNS, offsets_s, rescaled
from pytest_llmperf.core.metrics.slo import Slo
from pytest_llmperf.errors import UsageError, did_you_mean
from pytest_llmperf.workloads.prompts import PromptSet

_SYNTHETIC = PromptSet.synthetic(0)
_EXPECTED = 'Expected one object a line, such as {"timestamp": 0.25, "input_length": 120, "output_length": 64}.'
MAX_REQUESTS = 1_000_000
GENERATORS = ("aiperf", "guidellm")
"""Load generators of other projects that may send the requests."""


class Traffic(Struct, frozen=True, kw_only=True):
    """A recorded load: when each request came (seconds, ascending), and the token lengths that it had, where they are known."""

    name: str
    timestamps_s: tuple[float, ...]
    prompt_tokens: tuple[int, ...] = ()
    output_tokens: tuple[int, ...] = ()

    @classmethod
    def from_jsonl(cls, path: str | Path, *, unit_s: float = 1.0) -> Traffic:
        """One JSON object a line, with "timestamp" and, on every line or on none, "input_length" and "output_length" in tokens.

        `unit_s` are the seconds of a timestamp's unit: 0.001 for milliseconds, as in Mooncake's traces.

        Raises:
            UsageError: no such file, no requests, or a line that is not such an object (named by its number), or out of order.

        """
        path = Path(path)
        try:
            lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"trace file {str(path)!r} cannot be read: {error}. Give a UTF-8 JSON-lines file."
            ) from error
        rows = [_row(line, f"{path}:{i}") for i, line in enumerate(lines, start=1)]
        if not rows:
            raise UsageError(f"trace file {str(path)!r} holds no request. {_EXPECTED}")
        return cls(
            name=path.name,
            timestamps_s=_ascending([row["timestamp"] * unit_s for row in rows], str(path)),
            prompt_tokens=_lengths(rows, "input_length", str(path)),
            output_tokens=_lengths(rows, "output_length", str(path)),
        )

    @property
    def content_hash(self) -> str:
        """SHA-256 (16 hex digits) of times and lengths; never the file's name."""
        content = msgspec.json.encode((self.timestamps_s, self.prompt_tokens, self.output_tokens))
        return hashlib.sha256(content).hexdigest()[:16]


class Serve(Struct, frozen=True, kw_only=True, tag="serve"):
    """Streamed requests to a server for `duration` seconds, or `requests` of them.

    Open loop: `rate` requests a second, whether or not the server keeps up, with gaps as `arrivals`
    says ("poisson", "constant", "gamma" of shape `burstiness`), or as in a recorded `traffic` (then
    `rate` rescales it). Closed loop: `concurrency` lines, each of which sends its next request when
    its last is over.

    Prompts are as of Decode: `prompt_tokens` is exact, None keeps texts at their own length. An
    output ends after `max_new_tokens`; with `ignore_eos` (where the server can) not before.
    Requests that are due in the first `ramp_up` seconds are sent and not counted. `slo` are the
    limits that goodput counts by. No prompt is sent twice, so that a prefix cache hits nothing;
    `prefix_cache=True` allows both. A request fails when no message comes for `timeout` seconds.

    `generator` names another project's load generator ("aiperf", "guidellm") that sends the
    requests in place of this package's client; what it kept of each is reduced by the same
    definitions.
    """

    prompts: PromptSet = _SYNTHETIC
    prompt_tokens: int | None = 128
    max_new_tokens: int = 128
    rate: float | None = None
    concurrency: int | None = None
    requests: int | None = None
    duration: float | None = None
    arrivals: str = "poisson"
    burstiness: float = 1.0
    traffic: Traffic | None = None
    ramp_up: float = 0.0
    slo: Slo | None = None
    ignore_eos: bool = True
    prefix_cache: bool = False
    timeout: float = 60.0
    seed: int = 0
    generator: str = ""

    def __post_init__(self) -> None:
        _check_numbers(self)
        _check_loop(self)
        _check_prompts(self)
        _check_generator(self)

    @property
    def open_loop(self) -> bool:
        """Whether requests come whatever the server does."""
        return self.concurrency is None

    def due_s(self) -> tuple[float, ...]:
        """Open loop: when each request is due, from the start.

        Raises UsageError for more than a million.
        """
        if self.traffic is not None:
            due = rescaled(self.traffic.timestamps_s, self.rate)
            kept = due if self.duration is None else tuple(at for at in due if at < self.duration)
            return kept[: self.requests]
        rate = self.rate or 0.0
        if self.duration is not None and rate * self.duration > MAX_REQUESTS:
            raise UsageError(
                f"Serve(rate={rate:g}, duration={self.duration:g}): more than {MAX_REQUESTS} requests in one run."
            )
        return offsets_s(
            self.arrivals,
            rate,
            requests=self.requests,
            duration_s=self.duration,
            burstiness=self.burstiness,
            seed=self.seed,
        )

    def at(self, *, rate: float | None = None, concurrency: int | None = None) -> Serve:
        """The same load at another rate, or at another concurrency."""
        if (rate is None) == (concurrency is None):
            raise UsageError("Serve.at(): give rate= or concurrency=, one of them.")
        return msgspec.structs.replace(self, rate=rate, concurrency=concurrency)


def describe_serve(work: Serve) -> str:
    """Short text for tables: 'serve 4/s poisson p128 n64', 'serve c8 p128 n64'."""
    length = "text" if work.prompt_tokens is None else str(work.prompt_tokens)
    if work.concurrency is not None:
        load = f"c{work.concurrency}"
    elif work.traffic is not None:
        load = work.traffic.name if work.rate is None else f"{work.traffic.name} at {work.rate:g}/s"
    else:
        load = f"{work.rate:g}/s {work.arrivals}"
    by = f" by {work.generator}" if work.generator else ""
    return f"serve {load} p{length} n{work.max_new_tokens}{by}"


def recorded_serve(work: Serve) -> dict[str, Any]:
    """As it goes on record: loads of this package's own client are as they were before there were others."""
    fields: dict[str, Any] = msgspec.to_builtins(work)
    if not work.generator:
        del fields["generator"]
    return fields


def _check_numbers(work: Serve) -> None:
    for name in ("max_new_tokens", "prompt_tokens", "concurrency", "requests"):
        value = getattr(work, name)
        if (value is None and name != "max_new_tokens") or _whole(value):
            continue
        raise UsageError(f"Serve({name}={value!r}): a whole number of at least 1 is needed.")
    for name in ("rate", "duration", "burstiness", "timeout"):
        value = getattr(work, name)
        if value is not None and not (_number(value) and value > 0):
            raise UsageError(f"Serve({name}={value!r}): a number above 0 is needed.")
    if not (_number(work.ramp_up) and work.ramp_up >= 0):
        raise UsageError(f"Serve(ramp_up={work.ramp_up!r}): seconds are needed, 0 or more.")
    if work.duration is not None and work.ramp_up >= work.duration:
        raise UsageError(
            f"Serve(ramp_up={work.ramp_up:g}, duration={work.duration:g}): nothing is left to be counted."
        )


def _check_loop(work: Serve) -> None:
    if work.concurrency is not None and (work.rate is not None or work.traffic is not None):
        raise UsageError(
            "Serve(): concurrency= is a closed loop, rate= and traffic= are open ones. Keep one."
        )
    if work.concurrency is None and work.rate is None and work.traffic is None:
        raise UsageError(
            "Serve(): how is it loaded? Give rate= (requests a second), concurrency=, or traffic=."
        )
    if work.requests is None and work.duration is None and work.traffic is None:
        raise UsageError("Serve(): when does it end? Give duration= (seconds) or requests=.")
    if work.arrivals not in PATTERNS:
        near = did_you_mean(str(work.arrivals), PATTERNS)
        raise UsageError(
            f"Serve(arrivals={work.arrivals!r}) is not known.{near} Patterns: {', '.join(PATTERNS)}."
        )
    if work.burstiness != 1 and work.arrivals != "gamma":
        raise UsageError(
            f"Serve(burstiness={work.burstiness:g}) is of arrivals='gamma', not of {work.arrivals!r}."
        )


def _check_prompts(work: Serve) -> None:
    kinds = (
        ("prompts", PromptSet, "PromptSet"),
        ("slo", Slo | None, "Slo"),
        ("traffic", Traffic | None, "Traffic"),
    )
    for name, kind, wanted in kinds:
        if not isinstance(getattr(work, name), kind):
            raise UsageError(f"Serve({name}={getattr(work, name)!r}): a {wanted} is needed.")
    if work.prompt_tokens is None and not work.prompts.texts:
        raise UsageError(
            "Serve(prompt_tokens=None): synthetic prompts have no length of their own; give one, or texts."
        )


def _check_generator(work: Serve) -> None:
    if not work.generator:
        return
    if work.generator not in GENERATORS:
        near = did_you_mean(str(work.generator), GENERATORS)
        raise UsageError(
            f"Serve(generator={work.generator!r}) is not known.{near} Generators: {', '.join(GENERATORS)}."
        )
    if (
        work.requests is None
        and (work.concurrency is not None or work.generator == "guidellm")
        and work.traffic is None
    ):
        raise UsageError(
            f"Serve(generator={work.generator!r}): give requests=, so that what it did can be counted."
        )
    if work.generator == "guidellm" and (work.traffic is not None or work.arrivals == "gamma"):
        raise UsageError(
            "Serve(generator='guidellm'): it draws its own arrivals, 'poisson' or 'constant'. aiperf plays others."
        )


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _number(value: object) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and value == value  # noqa: PLR0124
        and abs(value) != float("inf")
    )


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: not a JSON object ({error}). {_EXPECTED}") from error
    if not isinstance(row, dict) or not _number(row.get("timestamp")):
        raise UsageError(f"{where}: no number 'timestamp' in {line[:80]!r}. {_EXPECTED}")
    return row


def _ascending(timestamps_s: list[float], source: str) -> tuple[float, ...]:
    for i, (before, after) in enumerate(pairwise(timestamps_s), start=2):
        if after < before:
            raise UsageError(
                f"{source}: request {i} comes before the one above it. Sort the trace by its timestamps."
            )
    return tuple(timestamps_s)


def _lengths(rows: list[dict[str, Any]], key: str, source: str) -> tuple[int, ...]:
    found = [row[key] for row in rows if key in row]
    if found and (len(found) < len(rows) or not all(map(_whole, found))):
        raise UsageError(
            f"trace file {source!r}: {key!r} must be a whole number of at least 1 on every line, or on none."
        )
    return tuple(found)
