"""Traffic on one server, or on two in turn: warm up, run, reduce."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pytest_llmperf import engines
from pytest_llmperf.core.foreign_load import is_beside_load, is_foreign, under_load
from pytest_llmperf.core.loaded import ServingRun
from pytest_llmperf.core.metrics.origin import Origin
from pytest_llmperf.core.metrics.results import RunResult
from pytest_llmperf.core.metrics.servers.life import ServerLife
from pytest_llmperf.core.metrics.serving import client_mark, reduce_serving
from pytest_llmperf.core.trace import Mark
from pytest_llmperf.core.verdicts.processes import Processes
from pytest_llmperf.errors import InvalidRun, SteadyLoad, UsageError
from pytest_llmperf.session.measured import Acquire, Measured
from pytest_llmperf.session.processes.facts import process_facts
from pytest_llmperf.session.processes.renewal import ALIKE, Renewal
from pytest_llmperf.session.sampling import MIN_VALID, Progress
from pytest_llmperf.wire.commands import RunServing
from pytest_llmperf.workers.pool import OpenModel
from pytest_llmperf.workloads import Serve, describe_serve, recorded_serve

WARM_UP = 1_000_000
"""Repetitions from here on are warm-ups: no other repetition has their prompts."""

WARM_UP_REQUESTS = 4
MAX_TRIES = 3
"""Runs of one load, until one has no mark."""

MAX_PAIRS = 2 * MIN_VALID
MANY = 2

ONE_SERVER = "a load is put on one server, as it was started"


@dataclass
class ServerRuns:
    """One server under one load, and every run that was made so far.

    `first` numbers the prompts of the first run.
    """

    acquire: Acquire
    workload: Serve
    program: str
    runs: list[ServingRun] = field(default_factory=list)
    allow_load: bool = False
    first: int = 0

    @property
    def title(self) -> str:
        """What the progress line calls it."""
        return f"{_subject(self.acquire())}: {describe_serve(self.workload)}"

    @property
    def marks(self) -> tuple[Mark, ...]:
        """What is wrong with any of its runs."""
        return tuple(mark for run in self.runs for mark in run.marks)

    def counts(self, index: int) -> bool:
        """Whether nothing is wrong with a run that must not be."""
        return all(self.allow_load and is_foreign(mark) for mark in self.runs[index].marks)

    def warm_up(self) -> None:
        """Send a few requests that no run repeats."""
        _call(self.acquire(), _warm_up(self.workload), WARM_UP + self.first)

    def once(self) -> None:
        """Run the load once more, with prompts of its own."""
        repetition = self.first + len(self.runs)
        self.runs.append(_call(self.acquire(), self.workload, repetition, self.program))


def require_serves(engine: str) -> None:
    """Raise UsageError for an engine that is no server, before anything is loaded."""
    if _serves(engine):
        return
    raise UsageError(
        f"Serve() is a load on a server, and engine {engine!r} is none. "
        f"Servers: engine='server' with options, or {_server_engines()}.",
    )


def _server_engines() -> str:
    return ", ".join(f"server:{name}" for name in engines.SERVERS)


def _serves(engine: str) -> bool:
    return engine in engines.TABLE and engines.engine(engine).load_capabilities().serves


def generator_program(engine: str, workload: Serve, pythons: Mapping[str, str]) -> str:
    """Return the command of the workload's generator, empty where it has none.

    Raises UsageError where it is not installed.
    """
    generator = workload.generator
    if not generator:
        return ""
    _require_address(engine, generator)
    # Only loads with a generator need it.
    from pytest_llmperf.engines.server.generators import find_generator  # noqa: PLC0415

    return str(find_generator(generator, pythons.get(generator)))


def _require_address(engine: str, generator: str) -> None:
    if not engines.engine(engine).load_capabilities().has_address:
        raise UsageError(
            f"Serve(generator={generator!r}): it needs a server's address, "
            f"and engine {engine!r} has none."
        )


def measure_serving(
    acquire: Sequence[Acquire],
    workload: Serve,
    progress: Progress,
    *,
    pair: str | None = None,
    program: str = "",
    processes: int | None = None,
    renewal: Renewal = ALIKE,
    allow_load: bool = False,
) -> list[Measured]:
    """Run a load on one server once, or on two in turn (A B B A …) at least four times each.

    A run with a mark (foreign load, token counts that cannot be right) is made again, as often as
    three times in all; `allow_load` makes nothing of foreign load. `program` is the workload's
    generator; warm-ups are our own client's. Where two or more `processes` are asked for and can be
    had, each run is on a server of its own; else what `renewal` knows of the spread between servers
    stands in.

    Raises:
        InvalidRun: no run without a mark, no successful request, or the client was the limit.
        WorkerError: a server died. NotInEffect: another model answered.
    """
    servers = [
        ServerRuns(acquire=load, workload=workload, program=program, allow_load=allow_load)
        for load in acquire
    ]
    n_fresh = 0 if renewal.why_one or (processes or 1) < MANY else processes or 0
    load_s = [_load_s(server.acquire()) for server in servers]
    _run_all(servers, progress, renewal, n_fresh)
    valid = _valid_indices(servers)
    _require_valid(valid, servers, n_fresh)
    used = valid if pair is not None or n_fresh else valid[:1]
    origins = _origins_of_processes(servers, renewal, len(used) if n_fresh else 0)
    return [
        _measured(server, used, pair, origin, load_s[at])
        for at, (server, origin) in enumerate(zip(servers, origins, strict=True))
    ]


def _run_all(
    servers: Sequence[ServerRuns], progress: Progress, renewal: Renewal, n_fresh: int
) -> None:
    """Run the load until enough runs are valid, each on fresh servers where some are wanted."""
    _warm_up_each(servers, progress)
    while not _enough(servers, n_fresh):
        if n_fresh and servers[0].runs:
            renewal.renew()
            _warm_up_each(servers, progress)
        _run_each_once(servers, servers[0].workload, progress)


def _origins_of_processes(
    servers: Sequence[ServerRuns], renewal: Renewal, n_fresh: int
) -> list[Origin]:
    """Return for each server what its numbers say of processes: those of its runs, or of others."""
    unknown = "" if renewal.alike else renewal.why_one or ONE_SERVER
    of_runs = Processes(sizes=(1,) * n_fresh, unknown=unknown)
    known = renewal.known() if unknown and not n_fresh else [{} for _ in servers]
    return [Origin(processes=of_runs, known=spreads) for spreads in known]


def _warm_up_each(servers: Sequence[ServerRuns], progress: Progress) -> None:
    for server in servers:
        progress("warming up", server.title, None)
        server.warm_up()


def _run_each_once(servers: Sequence[ServerRuns], workload: Serve, progress: Progress) -> None:
    """Run the load on each server once, every second time in reverse order."""
    n_runs = len(servers[0].runs)
    counter = f", {n_runs + 1}" if n_runs else ""
    for server in servers if n_runs % 2 == 0 else reversed(servers):
        progress("loading the server", f"{server.title}{counter}", workload.duration)
        server.once()


def _call(model: OpenModel, workload: Serve, repetition: int, program: str = "") -> ServingRun:
    served = model.call(RunServing(workload=workload, repetition=repetition, program=program)).run
    if repetition >= WARM_UP:
        return served
    limited = client_mark(served.trace, workload.ramp_up)
    if limited is None:
        return served
    return msgspec.structs.replace(served, marks=(*served.marks, limited))


def _warm_up(workload: Serve) -> Serve:
    """Return a few requests of the same shape, on as many lines as the load has."""
    lines = workload.concurrency or WARM_UP_REQUESTS
    return msgspec.structs.replace(
        workload,
        concurrency=lines,
        rate=None,
        traffic=None,
        conversations=None,
        arrivals="poisson",
        burstiness=1.0,
        duration=None,
        ramp_up=0.0,
        requests=max(WARM_UP_REQUESTS, lines),
        prefix_cache=True,
        generator="",
    )


def _min_valid(servers: Sequence[ServerRuns], n_fresh: int) -> int:
    return max(n_fresh, 1 if len(servers) == 1 else MIN_VALID)


def _enough(servers: Sequence[ServerRuns], n_fresh: int) -> bool:
    n_valid = len(_valid_indices(servers))
    is_enough = n_valid >= _min_valid(servers, n_fresh)
    return is_enough or len(servers[0].runs) >= _most_runs(servers, n_fresh)


def _most_runs(servers: Sequence[ServerRuns], n_fresh: int) -> int:
    """Return how often a load is run at most, whatever the runs are marked with."""
    return max(2 * n_fresh, MAX_TRIES if len(servers) == 1 else MAX_PAIRS)


def _valid_indices(servers: Sequence[ServerRuns]) -> tuple[int, ...]:
    """Return the runs (pairs, for two servers) without a mark."""
    n_runs = len(servers[0].runs)
    return tuple(index for index in range(n_runs) if _is_unmarked(servers, index))


def _is_unmarked(servers: Sequence[ServerRuns], index: int) -> bool:
    return all(server.counts(index) for server in servers)


def _require_valid(valid: Sequence[int], servers: Sequence[ServerRuns], n_fresh: int) -> None:
    if len(valid) >= _min_valid(servers, n_fresh):
        return
    marks = [mark for server in servers for mark in server.marks]
    reasons = "; ".join(dict.fromkeys(f"{mark.kind}: {mark.detail}" for mark in marks))
    n_runs = len(servers[0].runs)
    message = f"{len(valid)} of {n_runs} runs of the load are valid: {reasons}."
    raise (SteadyLoad if is_beside_load(marks) else InvalidRun)(message)


def _measured(
    server: ServerRuns,
    used: tuple[int, ...],
    pair: str | None,
    processes: Origin,
    load_s: float | None,
) -> Measured:
    """Reduce the runs that are used. Of `processes`, those and what is known of them count."""
    model, workload = server.acquire(), server.workload
    runs = [server.runs[index] for index in used]
    origin = _origin(model, workload, pair)._replace(
        processes=processes.processes,
        known=processes.known,
        disturbed=any(is_beside_load(run.marks) for run in runs),
    )
    opened = model.opened
    life = ServerLife(startup=opened.startup, memory=opened.memory)
    result = reduce_serving([run.trace for run in runs], workload, load_s, origin, life)
    return Measured(
        model=model,
        effective=model.opened.effective,
        workload=recorded_serve(workload),
        workload_text=describe_serve(workload),
        result=result,
        marks=server.marks,
        pair=pair,
        processes=process_facts(result, origin.processes, origin.known),
        extra=_extra(server.runs, used, result) | under_load([run.marks for run in runs]),
    )


def _load_s(model: OpenModel) -> float | None:
    """Return how long the server took to start. None for one that ran before at a URL."""
    return None if model.plan.option("url") else model.opened.load_s


def _origin(model: OpenModel, workload: Serve, pair: str | None) -> Origin:
    return Origin(
        subject=_subject(model),
        context=f"{describe_serve(workload)} on {model.opened.device_name}",
        pair=pair,
    )


def _extra(runs: Sequence[ServingRun], used: Sequence[int], result: RunResult) -> dict[str, Any]:
    return {
        "repetitions": len(runs),
        "valid": len(used),
        "serving": msgspec.to_builtins(result.serving),
        "server_metrics": [runs[index].samples for index in used],
        "tokens_counted": runs[used[0]].counted,
    }


def _subject(model: OpenModel) -> str:
    return f"{model.plan.engine} {model.plan.strategy}"
