"""pytest-benchmark's `--benchmark-json`: times of rounds, each already of one iteration."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from pytest_llmperf.core.benchmark import TIME
from pytest_llmperf.history.foreign.fields import Fields
from pytest_llmperf.history.foreign.results import Result, Value

TOOL = "pytest-benchmark"
NEWEST = 5
"""Major version up to which its files are read."""


def recognized(fields: Fields) -> bool:
    """Whether it is a file of pytest-benchmark."""
    return {"machine_info", "benchmarks"} <= set(fields.names)


def read(fields: Fields, created: str) -> Iterator[Result]:
    """Read every benchmark of a file. Raises UsageError."""
    version = fields.text("version")
    major = version.partition(".")[0]
    if not major.isdecimal() or int(major) > NEWEST:
        raise fields.newer("version", version, f"up to version {NEWEST}")
    machine = fields.at("machine_info")
    cpu = machine.maybe("cpu")
    facts = {
        "cpu_model": (cpu.text("brand_raw", "") if cpu is not None else "") or None,
        "hostname": machine.text("node", "") or None,
        "python": machine.text("python_version", "") or None,
    }
    commit = fields.maybe("commit_info")
    if commit is not None:
        facts["git_commit"] = commit.text("id", "") or None
    for benchmark in fields.rows("benchmarks"):
        yield _result(benchmark, fields.text("datetime", created), facts)


def _result(benchmark: Fields, created: str, facts: dict[str, str | None]) -> Result:
    stats = benchmark.at("stats")
    rounds = stats.numbers("data")
    return Result(
        tool=TOOL,
        name=benchmark.text("fullname"),
        model="none",
        created=_with_zone(created),
        work={"group": benchmark.text("group", "") or None},
        values=[
            Value(
                name=TIME.name,
                value=stats.number("median"),
                field="median",
                n=round(stats.number("rounds")),
            )
        ],
        speed=TIME.name,
        samples={TIME.name: rounds} if rounds else {},
        facts=facts,
        extra={"iterations": round(stats.optional("iterations") or 1)},
    )


def _with_zone(text: str) -> str:
    """Return a time that its versions before 4 wrote without a zone, in UTC."""
    try:
        return datetime.fromisoformat(text).isoformat()
    except ValueError:
        return text
