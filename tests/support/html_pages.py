"""Pages of the HTML report for its tests: records to make them of, and a parser for them."""

from __future__ import annotations

from html.parser import HTMLParser

from support.history_records import metric, record

from pytest_llmperf.core.record import Environment
from pytest_llmperf.history.sessions import SessionValue
from pytest_llmperf.report.html import Content, overview, page
from pytest_llmperf.report.html.groups import group_views

FP32 = {"strategy": "fp32", "samples": {"throughput": (10.0, 10.2, 9.8, 10.1, 10.0, 9.9)}}
BF16 = {"strategy": "bf16", "samples": {"throughput": (15.0, 15.3, 14.7, 15.1, 15.0, 14.9)}}
WORST = {
    "prompt": 3,
    "position": 1,
    "kl": 0.4,
    "first_divergence": 1,
    "text": "Why?",
    "reference_text": "Because so.",
    "candidate_text": "Because no.",
    "top1": "101",
    "kls": [0.0, 0.4, "nan"],
    "reference_top5": [[" so", 9.0]],
    "candidate_top5": [[" no", 8.0], [" so", 7.5]],
}


def run(name, tok_per_s, weights, **changes):
    """A run of a strategy with a speed and a memory."""
    metrics = (
        metric(value=tok_per_s),
        metric("memory.weights", weights, "B"),
        metric("memory.peak", 1e8, "B"),
    )
    return record(
        name, **{"strategy": name, "metrics": metrics, "outcome": "PASS", "samples": {}, **changes}
    )


def agreement(ok=True, top1=0.99, **more):
    """An agreement with fp32, as a record has it."""
    quantity = {"value": top1, "low": top1 - 0.01, "high": 1.0, "unit": "1"}
    return {
        "reference": "fp32",
        "ok": ok,
        "rule": "containment",
        "n_prompts": 4,
        "n_tokens": 128,
        "top1": quantity,
        **more,
    }


def content(*records, **more):
    """What a report on these records is made of."""
    places = {record.environment_key: record.environment.facts for record in records}
    fields = {
        "created": "2026-11-23T12:00:00+00:00",
        "scope": "a test",
        "store": "sqlite:///h.db",
        "places": places,
        **more,
    }
    return Content(records=records, **fields)


def panels(content):
    """The panels at the top of the page."""
    return overview.panels(content, group_views(content.records))


def session_value(at, value, outcome="PASS", environment_key="e"):
    """A session's value of a throughput, which began at this time."""
    return SessionValue(
        session_id=at,
        record_id=at,
        created=at,
        outcome=outcome,
        environment_key=environment_key,
        value=value,
        unit="tok/s",
    )


LIBRARIES = [page._asset(name) for name in page.SCRIPTS[:2]]
ELSEWHERE = Environment(facts={"device": "cuda"})


class Parsed(HTMLParser):
    """Elements with their attributes, and the text of each script and of everything else.

    Libraries are left out: half a MB.
    """

    def __init__(self, text, *, without=LIBRARIES):
        for library in without:
            text = text.replace(library, "")
        super().__init__(convert_charrefs=True)
        self.elements, self.scripts, self.texts, self._within = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._within = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):  # noqa: ARG002 - the parser calls it so
        self._within = ""

    def handle_data(self, data):
        if self._within == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self._within != "style":
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(self.texts)

    def addresses(self):
        """Everything that a browser would fetch or follow, but anchors in the page and data."""
        addresses = [
            attributes[name]
            for _, attributes in self.elements
            for name in ("src", "href", "action", "data", "poster")
            if attributes.get(name)
        ]
        return [address for address in addresses if not address.startswith(("#", "data:"))]
