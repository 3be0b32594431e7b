"""Writers of one busy store, some of them killed: every record keeps its outcome."""

from __future__ import annotations

from support.store_swarm import swarm

NOTHING = {"lost": 0, "without_outcome": 0, "errors": 0, "waiting": 0}


def test_writers_that_keep_each_other_busy_lose_nothing(tmp_path):
    """Each waits 10 ms for the others, so that entries may go through the spool."""
    result = swarm(tmp_path, writers=3, records=30, kills=2, seed=1)
    assert result.pop("acknowledged") >= 45
    assert result == NOTHING


def test_an_outcome_that_is_missing_is_counted(tmp_path):
    """The check above can fail."""
    result = swarm(tmp_path, writers=1, records=20, kills=0, seed=1, pass_by=True)
    assert result["without_outcome"] == 2
