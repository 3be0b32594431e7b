"""When a scripted model's tokens come, on its virtual clock."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.trace import Mark, RequestTrace, TokenEvent, Trace
from pytest_llmperf.engines.refusals.parallel import rows_of_a_replica
from pytest_llmperf.engines.scripted import batches
from pytest_llmperf.engines.scripted.options import ScriptedOptions
from pytest_llmperf.engines.scripted.virtual_clock import VirtualClock
from pytest_llmperf.instruments.telemetry import foreign_cpu_marks
from pytest_llmperf.workloads import Batch, Lockstep

GAP_NS = 1_000_000
"""Virtual time between two repetitions."""

NO_CPU_TIME = "the script says cpu=none"

_WARMUP_FACTOR = 2.0
_SLOW_FACTOR = 10.0


class Timing:
    """Gives the trace of a repetition, and lets its time pass on the clock."""

    def __init__(self, options: ScriptedOptions, strategy: str, clock: VirtualClock) -> None:
        self._options = options
        self._strategy = strategy
        self._clock = clock
        self._process_factor: float | None = None
        self._noise: float | None = None

    def of_lockstep(
        self, workload: Lockstep, plan: LoadPlan, repetition: int, factor: float, *, short: bool
    ) -> Trace:
        """Return a batch whose sequences all have their tokens at once.

        With `short`, one token is missing.
        """
        due_ns = self._clock.advance_ns(GAP_NS)
        n_tokens = workload.new_tokens - (1 if short else 0)
        times_ns = [
            _ns(self._options.ttft_s + index * self._options.tpot_s, factor)
            for index in range(n_tokens)
        ]
        self._clock.advance_ns(times_ns[-1] if times_ns else 0)
        request = _request(workload.prompt_tokens or 1, due_ns, times_ns)
        rows = rows_of_a_replica(workload.batch, plan.dp)
        return self._trace(repetition, (request,) * rows)

    def of_batch(
        self, workload: Batch, repetition: int, factor: float, *, continuous: bool
    ) -> Trace:
        """Return many requests of different lengths, in static batches or in continuous ones."""
        due_ns = self._clock.advance_ns(GAP_NS)
        schedule = batches.schedule(
            workload, self._options.ttft_s, self._options.tpot_s, continuous=continuous
        )
        times_ns = [
            [_ns(time_s, factor) for time_s in request_times_s]
            for request_times_s in schedule.times_s
        ]
        self._clock.advance_ns(max(request_times_ns[-1] for request_times_ns in times_ns))
        requests = tuple(
            _request(length, due_ns, request_times_ns)
            for length, request_times_ns in zip(
                batches.prompt_lengths(workload), times_ns, strict=True
            )
        )
        return self._trace(repetition, requests, computed=schedule.computed)

    def factor(self, repetition: int, n_runs: int, faults: set[str]) -> float:
        """Return how much slower than the script's times a run is.

        That is by warm-up, by faults, by its process, and by log-normal noise of the given spread.
        `n_runs` counts the runs of this model, this one included.
        """
        factor = _WARMUP_FACTOR if n_runs <= self._options.warmup else 1.0
        factor *= self._factor_of_process(repetition)
        if "unstable" in faults:
            factor *= 1 + 0.1 * n_runs
        if "slow" in faults:
            factor *= _SLOW_FACTOR
        if not self._options.noise:
            return factor
        seed = f"{self._options.seed}|{self._strategy}|{repetition}|{n_runs}"
        draw = random.Random(seed)  # noqa: S311 - noise, not secrets
        return factor * math.exp(self._options.noise * self._drifted(draw.gauss(0, 1)))

    def _drifted(self, drawn: float) -> float:
        """Return noise of standard deviation 1 that follows the noise of the run before."""
        share = self._options.correlation
        if self._noise is not None:
            drawn = share * self._noise + math.sqrt(1 - share * share) * drawn
        self._noise = drawn
        return drawn

    def _factor_of_process(self, repetition: int) -> float:
        """Return the factor of this process, which follows from the first repetition it runs.

        A process that comes later starts at a later one, so that each has a factor of its own.
        """
        if self._process_factor is None:
            seed = f"{self._options.seed}|{self._strategy}|process|{repetition}"
            draw = random.Random(seed)  # noqa: S311 - noise, not secrets
            self._process_factor = math.exp(draw.gauss(0, self._options.process))
        return self._process_factor

    def _trace(
        self, repetition: int, requests: tuple[RequestTrace, ...], computed: int | None = None
    ) -> Trace:
        return Trace(
            repetition=repetition,
            requests=requests,
            marks=marks(self._options),
            clock="virtual",
            computed=computed,
            cpu_s=cpu_s(self._options, requests),
            no_cpu_s=NO_CPU_TIME if self._options.cpu_s_per_token is None else "",
        )


def cpu_s(options: ScriptedOptions, requests: Sequence[RequestTrace]) -> float | None:
    """Return the CPU time that the script says for these requests, None where it says none."""
    if options.cpu_s_per_token is None:
        return None
    return options.cpu_s_per_token * sum(request.n_output_tokens for request in requests)


def marks(options: ScriptedOptions) -> tuple[Mark, ...]:
    """Return the marks that the script puts on every run, and those that other programs earn."""
    scripted = tuple(Mark(kind=kind, detail="the script says so") for kind in options.marks)
    return (*scripted, *foreign_cpu_marks(options.others or 0.0, 1))


def _request(n_prompt_tokens: int, due_ns: int, times_ns: Sequence[int]) -> RequestTrace:
    events = tuple(TokenEvent(due_ns + time_ns) for time_ns in times_ns)
    return RequestTrace(n_prompt_tokens=n_prompt_tokens, t_due_ns=due_ns, events=events)


def _ns(time_s: float, factor: float) -> int:
    return round(time_s * factor * 1e9)
