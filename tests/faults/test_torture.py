"""Workers that are started and ended at random moments leave nothing behind."""

from __future__ import annotations

import worker_torture

from pytest_llmperf.workers import forkservers, process


def test_forty_workers_ended_at_random_moments_leave_nothing(tmp_path):
    """`benchmarks/worker_torture.py` does the same a thousand times."""
    left = worker_torture.torture(40, tmp_path)
    assert (left.orphans, left.zombies, left.files) == (0, 0, 0)
    assert left.started["forked"] > 20


def test_what_is_left_is_counted(tmp_path, monkeypatch):
    """Nothing that carries a worker's token is killed, and nothing is reaped: it is seen."""
    monkeypatch.setattr(process, "kill_group", lambda _pid, _token: None)
    monkeypatch.setattr(process, "kill_marked", lambda _token: None)
    monkeypatch.setattr(process, "_REAP_S", 0.1)
    monkeypatch.setattr(worker_torture, "SETTLE_S", 0.1)
    monkeypatch.setattr(worker_torture, "ENDINGS", ("kill",))
    monkeypatch.setattr(worker_torture, "MOMENTS", ("open",))
    left = worker_torture.torture(2, tmp_path)
    monkeypatch.undo()
    forkservers.end_all()
    process.kill_marked(forkservers.guardian.token())
    assert left.orphans > 0
    assert left.files > 0
