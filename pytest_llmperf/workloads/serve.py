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
from pytest_llmperf.workloads.conversations import Conversations
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

    With `conversations` a line, or an arrival, is a conversation: `concurrency` of them are under
    way at once, or `rate` start a second (or as their trace says), and each sends its turns one
    after another, its context with them. `requests` are then those of all turns.

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
    conversations: Conversations | None = None
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

    def starts_s(self) -> tuple[float, ...]:
        """Return when each conversation of an open loop starts, in seconds; () of a closed one."""
        talks = self.conversations
        if talks is None or self.concurrency is not None:
            return ()
        if talks.starts_s:
            return rescaled(talks.starts_s, self.rate)
        n = len(talks.turns)
        return offsets_s(
            self.arrivals,
            self.rate or 0.0,
            requests=n,
            duration_s=None,
            burstiness=self.burstiness,
            seed=self.seed,
        )

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


def _recorded_conversations(talks: Conversations) -> dict[str, Any]:
    """Return conversations as they go on record: their hash and counts, not what is said."""
    return {
        "name": talks.name,
        "content": talks.content_hash,
        "conversations": len(talks.turns),
        "turns": talks.n_turns,
        "system_tokens": talks.system_tokens,
    }


def describe_serve(work: Serve) -> str:
    """Return a short text for tables: 'serve 4/s poisson p128 n64', 'serve c8 p128 n64'."""
    generator = f" by {work.generator}" if work.generator else ""
    return f"serve {_describe_load(work)} {_describe_lengths(work)}{generator}"


def _describe_lengths(work: Serve) -> str:
    if work.conversations is not None:
        return f"{len(work.conversations.turns)} conversations"
    prompt = "text" if work.prompt_tokens is None else work.prompt_tokens
    return f"p{prompt} n{work.max_new_tokens}"


def _describe_load(work: Serve) -> str:
    if work.concurrency is not None:
        return f"c{work.concurrency}"
    if work.rate is None and work.conversations is not None:
        return work.conversations.name
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
    if work.conversations is None:
        del fields["conversations"]
    else:
        fields["conversations"] = _recorded_conversations(work.conversations)
    if work.traffic is not None and not work.traffic.blocks:
        del fields["traffic"]["blocks"], fields["traffic"]["block_tokens"]
    return fields
