"""One block of traffic: a load on one server, or on two in turn, once, on fresh servers."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from pytest_llmperf.core.foreign_load import OthersWork, is_beside_load, mean_share
from pytest_llmperf.core.metrics.results import RunResult
from pytest_llmperf.core.metrics.serving import ServingTrace, reduce_serving
from pytest_llmperf.core.trace import RequestTrace
from pytest_llmperf.core.verdicts.loads import Load
from pytest_llmperf.errors import InvalidRun
from pytest_llmperf.session.judges import MeasuringSession
from pytest_llmperf.session.measured import Loadable
from pytest_llmperf.session.serving import ServerRuns
from pytest_llmperf.wire.commands import MeasureBlock
from pytest_llmperf.workloads import Serve


class TrafficBlock:
    """The servers of one block, and what the load on them gave."""

    def __init__(
        self,
        session: MeasuringSession,
        models: Sequence[Loadable],
        workload: Serve,
        command: MeasureBlock,
    ) -> None:
        start_s = time.monotonic()
        self._workload = workload
        self._fresh = command.fresh and session.renew(models)
        self._servers = [
            ServerRuns(
                acquire=model.load,
                workload=workload,
                program="",
                allow_load=True,
                first=command.first_repetition,
            )
            for model in models
        ]
        for server in self._servers:
            session.progress("warming up", server.title, None)
            server.warm_up()
        self._ready_s = time.monotonic() - start_s
        for server in self._servers:
            session.progress("loading the server", server.title, workload.duration)
            server.once()
        self._require_valid()

    def results(self) -> list[RunResult]:
        """Return every quantity of the load on each server. Raises InvalidRun."""
        return [
            reduce_serving([run.trace for run in server.runs], self._workload)
            for server in self._servers
        ]

    @property
    def load(self) -> Load:
        """What the servers cost: one run of the load is one repetition."""
        traces = [run.trace for server in self._servers for run in server.runs]
        return Load(
            fresh=self._fresh,
            ready_s=self._ready_s,
            sampled_s=math.fsum(map(_duration_s, traces)),
            repetitions=1,
            within=0.0,
        )

    @property
    def others(self) -> OthersWork:
        """What other programs did beside the load."""
        runs = [run for server in self._servers for run in server.runs]
        beside = any(is_beside_load(run.marks) for run in runs)
        return OthersWork(beside=beside, share=mean_share(runs))

    def _require_valid(self) -> None:
        for server in self._servers:
            if not server.counts(0):
                reasons = "; ".join(f"{mark.kind}: {mark.detail}" for mark in server.marks)
                raise InvalidRun(f"the load on {server.title} is not valid: {reasons}.")


def _duration_s(trace: ServingTrace) -> float:
    """Return the seconds from the first request due to the end of the last."""
    requests = trace.requests
    start_ns = min(request.t_due_ns for request in requests)
    return (max(map(_end_ns, requests)) - start_ns) / 1e9


def _end_ns(request: RequestTrace) -> int:
    return max(request.ended_ns, request.t_end_ns)
