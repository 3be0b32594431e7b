"""Settings of a server that answers: what it says, what probes show, and what neither proves."""

from __future__ import annotations

import json

import pytest

from pytest_llmperf.engines.server.proof import probes
from pytest_llmperf.errors import NotInEffect

IDS = {"prompt_ids": True, "probe": True}


def setting(session, name):
    """One setting of a server as its description has it."""
    rows = session.describe().effective.server_settings
    return next(row for row in rows if row.name == name)


def test_a_prefix_cache_shows_in_a_prompt_that_comes_again(start):
    """By the answers' own counts, else by metrics, else by the time of the first token."""
    by_usage = setting(start("--fault says-cached --first 3", **IDS), "prefix_cache")
    assert (by_usage.value, by_usage.origin) == ("on", probes.USAGE)
    by_metrics = setting(start(**IDS), "prefix_cache")
    assert (by_metrics.value, by_metrics.origin) == ("on", probes.COUNTERS)
    by_times = setting(start("--no-metrics --cold-ms 300", **IDS), "prefix_cache")
    assert (by_times.value, by_times.origin) == ("on", probes.TIMES)


def test_no_cache_shows_too_and_what_shows_neither_is_not_proved(start):
    """A server whose tokens take no time could hide a cache."""
    absent = setting(start("--no-metrics --cold-ms 300 --fault no-cache", **IDS), "prefix_cache")
    assert (absent.value, absent.origin) == ("off", probes.TIMES)
    silent = start("--no-metrics", **IDS)
    assert setting(silent, "prefix_cache").value == ""
    assert "prefix_cache" in silent.describe().effective.unproved


def test_what_was_asked_for_must_be_what_is_shown(start):
    """By option `expect`, or by the flags of the command."""
    with pytest.raises(NotInEffect, match=r"prefix_cache is on .* asked for off"):
        start(expect="prefix_cache=off", **IDS)
    session = start(expect="tensor_parallel=2", **IDS)
    assert setting(session, "tensor_parallel").asked == "2"
    assert any("tensor_parallel (asked for 2)" in n for n in session.describe().effective.notes)


def test_a_context_is_refused_past_its_end(start, tmp_path):
    """One that is said and not kept stays what is said; one that is kept is proved."""
    expected = start("--context 64", expect="context=64", **IDS)
    assert setting(expected, "context").origin == probes.REFUSED
    endless = start(expect="context=64", **IDS)
    assert setting(endless, "context").value == ""
    pages = tmp_path / "pages.json"
    pages.write_text(json.dumps({"/v1/models": {"data": [{"id": "tiny", "max_model_len": 64}]}}))
    said = setting(start(f"--context 64 --pages {pages}", **IDS), "context")
    assert (said.value, said.origin) == ("64", f"/v1/models; {probes.REFUSED}")
    only_said = setting(start(f"--pages {pages}", **IDS), "context")
    assert (only_said.value, only_said.origin) == ("64", "/v1/models")
