"""What people write stays text in the HTML report, whatever it contains."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest
from support.history_records import record
from support.html_pages import WORST, Parsed, agreement, content

from pytest_llmperf.core.record import ClaimRecord, Environment
from pytest_llmperf.report.html import build, page
from pytest_llmperf.report.html.content import Unmeasured

HOSTILE = [
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "\x1b[31mred\x1b[0m\x07",
    "\u202eright to left\u202c שלום",
    "long-" * 4000,
    "</style></table></details>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "\ud800 surrogate",
]


def hostile(text):
    """A report in which everything that people write is this text."""
    claim = ClaimRecord(text=text, outcome="FAIL", margin=None, detail=text)
    worst = {
        **WORST,
        "text": text,
        "reference_text": text,
        "candidate_text": text,
        "reference_top5": [[text, 1.0]],
    }
    disagreement = agreement(ok=False, worst=[worst], reasons=[text], rule=text)
    names = {
        "test": text,
        "label": text,
        "model": text,
        "strategy": text,
        "workload_text": text,
        "outcome": "FAIL",
    }
    environment = Environment(facts={"device": text, text: text, "project": text})
    run = record("a", claims=(claim,), environment=environment, **names)
    return content(
        run,
        record(
            "b",
            workload={"type": "agreement"},
            agreement=disagreement,
            environment=environment,
            **names,
        ),
        unmeasured=(
            Unmeasured(test=text, outcome="SKIPPED", reason=text),
            Unmeasured(test=text, outcome="ERROR", reason=text),
        ),
        notes=(text,),
        scope=text,
        store=text,
    )


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_shown_and_adds_no_element(text):
    """The page has the elements of the same page with a harmless text.

    Its text has the hostile one, made visible.
    """
    parsed, harmless = Parsed(build(hostile(text))), Parsed(build(hostile("harmless")))
    assert [tag for tag, _ in parsed.elements] == [tag for tag, _ in harmless.elements]
    assert page.clean(text)[:60].split("\n")[0] in parsed.text
    names = [name for _, attributes in parsed.elements for name in attributes]
    assert not any(name.startswith("on") for name in names)
    assert parsed.addresses() == []


def test_a_name_that_is_not_escaped_is_seen_by_the_test_above():
    """Its control: the same name put into the page as it is adds elements."""
    text = build(hostile("harmless")).replace("<bdi>harmless</bdi>", f"<bdi>{HOSTILE[1]}</bdi>")
    parsed = Parsed(text)
    assert any("onerror" in attributes for _, attributes in parsed.elements)
    assert parsed.addresses() != []


def test_control_characters_and_lone_surrogates_become_visible():
    """ANSI codes are shown as escapes, a long text is cut and says how long it was."""
    assert page.clean("\x1b[31m\x00\x9b\x7f\n") == "\\x1b[31m\\x00\\x9b\\x7f\n"
    assert page.clean("\ud800") == "?"
    assert page.clean("x" * 2000).endswith("… (2,000 characters)")


def test_data_cannot_end_its_element():
    """In JSON of a page, `<`, `>`, `&` and the line separators are escaped.

    It reads back as it was.
    """
    text = str(page.embedded({"a": "</script><!--\u2028&"}))
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": "</script><!--\u2028&"}


def test_the_policy_allows_our_scripts_and_nothing_else():
    """Each script without a type has its hash in the policy; no source of anything is a host."""
    parsed = Parsed(build(content(record("a"))), without=[])
    policy = next(
        attributes["content"]
        for _, attributes in parsed.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    scripts = [body for attributes, body in parsed.scripts if not attributes]
    assert len(scripts) == len(page.SCRIPTS)
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    assert "'unsafe-eval'" not in policy


def test_the_vendored_libraries_are_the_ones_that_were_noted():
    """Each file has the hash, the version and the licence that vendored.json says."""
    for name, row in page.libraries().items():
        text = page._asset(f"vendor/{row['file']}")
        assert hashlib.sha256(text.encode()).hexdigest() == row["sha256"], name
        assert row["version"] in text[:200]
        assert row["licence"] == "ISC"
    assert "Permission to use, copy, modify" in page._asset("vendor/LICENSE-plot.txt")
