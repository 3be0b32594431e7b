"""Conversations by turn: how the first token's time grows with the context. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from statistics import median
from typing import Any

from pytest_llmperf.core.metrics.request_times import ttft_s
from pytest_llmperf.core.trace import RequestTrace


def by_turn(requests: Sequence[RequestTrace]) -> dict[str, Any]:
    """Return the median TTFT and the number of the requests of each turn of conversations."""
    last = max((request.turn for request in requests), default=0)
    turns = [
        [ttft_s(request) for request in requests if request.turn == number]
        for number in range(1, last + 1)
    ]
    answered = list(takewhile(bool, turns))
    return {
        "ttft_by_turn": tuple(map(median, answered)),
        "requests_by_turn": tuple(map(len, answered)),
    }
