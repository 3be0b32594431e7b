"""The reference pages hold what the code has.

That is options, markers, fixtures, public names, outcomes and exit codes.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import reference_tables
from site_hook import on_page_markdown

import pytest_llmperf
from pytest_llmperf import names, testing, units
from pytest_llmperf.core.verdicts.judge import Outcome

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
PUBLIC = [
    *pytest_llmperf.__all__,
    *testing.__all__,
    *(name for name, value in vars(units).items() if isinstance(value, int | float)),
]


def page(name: str) -> str:
    return (REFERENCE / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", reference_tables.tables())
def test_the_tables_are_those_of_the_code(name):
    """`python tests/docs/reference_tables.py` writes them anew."""
    assert reference_tables.written(page(name), reference_tables.tables()[name]) == page(name)


def test_a_table_that_is_old_is_seen():
    made = reference_tables.tables()["options.md"]
    old = page("options.md").replace("--llmperf-budget SECONDS", "--llmperf-budget MINUTES")
    assert reference_tables.written(old, made) != old
    with pytest.raises(ValueError, match="has no line"):
        reference_tables.written("no table", made)


def documented(name: str, text: str) -> bool:
    """Whether the page has the name as a heading of its own, or in a table."""
    return bool(re.search(rf"^::: [\w.]+\.{name}$|`{name}`", text, re.MULTILINE))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_on_the_api_page(name):
    assert documented(name, page("api.md"))


def test_a_public_name_that_is_missing_is_seen():
    assert not documented("Decade", page("api.md"))


@pytest.mark.parametrize("name", sorted(names.FIXTURES | {"llmperf_devices", "llmperf_rank"}))
def test_every_fixture_is_listed(name):
    assert f"| `{name}` |" in page("markers-and-fixtures.md")


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_is_explained(outcome):
    assert f"| {outcome} |" in page("outcomes.md")


def test_pipes_of_a_table_are_plain_on_the_site_and_only_there():
    """In a code span of a row; text outside of tables stays as it is."""
    assert on_page_markdown("| `a\\|b` | c\\|d |\n`a\\|b`") == "| `a|b` | c\\|d |\n`a\\|b`"
