"""The page: sections into one self-contained file.

Its policy lets nothing reach the network and runs no other script.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import metadata, resources
from typing import Any

import jinja2
import msgspec
from markupsafe import Markup

from pytest_llmperf.core import record_json
from pytest_llmperf.core.record import Record
from pytest_llmperf.report.html import (
    answers,
    effect,
    failures,
    head,
    history,
    listing,
    overview,
    sides,
    strategies,
)
from pytest_llmperf.report.html.blocks import Section
from pytest_llmperf.report.html.content import Content
from pytest_llmperf.report.html.groups import GroupView, group_views

SCRIPTS = ("vendor/d3.min.js", "vendor/plot.umd.min.js", "report.js")
"""In the order in which they run."""

LONGEST = 1000
"""Characters of one text that are shown."""
_SHOWN_ITEMS = 4
_CONTROLS = {
    code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"
}
_ASSETS = resources.files("pytest_llmperf.report.html") / "assets"


def build(content: Content) -> str:
    """Return the report as the text of one HTML file.

    Whatever people named, asked or got is shown as text and never executed.
    """
    samples, n_left_out = listing.samples(content.records)
    groups = group_views(content.records)
    return _template().render(
        content=content,
        title=_title(content),
        facts=head.facts(content),
        line_size=(failures.WIDTH, failures.HEIGHT),
        empty=_empty(content),
        panels=overview.panels(content, groups),
        counts=overview.counts(content),
        sections=sections(content, groups),
        samples=samples,
        left_out=n_left_out,
        shown_items=_SHOWN_ITEMS,
        **_shell(),
    )


def sections(content: Content, groups: Sequence[GroupView]) -> list[Section]:
    """Return every section that has something to show, in the order of the page."""
    records = content.records
    of_groups = [
        strategies.section(group, listing.place_name(content, group.environment_key), position)
        for position, group in enumerate(groups, start=1)
    ]
    others = (
        answers.section(records),
        effect.section(records),
        sides.section(records),
        history.section(content),
        listing.runs(records),
        listing.environments(content),
    )
    return [*of_groups, *(section for section in others if section is not None)]


def _shell() -> dict[str, Any]:
    """Return what every page has, whatever it shows: style, scripts, policy, versions."""
    scripts = [_asset(name) for name in SCRIPTS]
    return {
        "style": Markup(_asset("report.css")),  # noqa: S704 - our own files
        "scripts": [Markup(script) for script in scripts],  # noqa: S704
        "policy": policy(scripts),
        "libraries": {name: row["version"] for name, row in libraries().items()},
        "version": metadata.version("pytest-llmperf"),
    }


def policy(scripts: list[str]) -> str:
    """Return a content security policy: no network at all, and no scripts but these."""
    hashes = " ".join(map(_script_source, scripts))
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
        "connect-src 'none'; base-uri 'none'; form-action 'none'"
    )


def _script_source(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def libraries() -> dict[str, dict[str, str]]:
    """Return version, licence, file and hash of each vendored library, by its name on npm."""
    return msgspec.json.decode(_asset("vendor/vendored.json"), type=dict[str, dict[str, str]])


def clean(text: str) -> str:
    """Return text as it can be shown.

    Control characters (of ANSI codes, too) become escapes, lone surrogates "?"; a long text is cut.
    """
    return _shortened(text).encode("utf-8", "replace").decode("utf-8").translate(_CONTROLS)


def _shortened(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}… ({len(text):,} characters)"


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, finalize=_finalized, undefined=jinja2.StrictUndefined
    )
    environment.filters["embedded"] = embedded
    return environment.from_string(_asset("report.html.j2"))


def _finalized(value: Any) -> Any:
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def embedded(data: Any) -> Markup:
    """Return JSON for a script element.

    Nothing in it can end the element, and no text has a control character.
    """
    text = record_json.encode(_cleaned(data)).decode("utf-8")
    escaped = re.sub("[<>&\u2028\u2029]", _unicode_escape, text)
    return Markup(escaped)  # noqa: S704 - what could end the element is escaped


def _unicode_escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def _cleaned(data: Any) -> Any:
    if isinstance(data, str):
        return clean(data)
    if isinstance(data, dict):
        return {name: _cleaned(value) for name, value in data.items()}
    if isinstance(data, list | tuple) and not _is_all_numbers(data):
        return [_cleaned(element) for element in data]
    return data


def _is_all_numbers(data: Sequence[Any]) -> bool:
    return all(isinstance(element, int | float) for element in data)


def _title(content: Content) -> str:
    projects = dict.fromkeys(_projects(content))
    return f"{', '.join(projects) or 'llmperf'}: LLM performance"


def _projects(content: Content) -> Iterator[str]:
    for facts in content.places.values():
        if facts.get("project"):
            yield str(facts["project"])


def _empty(content: Content) -> str:
    """Return the sentence for a report that has little to show, "" for others."""
    if not content.records:
        return _unmeasured_text(content)
    if not any(map(_is_usable, content.records)):
        return "Every run in this report failed or is not valid."
    return ""


def _unmeasured_text(content: Content) -> str:
    if content.unmeasured:
        return "No test was measured: there are no numbers in this report."
    return f"There are no runs: {content.scope}. A pytest run with llmperf tests makes some."


def _is_usable(record: Record) -> bool:
    return record.outcome not in ("FAIL", "INVALID", "ERROR")


@cache
def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
