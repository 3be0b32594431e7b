"""The head of the page: when, where and of what the runs were made, and what judged them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pytest_llmperf.core.change import stored_changes
from pytest_llmperf.core.record import Fact, Record
from pytest_llmperf.report.html.content import Content
from pytest_llmperf.report.html.listing import place_name
from pytest_llmperf.report.html.runs import minute_text

_VERSION = "version_"
_SHOWN_VERSIONS = ("torch", "transformers", "vllm")


def facts(content: Content) -> list[tuple[str, str]]:
    """Return pairs of a label and a text; those of which nothing is known are left out."""
    records = content.records
    if not records:
        return []
    environments = [record.environment.facts for record in records]
    devices = (place_name(content, record.environment_key) for record in records)
    rows = {
        "measured": _span(sorted(record.created for record in records)),
        "commit": _listed(map(_commit, environments)),
        "host": _listed(str(one.get("host") or "") for one in environments),
        "device": _listed(devices),
        "versions": _listed(map(_versions, environments)),
        "judged": content.judged or _listed(map(_against, records)),
    }
    return [(label, text) for label, text in rows.items() if text]


def base_name(against: Mapping[str, object]) -> str:
    """Return the other version as it was asked for, with its commit where it has one."""
    base = against.get("base")
    if isinstance(base, str):  # records of 0.1.0
        return base
    name, commit = str(against.get("value") or "the base"), str(against.get("commit") or "")
    return f"{name} ({commit[:8]})" if commit else name


def _span(times: list[str]) -> str:
    first, last = minute_text(times[0]), minute_text(times[-1])
    return f"{last} UTC" if first == last else f"{first} to {last} UTC"


def _commit(environment: Mapping[str, Fact]) -> str:
    commit = environment.get("git_commit")
    if not commit:
        return ""
    branch = f" on {environment['git_branch']}" if environment.get("git_branch") else ""
    dirty = ", with uncommitted changes" if environment.get("git_dirty") else ""
    return f"{str(commit)[:10]}{branch}{dirty}"


def _versions(environment: Mapping[str, Fact]) -> str:
    shown = [f"{name} {environment.get(_VERSION + name)}" for name in _SHOWN_VERSIONS]
    known = [text for text in shown if not text.endswith(" None")]
    python = environment.get("python") or environment.get("version_python")
    return ", ".join([*known, *([f"Python {python}"] if python else [])])


def _against(record: Record) -> str:
    against = record.extra.get("against")
    if not isinstance(against, Mapping) or not stored_changes(record):
        return ""
    return f"side by side with {base_name(against)}"


def _listed(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(filter(None, texts)))
