"""The HTML report in a real Chromium: drawn, filtered, hovered, offline, accessible.

What people wrote stays text.
"""

from __future__ import annotations

import csv
import json
import re
import time

import pytest

pytest.importorskip("selenium", reason="Selenium is not installed")
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait
from support.chromium import (
    BINARY,
    DRIVER,
    browser,
    draw_all,
    errors,
    requested,
    resize,
    serious_faults,
)
from support.project import HOSTILE, everything, records, write

pytestmark = pytest.mark.skipif(
    not (BINARY and DRIVER), reason="Chromium or its driver is not installed"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def made(folder):
    return records(folder)


@pytest.fixture(scope="module")
def page(folder, made):
    return write(everything(made), folder / "everything.html")


@pytest.fixture(scope="module")
def chromium():
    with browser() as driver:
        yield driver


@pytest.fixture
def opened(chromium, page):
    """The page, freshly loaded in a wide window."""
    resize(chromium, 1280)
    requested(chromium)
    errors(chromium)
    chromium.get(page.as_uri())
    return chromium


def visible(driver, selector):
    return [each for each in driver.find_elements(By.CSS_SELECTOR, selector) if each.is_displayed()]


def injected(driver):
    """What hostile text would have become: another title, or an element that no report has."""
    title = driver.title if driver.title == "owned" else ""
    strange = driver.execute_script(
        "return [...document.querySelectorAll('img, iframe, object, embed, svg script')]"
        ".map(e => e.outerHTML)",
    )
    return [*filter(None, [title]), *strange]


def test_every_figure_is_drawn_without_an_error_and_nothing_goes_to_the_network(opened):
    """All kinds of chart are there, each an image with a text in its place."""
    draw_all(opened)
    label = "f.querySelector('svg')?.getAttribute('aria-label') ?? ''"
    ask = f"return [...document.querySelectorAll('figure')].map(f => [f.dataset.chart, {label}])"
    found = opened.execute_script(ask)
    assert {kind for kind, _ in found} == {
        "pareto",
        "ratios",
        "strips",
        "lines",
        "shares",
        "roofline",
        "ranks",
        "pairs",
        "history",
    }
    assert all(label for _, label in found), found
    assert errors(opened) == []
    assert requested(opened) == []


OVERLAPS = """
const beside = (a, b) => a.right <= b.left + 1 || b.right <= a.left + 1;
const above = (a, b) => a.bottom <= b.top + 3 || b.bottom <= a.top + 3;
const apart = (a, b) => beside(a, b) || above(a, b);
const drawn = 'figure[data-chart=pareto], figure[data-chart=roofline]';
return [...document.querySelectorAll(drawn)].flatMap(figure => {
  const texts = [...figure.querySelectorAll('[data-mark=text] text')];
  const names = texts.map(each => [each.textContent, each.getBoundingClientRect()]);
  return names.flatMap(([a, x], i) =>
    names.slice(i + 1).filter(([, y]) => !apart(x, y)).map(([b]) => `${a} on ${b}`));
});
"""


def test_names_in_a_picture_do_not_cover_each_other(opened):
    """Those that find no room are left to the pointer. Moved onto each other, they are seen."""
    draw_all(opened)
    assert opened.execute_script(OVERLAPS) == []
    marks = "figure[data-chart=pareto] [data-mark=text]"
    together = (
        f"document.querySelectorAll('{marks}').forEach(mark => mark.removeAttribute('transform'));"
        f"document.querySelectorAll('{marks} text')"
        ".forEach(label => label.setAttribute('transform', ''));"
    )
    # In one script: a chart that is drawn anew in between would put them apart again.
    assert opened.execute_script(together + OVERLAPS)


def test_the_report_of_a_session_opens_offline(chromium, made, folder):
    """The file that --llmperf-html wrote; the skipped test's hostile reason is in it, as text."""
    chromium.get((folder / "report.html").as_uri())
    assert "1 test failed" in chromium.find_element(By.ID, "overview").text
    assert "<img src=x onerror=" in chromium.find_element(By.ID, "overview").text
    assert injected(chromium) == []
    assert requested(chromium) == []


def test_a_report_with_an_external_address_would_be_seen(chromium, page, folder):
    """The control: without the policy an image asks the network.

    With it, it is refused, and the console says so.
    """
    text = page.read_text(encoding="utf-8")
    outside = text.replace("<main>", '<main><img src="http://127.0.0.1:9/x.png">')
    for name, body in (("free", re.sub(r"<meta http-equiv[^>]*>", "", outside)), ("held", outside)):
        (folder / f"{name}.html").write_text(body, encoding="utf-8")
    requested(chromium)
    chromium.get((folder / "free.html").as_uri())
    assert requested(chromium) == ["http://127.0.0.1:9/x.png"]
    errors(chromium)
    chromium.get((folder / "held.html").as_uri())
    # The console hears of it after the page is there.
    WebDriverWait(chromium, 60).until(
        lambda driver: any("Content Security Policy" in line for line in errors(driver))
    )


def test_hostile_names_stay_text(opened):
    """In tables, panels, charts and labels of charts."""
    draw_all(opened)
    assert injected(opened) == []
    assert "<img src=x" in opened.find_element(By.ID, "history").text


def test_a_name_that_is_not_escaped_would_be_seen(chromium, page, folder):
    """The control: the name put into the page as it is becomes an element."""
    text = page.read_text(encoding="utf-8").replace("<main>", f"<main><p>{HOSTILE}</p>")
    (folder / "unescaped.html").write_text(text, encoding="utf-8")
    chromium.get((folder / "unescaped.html").as_uri())
    assert injected(chromium) != []
    errors(chromium)


def test_what_is_typed_filters_rows_and_parts(opened):
    """Rows without the words go, those with them stay, and their number is said."""
    field = opened.find_element(By.ID, "filter")
    rows = "#runs tbody tr"
    every = len(visible(opened, rows))
    field.send_keys("tp2")
    kept = visible(opened, rows)
    assert 0 < len(kept) < every
    assert all("tp2" in row.text for row in kept)
    assert opened.find_element(By.ID, "matches").text == f"{len(kept)} of {every} runs"
    field.send_keys(" nothing-has-this")
    assert visible(opened, rows) == []
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(Keys.DELETE)
    assert len(visible(opened, rows)) == every


def test_outcomes_filter_rows(opened):
    """A pressed outcome leaves the rows of that outcome."""
    opened.find_element(By.CSS_SELECTOR, "[data-only=FAIL]").click()
    kept = visible(opened, "#runs tbody tr")
    assert {row.get_attribute("data-outcome") for row in kept} == {"FAIL"}
    opened.find_element(By.CSS_SELECTOR, "[data-only=FAIL]").click()
    assert len(visible(opened, "#runs tbody tr")) > len(kept)


def test_hover_names_the_strategy(opened):
    """The tip of a point of the Pareto picture has its name, speed and memory."""
    figure = opened.find_element(By.CSS_SELECTOR, "figure[data-chart=pareto]")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", figure)
    draw_all(opened)
    dots = figure.find_elements(By.CSS_SELECTOR, "[data-mark=dot] circle")
    assert (
        figure.find_elements(By.CSS_SELECTOR, "[data-mark=tip] text, [aria-label=tip] text") == []
    )
    data = json.loads(figure.find_element(By.TAG_NAME, "script").get_attribute("textContent"))
    at = [point["name"] for point in data["points"]].index("fp32")
    ActionChains(opened).move_to_element(dots[at]).perform()
    tip = figure.find_element(By.CSS_SELECTOR, "[data-mark=tip], [aria-label=tip]").get_attribute(
        "textContent"
    )
    assert "fp32" in tip
    assert "tok/s" in tip
    assert "memory" in tip


def test_hover_on_a_history_says_what_happened(opened):
    """The tip follows the pointer along the sessions; the change of level is named where it was."""
    figure = opened.find_element(By.CSS_SELECTOR, "figure[data-chart=history]")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", figure)
    draw_all(opened)
    svg = figure.find_element(By.CSS_SELECTOR, "svg")
    middle = (54 + (svg.size["width"] - 54 - 32) * 30 / 59) - svg.size["width"] / 2
    ActionChains(opened).move_to_element_with_offset(svg, round(middle), 0).perform()
    tip = figure.find_element(By.CSS_SELECTOR, "[data-mark=tip], [aria-label=tip]").get_attribute(
        "textContent"
    )
    assert "session 31 on 2026-10-01" in tip
    assert "change of level: 100 → 90 tok/s" in tip


def test_hover_on_a_ratio_has_its_interval(opened):
    """As docs/report.md says of every figure."""
    figure = opened.find_element(By.CSS_SELECTOR, "figure[data-chart=ratios]")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", figure)
    draw_all(opened)
    dot = figure.find_elements(By.CSS_SELECTOR, "[data-mark=dot] circle")[0]
    ActionChains(opened).move_to_element(dot).perform()
    tip = figure.find_element(By.CSS_SELECTOR, "[data-mark=tip], [aria-label=tip]").get_attribute(
        "textContent"
    )
    assert "\u00d7" in tip


def test_the_latest_sessions_of_a_history_can_be_drawn_alone(opened):
    """50 of 60: the first day goes from the axis."""
    draw_all(opened)
    chart = opened.find_element(By.CSS_SELECTOR, "figure[data-chart=history] svg")
    before = chart.get_attribute("textContent")
    opened.find_element(By.CSS_SELECTOR, "#range option[value='50']").click()
    after = opened.find_element(By.CSS_SELECTOR, "figure[data-chart=history] svg").get_attribute(
        "textContent"
    )
    assert "2026-09-01" in before
    assert "2026-09-01" not in after
    assert "2026-09-11" in after


def test_raw_samples_can_be_downloaded(opened, folder):
    """As CSV: a line for each sample of each run, with its unit."""
    opened.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)}
    )
    opened.find_element(By.CSS_SELECTOR, "[data-download=csv]").click()
    file = folder / "llmperf-samples.csv"
    deadline_s = time.monotonic() + 20
    while not file.is_file() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert {row["unit"] for row in rows if row["metric"] == "throughput"} == {"tok/s"}
    assert min(float(row["value"]) for row in rows) > 0
    assert any(row["test"] == HOSTILE.replace("\x1b", "\\x1b") for row in rows)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (400, "light")])
