"""Plugins that rerun failures: each attempt is stored as what it was."""

from __future__ import annotations

import pytest

FLAKY = """
TRIES = []

{mark}
def test_speed(llm):
    TRIES.append(1)
    run = llm.run(WORK)
    assert run.throughput > (1000 if len(TRIES) < 3 else 10)
"""


@pytest.mark.own_process
@pytest.mark.parametrize(
    ("plugin", "mark"),
    [
        ("pytest_rerunfailures", "@pytest.mark.flaky(reruns=2)"),
        ("flaky", "@pytest.mark.flaky(max_runs=3)"),
    ],
)
def test_attempts_that_failed_are_stored_as_failed(project, run, opened, plugin, mark):
    """Two attempts fail, the third passes: FAIL, FAIL, PASS, each with its own claims."""
    pytest.importorskip(plugin)
    other = {"pytest_rerunfailures": "flaky", "flaky": "rerunfailures"}[plugin]
    project(FLAKY.format(mark=mark))
    result = run("-p", f"no:{other}")
    assert result.ret == 0
    with opened() as store:
        records = sorted(store.records(), key=lambda record: record.created)
    assert [record.outcome for record in records] == ["FAIL", "FAIL", "PASS"]
    assert [record.extra.get("rerun", 1) for record in records] == [1, 2, 3]
    assert [[claim.outcome for claim in record.claims] for record in records] == [
        ["FAIL"],
        ["FAIL"],
        ["PASS"],
    ]


@pytest.mark.own_process
def test_without_reruns_nothing_is_said_of_them(project, run, opened):
    """A test that runs once."""
    project("\ndef test_speed(llm):\n    llm.run(WORK)\n")
    run()
    with opened() as store:
        (record,) = store.records()
    assert "rerun" not in record.extra
