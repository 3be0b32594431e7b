"""Traffic on a server: requests at a rate (open loop), or one after another on lines (closed loop).

Values only.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from pytest_llmperf.core.arrivals import offsets_s, rescaled
from pytest_llmperf.core.metrics.slo import Slo
from pytest_llmperf.core.misspelt import SuggestingMeta
from pytest_llmperf.errors import UsageError
from pytest_llmperf.workloads.prompts import PromptSet
from pytest_llmperf.workloads.serve_checks import check
from pytest_llmperf.workloads.traffic import Traffic

_SYNTHETIC = PromptSet.synthetic(0)
MAX_REQUESTS = 1_000_000


class Serve(Struct, metaclass=SuggestingMeta, frozen=True, kw_only=True, tag="serve"):
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
        check(self)

    @property
    def open_loop(self) -> bool:
        """Whether requests come whatever the server does."""
        return self.concurrency is None

    def due_s(self) -> tuple[float, ...]:
        """Return when each request of an open loop is due, in seconds from the start.

        Raises UsageError for more than a million.
        """
        if self.traffic is not None:
            return self._recorded_due_s(self.traffic)
        rate = self.rate or 0.0
        if self.duration is not None and rate * self.duration > MAX_REQUESTS:
            raise UsageError(
                f"Serve(rate={rate:g}, duration={self.duration:g}): "
                f"more than {MAX_REQUESTS} requests in one run."
            )
        return offsets_s(
            self.arrivals,
            rate,
            requests=self.requests,
            duration_s=self.duration,
            burstiness=self.burstiness,
            seed=self.seed,
        )

    def _recorded_due_s(self, traffic: Traffic) -> tuple[float, ...]:
        due_s = rescaled(traffic.timestamps_s, self.rate)
        if self.duration is not None:
            due_s = tuple(t_s for t_s in due_s if t_s < self.duration)
        return due_s[: self.requests]

    def at(self, *, rate: float | None = None, concurrency: int | None = None) -> Serve:
        """Return the same load at another rate, or at another concurrency."""
        if (rate is None) == (concurrency is None):
            raise UsageError("Serve.at(): give rate= or concurrency=, one of them.")
        return msgspec.structs.replace(self, rate=rate, concurrency=concurrency)


def describe_serve(work: Serve) -> str:
    """Return a short text for tables: 'serve 4/s poisson p128 n64', 'serve c8 p128 n64'."""
    generator = f" by {work.generator}" if work.generator else ""
    return f"serve {_describe_load(work)} {_describe_lengths(work)}{generator}"


def _describe_lengths(work: Serve) -> str:
    prompt = "text" if work.prompt_tokens is None else work.prompt_tokens
    return f"p{prompt} n{work.max_new_tokens}"


def _describe_load(work: Serve) -> str:
    if work.concurrency is not None:
        return f"c{work.concurrency}"
    if work.traffic is None:
        return f"{work.rate:g}/s {work.arrivals}"
    if work.rate is None:
        return work.traffic.name
    return f"{work.traffic.name} at {work.rate:g}/s"


def recorded_serve(work: Serve) -> dict[str, Any]:
    """Return a workload as it goes on record.

    One of this package's own client looks as it did before there were other generators.
    """
    fields: dict[str, Any] = msgspec.to_builtins(work)
    if not work.generator:
        del fields["generator"]
    return fields
