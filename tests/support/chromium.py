"""A headless Chromium of Debian's, driven by Selenium.

What it asked the network for, and what axe-core says of a page.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BINARY, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--lang=en",
)

AXE = (Path(__file__).parents[1] / "browser" / "axe.min.js").read_text(encoding="utf-8")
"""The accessibility checker.

Its version and hash are in vendored.json, by which tools/fetch_vendored.py gets it again.
"""


DRAWN_WITHIN_S = 30.0
"""A test looks at what was drawn afterwards, and fails where something was not."""


@contextmanager
def browser(width: int = 1280, height: int = 900, *, dark: bool = False) -> Iterator[Any]:
    """A Chromium with a window of that size.

    Downloads are refused; its console and its network are kept.
    """
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BINARY
    for flag in (*FLAGS, f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        resize(driver, width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        yield driver
    finally:
        driver.quit()


def resize(driver: Any, width: int, height: int = 900) -> None:
    """Give the page a window of that size."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def requested(driver: Any) -> list[str]:
    """Return the addresses that the page requested since the last call.

    Files, data and what was made in the page are left out.
    """
    urls = []
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            urls.append(message["params"]["request"]["url"])
    return [
        url for url in urls if not url.startswith(("file:", "data:", "blob:", "chrome:", "about:"))
    ]


def errors(driver: Any) -> list[str]:
    """Return what the page wrote to its console since the last call: errors, and refusals."""
    return [
        entry["message"]
        for entry in driver.get_log("browser")
        if entry["level"] in ("SEVERE", "WARNING")
    ]


def draw_all(driver: Any) -> None:
    """Every figure, as if it had been scrolled to; wait for those that are drawn later."""
    driver.execute_script("dispatchEvent(new Event('beforeprint'))")
    undrawn = "return [...document.querySelectorAll('figure')].some(f => !f.querySelector('svg'))"
    end_s = time.monotonic() + DRAWN_WITHIN_S
    while driver.execute_script(undrawn) and time.monotonic() < end_s:
        time.sleep(0.05)


def serious_faults(driver: Any) -> list[str]:
    """What axe-core finds that is serious or critical, with the first element of each."""
    driver.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})
    driver.execute_script(AXE)
    ask = (
        "const done = arguments[0]; "
        "axe.run(document, {resultTypes: ['violations']}).then(r => done(r.violations))"
    )
    violations = driver.execute_async_script(ask)
    return [
        f"{v['id']}: {v['nodes'][0]['html'][:150]}"
        for v in violations
        if v["impact"] in ("serious", "critical")
    ]
