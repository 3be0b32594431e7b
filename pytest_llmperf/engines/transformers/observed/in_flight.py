"""How many requests of a batch were in flight at once, from the times of their tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from pytest_llmperf.core.trace import TokenEvent

CONTINUOUS, ONE_BY_ONE = "continuous", "one request at a time"


@dataclass(frozen=True, kw_only=True)
class InFlight:
    """Of `requests` that had several tokens at most `most` were between first and last at once."""

    requests: int
    most: int

    @classmethod
    def of(cls, requests: Iterable[Sequence[TokenEvent]]) -> InFlight:
        """Count them; a request of one token is over when it has begun, and is left out."""
        spans = [(events[0].t_ns, events[-1].t_ns) for events in requests if len(events) > 1]
        return cls(requests=len(spans), most=_most_at_once(spans))

    @property
    def batching(self) -> str:
        """Say how they were batched. One request alone tells nothing, and counts as continuous."""
        return ONE_BY_ONE if self.requests > 1 and self.most == 1 else CONTINUOUS

    @property
    def note(self) -> str:
        """Say how many were in flight together."""
        return f"at most {self.most} of {self.requests} requests were decoded at once"


def _most_at_once(spans: Sequence[tuple[int, int]]) -> int:
    """Return the most spans that share a moment; those that touch do not."""
    changes = chain.from_iterable(((start, 1), (end, -1)) for start, end in spans)
    most = running = 0
    for _, change in sorted(changes):
        running += change
        most = max(most, running)
    return most
