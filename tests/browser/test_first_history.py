"""The report of a project's first day, in a real Chromium: nothing covers or cuts another thing."""

from __future__ import annotations

import pytest

pytest.importorskip("selenium", reason="Selenium is not installed")
from selenium.webdriver.common.by import By
from support.chromium import BINARY, DRIVER, browser, draw_all, resize
from support.history_records import record
from support.html_pages import content, session_value

from pytest_llmperf.report.html import build
from pytest_llmperf.report.html.content import History

pytestmark = pytest.mark.skipif(
    not (BINARY and DRIVER), reason="Chromium or its driver is not installed"
)


@pytest.fixture(scope="module")
def chromium():
    with browser() as driver:
        yield driver


COVERED = """
const boxes = [...arguments[0].querySelectorAll('text')].map(e => e.getBoundingClientRect());
return boxes.some((a, i) => boxes.some((b, j) => i < j && a.right > b.left && b.right > a.left
  && a.bottom > b.top && b.bottom > a.top));
"""


@pytest.mark.parametrize("width", [390, 1440])
def test_a_first_history_is_readable(chromium, tmp_path, width):
    """All its sessions are of one day: their times stand apart, and no word or bar is cut."""
    undecided = record("u", test="test_it.py::test_noisy", outcome="UNDECIDED")
    sessions = tuple(
        session_value(f"2026-11-01T00:{minute:02d}:00+00:00", 80.0 + minute % 3)
        for minute in range(12)
    )
    one_day = History(
        key="k",
        test=undecided.test,
        label="",
        workload=undecided.workload_text,
        strategy=undecided.strategy,
        model=undecided.model,
        metric="throughput",
        unit="tok/s",
        sessions=sessions,
    )
    file = tmp_path / "one-day.html"
    file.write_text(build(content(undecided, histories=(one_day,))), encoding="utf-8")
    resize(chromium, width)
    chromium.get(file.as_uri())
    figure = chromium.find_element(By.CSS_SELECTOR, "figure[data-chart=history]")
    chromium.execute_script("arguments[0].scrollIntoView({block: 'center'})", figure)
    draw_all(chromium)
    axis = figure.find_element(By.CSS_SELECTOR, "[data-mark='x-axis tick label']")
    assert not chromium.execute_script(COVERED, axis)
    assert "00:00" in axis.text
    cell = next(
        cell
        for cell in chromium.find_elements(By.CSS_SELECTOR, "#runs td bdi")
        if cell.get_attribute("textContent") == "UNDECIDED"
    )
    chromium.execute_script("arguments[0].scrollIntoView({block: 'center'})", cell)
    assert cell.size["height"] < 30, "broken in two lines"
    nav = chromium.find_element(By.CSS_SELECTOR, "nav")
    fits = "return arguments[0].scrollWidth <= arguments[0].clientWidth"
    assert chromium.execute_script(fits, nav)
