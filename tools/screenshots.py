"""Takes the screenshots of docs/report.md in Debian's Chromium.

python tools/screenshots.py              # from reports that are made now of docs/results/raw
python tools/screenshots.py REPORT.html  # all of them from a report that is there

The records are of a real model. The strategies are those of an H200. Prompts that disagree and the
roofline are of a CPU, whose records are newer and have them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.chromium import browser, draw_all  # noqa: E402 - of the tests

H200 = "*-h200-smollm2*.jsonl"
CPU = "2026-11-23-cpu-int8.jsonl"
IMAGES = ROOT / "docs" / "images"
MAX_BYTES = 150_000


def main() -> int:
    """Make the reports if none was given, and the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path, nargs="?")
    report = parser.parse_args().report
    with tempfile.TemporaryDirectory() as folder:
        h200, cpu = (
            report.resolve() if report is not None else made(Path(folder), records)
            for records in (H200, CPU)
        )
        IMAGES.mkdir(exist_ok=True)
        take(h200, "report-light.png", 1160, 760)
        take(h200, "report-dark.png", 1160, 700, dark=True, at="#group-1 .part:nth-of-type(2)")
        take(cpu, "report-agreement.png", 1160, 520, at="#agreement .part:nth-of-type(2)")
        take(cpu, "report-usage.png", 1160, 470, at="#group-1 .part:nth-of-type(4)")
    return 0


def made(folder: Path, records: str) -> Path:
    """The stored records imported, and the report that the command makes of them."""
    folder = Path(tempfile.mkdtemp(dir=folder))
    files = map(str, sorted((ROOT / "docs" / "results" / "raw").glob(records)))
    for arguments in (["import", *files], ["report", "--out", "report.html"]):
        command = [
            sys.executable,
            "-m",
            "pytest_llmperf",
            *arguments,
            "--store",
            "sqlite:///history.db",
        ]
        subprocess.run(command, cwd=folder, check=True)
    return folder / "report.html"


def take(
    report: Path, name: str, width: int, height: int, *, dark: bool = False, at: str = ""
) -> None:
    """One picture of the page's top, or of what stands at a selector, unfolded."""
    with browser(width, height, dark=dark) as driver:
        driver.get(report.as_uri())
        if at:
            driver.execute_script(
                "document.querySelectorAll(`${arguments[0]} details`)"
                ".forEach(each => each.open = true)",
                at,
            )
        draw_all(driver)
        if at:
            scroll_to(driver, at)
        path = IMAGES / name
        driver.save_screenshot(str(path))
        assert path.stat().st_size <= MAX_BYTES, f"{path} has {path.stat().st_size} bytes"


def scroll_to(driver: Any, selector: str) -> None:
    """Twice: what comes into view gets its real height then.

    The bar, which would cover the top, is let go.
    """
    script = """
    document.querySelector('.bar').style.position = 'static';
    document.documentElement.style.scrollPaddingTop = '0px';
    document.querySelector(arguments[0]).scrollIntoView();
    """
    for _ in range(2):
        driver.execute_script(script, selector)


if __name__ == "__main__":
    raise SystemExit(main())
