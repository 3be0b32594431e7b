"""The pages say what the code does: every option, strategy part, metric and rule is on its page.

No link is dead.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pytest_llmperf.core.agreement.rules import DEFAULT_RULES
from pytest_llmperf.core.metrics.quantities import TABLE as METRICS
from pytest_llmperf.engines import TABLE as ENGINES
from pytest_llmperf.settings.options import OPTIONS
from pytest_llmperf.strategies.table import TABLE as PARTS

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "example_suites").rglob("*.md")]
)
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("0*.md"))


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def dead_links(source: Path) -> list[str]:
    """Relative links of a page whose file, or whose heading in that file, does not exist."""
    dead = []
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", source.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        path = (source.parent / name).resolve() if name else source
        if not path.exists() or (anchor and anchor not in headings(path)):
            dead.append(target)
    return dead


def headings(path: Path) -> set[str]:
    """Anchors of a Markdown page, as its host makes them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_link_is_dead(path):
    """Every relative link leads to a file and, where it names one, to a heading."""
    assert dead_links(path) == []


def test_a_dead_link_is_seen(tmp_path):
    """A missing file and a missing heading are both named."""
    (tmp_path / "there.md").write_text("# One heading\n", encoding="utf-8")
    source = tmp_path / "source.md"
    source.write_text(
        "[a](gone.md) [b](there.md#two) [c](there.md#one-heading) [d](https://example.org)\n",
        encoding="utf-8",
    )
    assert dead_links(source) == ["gone.md", "there.md#two"]


def test_the_readme_is_short():
    """At most 900 words, code and tables included."""
    assert len(page("README.md").split()) <= 900


def unlisted_evidence(folder: Path) -> list[str]:
    """Pages of evidence that the overview of the results does not link to."""
    overview = (folder / "README.md").read_text(encoding="utf-8")
    return [path.name for path in sorted(folder.glob("20*.md")) if f"({path.name})" not in overview]


def test_every_page_of_evidence_is_listed(tmp_path):
    """It is not in the site's navigation; a page that is not listed is named."""
    assert unlisted_evidence(ROOT / "docs" / "results") == []
    (tmp_path / "README.md").write_text("[one](2026-01-01-one.md)\n", encoding="utf-8")
    for name in ("2026-01-01-one.md", "2026-01-02-two.md"):
        (tmp_path / name).touch()
    assert unlisted_evidence(tmp_path) == ["2026-01-02-two.md"]


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_every_metric_is_defined_with_its_formula(metric):
    """Its name, unit and formula id stand in one line of the measurement page."""
    name = re.escape(f"| `{metric.name.removeprefix('agreement.')}` |")
    assert re.search(
        rf"^{name}.*\| `{re.escape(metric.formula)}` \|$", page("docs/measurement.md"), re.MULTILINE
    )


@pytest.mark.parametrize(("kind", "rule"), DEFAULT_RULES.items(), ids=DEFAULT_RULES)
def test_every_default_rule_is_on_the_measurement_page(kind, rule):
    """Kind of variant and rule stand in one line."""
    assert re.search(
        rf"^\| `{re.escape(kind)}` \|.*{re.escape(rule)}", page("docs/measurement.md"), re.MULTILINE
    )


@pytest.mark.parametrize("name", PARTS)
def test_every_strategy_part_is_in_the_tables(name):
    """The strategies page has a row for it, and the README names it as existing."""
    assert re.search(rf"^\| `{re.escape(name)}[`:]", page("docs/strategies.md"), re.MULTILINE)
    assert f"`{name}`" in page("README.md")


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_is_in_the_table(name):
    """With its status."""
    assert f"| `{name}` |" in page("docs/strategies.md")


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_option_is_explained(option):
    """On the page about writing tests."""
    assert f"`{option.flag_name}" in page("docs/writing-tests.md")


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem[:4])
def test_a_decision_is_one_short_page(path):
    """Context, decision, consequences, in under forty lines, and listed."""
    text = path.read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Context",
        "## Decision",
        "## Consequences",
    ]
    assert text.count("\n") < 40
    assert path.name in page("docs/decisions/README.md")
