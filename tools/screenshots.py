"""Takes the screenshots of docs/report.md in Debian's Chromium, from runs of a real model on an H200: docs/results/raw.

python tools/screenshots.py              # from a report of those records, made now
python tools/screenshots.py REPORT.html  # from a report that is there
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "browser"))

from chromium import browser, draw_all  # noqa: E402 - of the tests

IMAGES = ROOT / "docs" / "images"
MAX_BYTES = 150_000


def main() -> int:
    """Make the report if none was given, and both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, nargs="?")
    given = parser.parse_args().report
    with tempfile.TemporaryDirectory() as folder:
        report = given.resolve() if given is not None else made(Path(folder))
        IMAGES.mkdir(exist_ok=True)
        take(report, "report-light.png", 1160, 760)
        take(report, "report-dark.png", 1160, 700, dark=True, at="#group-1 .part:nth-of-type(2)")
        take(report, "report-narrow.png", 400, 800)
    return 0


def made(folder: Path) -> Path:
    """The stored records imported, and the report that the command makes of them."""
    records = map(str, sorted((ROOT / "docs" / "results" / "raw").glob("*-h200-smollm2*.jsonl")))
    for arguments in (["import", *records], ["report", "--out", "report.html"]):
        command = [sys.executable, "-m", "pytest_llmperf", *arguments, "--store", "sqlite:///history.db"]
        subprocess.run(command, cwd=folder, check=True)
    return folder / "report.html"


def take(report: Path, name: str, width: int, height: int, *, dark: bool = False, at: str = "") -> None:
    """One picture of the page's top, or of what stands at a selector."""
    with browser(width, height, dark=dark) as driver:
        driver.get(report.as_uri())
        draw_all(driver)
        if at:
            scroll_to(driver, at)
        path = IMAGES / name
        driver.save_screenshot(str(path))
        assert path.stat().st_size <= MAX_BYTES, f"{path} has {path.stat().st_size} bytes"


def scroll_to(driver: Any, selector: str) -> None:
    """Twice: what comes into view gets its real height then."""
    for _ in range(2):
        driver.execute_script("document.querySelector('.bar').style.position = 'static'")
        driver.execute_script("document.querySelector(arguments[0]).scrollIntoView()", selector)


if __name__ == "__main__":
    raise SystemExit(main())
