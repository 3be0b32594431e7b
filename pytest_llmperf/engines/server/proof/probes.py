"""What a few requests show of a server's settings that it does not say.

A prefix cache shows in a prompt that comes again: by the tokens that the answer counts as cached,
by the server's metrics, or by a first token that comes in half the time. A context shows in a
request for more than it, which is refused.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from pytest_llmperf.engines.server.client import RequestOutcome
from pytest_llmperf.engines.server.proof.self_report import OFF, ON, Reported

PROBE_TOKENS = 256
"""Length of the prompt that is repeated: sixteen of vLLM's blocks, four of SGLang's largest."""

SPEND_S = 5.0
"""Seconds after which no further time of a first token is taken."""

ROUNDS = 3
HIT = 0.5
"""A repeated prompt is a hit where its first token takes no more than this share of a new one's."""

MISS = 0.8
DOMINATED = 3.0
"""How much longer than one of a few tokens a new prompt must take before its time tells."""

USAGE = "probe: usage.cached_tokens of a repeated prompt"
COUNTERS = "probe: metrics around a repeated prompt"
TIMES = "probe: TTFT of a repeated prompt"
REFUSED = "probe: a request past it is refused"

Send = Callable[[int, int], Awaitable[RequestOutcome]]
"""Sends the prompt of a number, with so many tokens, for one token of output."""

Metrics = Callable[[], Awaitable[Mapping[str, float]]]


@dataclass(frozen=True)
class FirstTokens:
    """Seconds to the first token: of new prompts, of the same ones again, and of short ones."""

    new_s: tuple[float, ...]
    again_s: tuple[float, ...]
    short_s: tuple[float, ...]

    def verdict(self) -> str:
        """Return "on" or "off" where the times tell, "" where they do not.

        A short prompt must show that the tokens of a long one take time at all. Then every repeated
        prompt must be fast, or every one slow.
        """
        if not (self.new_s and self.again_s and self.short_s):
            return ""
        if min(self.new_s) < DOMINATED * max(self.short_s):
            return ""
        if max(self.again_s) <= HIT * min(self.new_s):
            return ON
        return OFF if min(self.again_s) >= MISS * max(self.new_s) else ""


REPEATS = 3
"""How often a prompt comes again: behind one address may be several servers, each with a cache."""


async def prefix_cache(send: Send, metrics: Metrics, length: int) -> Reported | None:
    """Return whether a prompt that comes again is taken from a cache; None where nothing tells."""
    start_s = time.monotonic()
    before = await metrics()
    new, *repeats = [await send(0, length) for _ in range(1 + REPEATS)]
    answers = [outcome.answer for outcome in repeats if outcome.answer is not None]
    if new.answer is None or len(answers) < REPEATS:
        return None
    n_cached = [answer.n_cached for answer in answers if answer.n_cached is not None]
    counted = _counted(before, await metrics())
    if any(n_cached):
        return Reported(ON, USAGE)
    # A usage of 0 from a server that counts hits elsewhere is a field that nobody fills.
    if n_cached and counted != ON:
        return Reported(OFF, USAGE)
    if counted:
        return Reported(counted, COUNTERS)
    return await _by_times(send, length, (_ttft_s(new), _ttft_s(repeats[0])), start_s)


def _counted(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Return what the counters say: they must have seen the prompts at all."""
    queries = after.get("prefix_queries", 0.0) - before.get("prefix_queries", 0.0)
    if queries <= 0:
        return ""
    hits = after.get("prefix_hits", 0.0) - before.get("prefix_hits", 0.0)
    return ON if hits > 0 else OFF


async def _by_times(
    send: Send, length: int, first: tuple[float, float], start_s: float
) -> Reported | None:
    new_s, again_s = [first[0]], [first[1]]
    short_s: list[float] = []
    for number in range(1, ROUNDS):
        if time.monotonic() - start_s > SPEND_S:
            return None
        for times, n_tokens in ((new_s, length), (again_s, length), (short_s, 1)):
            outcome = await send(number, n_tokens)
            if outcome.answer is None:
                return None
            times.append(_ttft_s(outcome))
    verdict = FirstTokens(tuple(new_s), tuple(again_s), tuple(short_s)).verdict()
    return Reported(verdict, TIMES) if verdict else None


def _ttft_s(outcome: RequestOutcome) -> float:
    events = outcome.answer.events if outcome.answer is not None else ()
    end_ns = events[0].t_ns if events else outcome.end_ns
    return (end_ns - outcome.sent_ns) / 1e9
