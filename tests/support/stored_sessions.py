"""Sessions of a scripted project that went before, as the store holds them."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from pathlib import Path

import msgspec

from pytest_llmperf.core.environment import environment_key

TWO = """
def test_speed(llm):
    llm.run(WORK)

def test_other(llm):
    llm.run(Decode(batch=1, prompt_tokens=8, new_tokens=21))
"""
ONE = """
def test_speed(llm):
    llm.run(WORK)
"""
RATES = ("throughput", "ttft.p50", "latency.p50")


def rewritten(opened, change):
    """The store anew, with every record changed."""
    file = Path(".llmperf/history.db")
    with opened() as store:
        records = [change(record) for record in store.records()]
    for path in file.parent.glob(f"{file.name}*"):
        path.unlink()
    with opened() as store:
        for record in records:
            store.add(record)


def with_goodput(record):
    metrics = tuple(
        msgspec.structs.replace(m, value=2.0, reason="") if m.name == "goodput" else m
        for m in record.metrics
    )
    return msgspec.structs.replace(record, metrics=metrics)


def with_metric(record, name, factor):
    metrics = tuple(
        msgspec.structs.replace(m, value=m.value * factor) if m.name == name else m
        for m in record.metrics
    )
    return msgspec.structs.replace(record, metrics=metrics)


def on_another_cpu(record):
    moved = msgspec.structs.replace(
        record.environment, facts=record.environment.facts | {"cpu_model": "Another CPU"}
    )
    return msgspec.structs.replace(
        record, environment=moved, environment_key=environment_key(moved)
    )


def of_project(record, folder):
    """The record as if the project in that folder had made it."""
    facts = record.environment.facts | {"project": folder.name}
    return msgspec.structs.replace(
        record, environment=msgspec.structs.replace(record.environment, facts=facts)
    )


def earlier(record, hours, factor):
    """The record as a session some hours earlier made it, slower by a factor."""
    metrics = tuple(
        msgspec.structs.replace(
            m, value=m.value / factor if m.direction == "higher" else m.value * factor
        )
        if m.name in RATES
        else m
        for m in record.metrics
    )
    created = (datetime.fromisoformat(record.created) - timedelta(hours=hours)).isoformat()
    return msgspec.structs.replace(
        record, id=uuid.uuid4().hex, session_id=f"earlier-{hours}", created=created, metrics=metrics
    )