def test_axe_finds_no_serious_fault(opened, width, scheme):
    """With everything drawn and opened, in both colour schemes and on a telephone."""
    resize(opened, width)
    opened.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    opened.get(opened.current_url)
    opened.execute_script(
        "document.querySelectorAll('details').forEach(each => { each.open = true })"
    )
    draw_all(opened)
    assert serious_faults(opened) == []


def test_axe_sees_a_serious_fault(opened):
    """The control: a field without a name, and grey on grey."""
    bad = '<input><p style="color:#999;background:#888">grey</p>'
    opened.execute_script(
        "document.querySelector('main').insertAdjacentHTML('afterbegin', arguments[0])", bad
    )
    assert {each.partition(":")[0] for each in serious_faults(opened)} == {
        "label",
        "color-contrast",
    }


def test_a_narrow_window_scrolls_in_one_direction(opened):
    """On 400 px tables scroll in themselves; the page does not."""
    resize(opened, 400)
    opened.get(opened.current_url)
    draw_all(opened)
    width, window = opened.execute_script(
        "return [document.documentElement.scrollWidth, innerWidth]"
    )
    assert width <= window == 400


def test_a_keyboard_reaches_the_filter_and_opens_what_is_folded(opened):
    """Tab goes to the skip link, the sections, the filter and the outcomes.

    Enter presses and opens.
    """
    seen = []
    for _ in range(25):
        ActionChains(opened).send_keys(Keys.TAB).perform()
        active = opened.switch_to.active_element
        seen.append(active.get_attribute("id") or active.get_attribute("class") or active.tag_name)
        if "chip" in seen[-1]:
            break
    assert seen[0] == "skip"
    assert "filter" in seen
    ActionChains(opened).send_keys(Keys.ENTER).perform()
    assert opened.switch_to.active_element.get_attribute("aria-pressed") == "true"
    fold = opened.find_element(By.CSS_SELECTOR, "details > summary")
    opened.execute_script("arguments[0].focus()", fold)
    ActionChains(opened).send_keys(Keys.ENTER).perform()
    assert fold.find_element(By.XPATH, "..").get_attribute("open") is not None


def test_without_javascript_everything_is_in_tables(opened):
    """With scripts off, texts in place of charts and tables are shown.

    What needs a script is not.
    """
    opened.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        opened.get(opened.current_url)
        text = opened.find_element(By.TAG_NAME, "body").text
        assert visible(opened, "#filter, button") == []
    finally:
        opened.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert "Charts and filters need JavaScript" in text
    assert "strategies by speed and memory" in text
    assert "Comparisons" in text


def test_in_print_the_controls_go_and_the_charts_stay(opened):
    """Print style: no filter bar; every figure was drawn before."""
    draw_all(opened)
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert visible(opened, ".bar, button") == []
        assert len(visible(opened, "figure svg")) > 5
    finally:
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
