"""Two servers side by side: how often equal ones fail, and slower ones are found.

python benchmarks/two_servers.py [--sessions 20]

Whole comparisons by rule B, with pairs of servers that are started anew, on virtual clocks:
servers differ from start to start, and their noise is autocorrelated. The slower one takes 10 %
more time a token. Seeds are fixed. Prints a row for each load and noise, and exits 1 unless equal
servers never fail and slower ones fail in 18 of 20.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.scripted_sides import (
    SERVED,
    TEST,
    LocalSession,
    ScriptedBase,
    Servers,
    session_model,
)

from pytest_llmperf.against.comparison import Comparison
from pytest_llmperf.core.verdicts.judge import Outcome, claims
from pytest_llmperf.gate.gate import Regression
from pytest_llmperf.session.judges import Measurement
from pytest_llmperf.settings.options import OPTIONS
from pytest_llmperf.settings.settings import read
from pytest_llmperf.workers import this_host
from pytest_llmperf.workloads import describe, describe_serve
from pytest_llmperf.workloads.serve import Serve

EQUAL, SLOWER = "ttft=50ms,tpot=10ms", "ttft=50ms,tpot=11ms"
NOISES = (
    "noise=0.01,correlation=0.5,process=0.01",
    "noise=0.02,correlation=0.7,process=0.01",
    "noise=0.02,correlation=0.5,process=0.02",
)
LEAST_FOUND = 0.9


class Found(NamedTuple):
    """The outcomes of equal servers, and of one that is slower, over some sessions."""

    equal: Counter[Outcome]
    slower: Counter[Outcome]

    @property
    def met(self) -> bool:
        """Whether no equal server failed, and nearly every slower one did."""
        n = self.slower.total()
        return not self.equal[Outcome.FAIL] and self.slower[Outcome.FAIL] >= LEAST_FOUND * n


def find(work, noise: str, sessions: int, folder: Path) -> Found:
    """Compare equal and unequal servers as often as asked."""
    kinds = (Servers(work, EQUAL, EQUAL, noise), Servers(work, SLOWER, EQUAL, noise))
    with nobody_waits():
        equal, slower = (
            Counter(outcome(servers, seed, folder) for seed in range(sessions)) for servers in kinds
        )
    return Found(equal, slower)


def outcome(servers: Servers, seed: int, folder: Path) -> Outcome:
    """The verdict of one session that compares two servers."""
    here, there = servers.scripts(seed)
    ours, work = _session(folder), servers.work
    base = ScriptedBase(_session(folder), there, folder=folder, work=work)
    comparison = Comparison(base, ours)
    comparison._draw.seed(seed)  # noqa: SLF001 - the order inside a pair, the same in every run
    comparison.begin(TEST, None)
    model = session_model(ours, here)
    ours.recorder.begin(TEST, "")
    (record,) = ours.recorder.add(ours._sample([model], work))  # noqa: SLF001 - as Session.measure
    with claims() as findings, suppress(Regression):
        comparison.judge([record], {}, Measurement(models=[model], workload=work, again=list))
    (finding,) = findings
    return finding.outcome


def _session(folder: Path) -> LocalSession:
    values = {"store": "none", "budget": "2"}
    raw = {
        option.name: values.get(
            option.name, [] if option.many else False if option.flag else option.default
        )
        for option in OPTIONS
    }
    return LocalSession(read(lambda option: raw[option.name], folder), lambda *_: None)


@contextmanager
def nobody_waits() -> Iterator[None]:
    """Lease no device: the clocks are virtual."""
    held, this_host.exclusive = this_host.exclusive, lambda *_, **__: nullcontext()
    try:
        yield
    finally:
        this_host.exclusive = held


def main() -> int:
    """Print a row for each load and noise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=20)
    sessions = parser.parse_args().sessions
    met = True
    with tempfile.TemporaryDirectory() as folder:
        for work in SERVED:
            name = describe_serve(work) if isinstance(work, Serve) else describe(work)
            for noise in NOISES:
                found = find(work, noise, sessions, Path(folder))
                met = met and found.met
                print(f"{'met' if found.met else 'MISSED':6} {name:24} {noise}")
                for title, outcomes in (("equal", found.equal), ("+10 %", found.slower)):
                    counts = ", ".join(f"{key.value} {n}" for key, n in outcomes.most_common())
                    print(f"       {title}: {counts}", flush=True)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
