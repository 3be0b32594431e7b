"""Settings of a server that answers: what it says, what probes show, and what neither proves."""

from __future__ import annotations

import json

import pytest

from pytest_llmperf.core.metrics.servers.life import ServerLife
from pytest_llmperf.core.metrics.serving import reduce_serving
from pytest_llmperf.engines.server.proof import probes
from pytest_llmperf.errors import NotInEffect
from pytest_llmperf.workloads import Serve

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


LOGS = """
INFO [default_loader.py:262] Loading weights took 0.02 seconds
INFO [monitor.py:34] torch.compile takes 0.01 s in total
INFO [kv_cache_utils.py:864] CPU KV cache size: 4,096 tokens
"""


def test_a_servers_own_life_is_in_the_results_of_its_traffic(start, tmp_path):
    """Phases by its log, the first answer by our clock, the cache, and what was preempted."""
    (tmp_path / "logs.txt").write_text(LOGS)
    session = start(f"--logs {tmp_path / 'logs.txt'} --fault preempt --first 2")
    work = Serve(concurrency=1, requests=4, prompt_tokens=4, max_new_tokens=4, timeout=5)
    opened = session.opened()
    life = ServerLife(startup=opened.startup, memory=opened.memory)
    result = reduce_serving([session.serve(work, 0).trace], work, opened.load_s, life=life)
    assert float(result.startup.weights) == 0.02
    assert float(result.startup.compile) == 0.01
    parts = ("process", "weights", "compile", "warm")
    total = sum(float(getattr(result.startup, part)) for part in parts)
    assert total == pytest.approx(float(result.load_time), rel=1e-6)
    assert float(result.memory.kv_tokens) == 4096
    assert float(result.preemptions) == 4
    assert float(result.unpreempted) == 0
    assert float(result.prefix_hits) == 0


def test_a_server_that_ran_already_has_no_start(start):
    """Neither its log nor its start is ours to see."""
    running = start()
    other = start(command="", url=running._server.base)
    opened = other.opened()
    assert opened.startup is None
    assert opened.memory.reasons["kv_tokens"] == "the server does not say it"
