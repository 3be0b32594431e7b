"""Service level objectives of a request: limits on its times, each in seconds. Pure."""

from __future__ import annotations

from msgspec import Struct, structs

from pytest_llmperf.core.metrics.request_times import latency_s, succeeded, tpot_s, ttft_s
from pytest_llmperf.core.trace import RequestTrace
from pytest_llmperf.errors import UsageError


class Slo(Struct, frozen=True, kw_only=True):
    """Limits in seconds that a request must keep, all of them: a request that failed keeps none.

    `ttft` from due to first token, `tpot` the mean time of a token after the first, `latency` from
    due to last token. Raises UsageError for a limit that is not above 0, and where there is none.
    """

    ttft: float | None = None
    tpot: float | None = None
    latency: float | None = None

    def __post_init__(self) -> None:
        for name, limit in self.limits.items():
            _require_seconds(name, limit)
        if not self.limits:
            raise UsageError(
                "Slo(): at least one limit is needed, for example Slo(ttft=0.2, tpot=0.05), "
                "in seconds."
            )

    @property
    def limits(self) -> dict[str, float]:
        """The limits by name, those that there are."""
        fields: dict[str, float | None] = structs.asdict(self)
        return {name: limit for name, limit in fields.items() if limit is not None}

    def met_by(self, request: RequestTrace) -> bool:
        """Whether the request succeeded within every limit.

        An output of one token has no TPOT and keeps that limit. A time that could not be measured
        keeps none.
        """
        if not succeeded(request):
            return False
        times = _times_s(request)
        return all(
            _is_within(times[name], limit) or (name == "tpot" and request.n_output_tokens == 1)
            for name, limit in self.limits.items()
        )

    def __str__(self) -> str:
        """For example 'ttft<=0.2s tpot<=0.05s'."""
        return " ".join(f"{name}<={limit:g}s" for name, limit in self.limits.items())


def _times_s(request: RequestTrace) -> dict[str, float | None]:
    return {"ttft": ttft_s(request), "tpot": tpot_s(request), "latency": latency_s(request)}


def _is_within(time_s: float | None, limit: float) -> bool:
    return time_s is not None and time_s <= limit


def _require_seconds(name: str, limit: object) -> None:
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit > 0:
        raise UsageError(
            f"Slo({name}={limit!r}): seconds above 0 are needed, for example Slo({name}=0.2)."
        )
