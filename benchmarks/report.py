"""The HTML report's size, the time to make it, and its first paint in headless Chromium.

python benchmarks/report.py [--series 200] [--runs 1000] [--out FOLDER]

Fills one store with a suite of 40 runs, and one with a long history: copies of a real record (of a
scripted run) whose throughput has noise and, in every tenth series, a change of level. The newest
copy of a series is whole; older ones hold three metrics and no samples, because a report reads no
more of them. Then times the reading of the store and the making of the page. Writes report.json and
report.md to the folder (default build/benchmarks) and exits 1 unless every bar is met. Without
Chromium the first paint is left out, and said to be.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import store as filling
from sqlalchemy import insert

from pytest_llmperf.core.record import Record
from pytest_llmperf.history.rows import document, metric_rows, record_row
from pytest_llmperf.history.store import Store, open_store
from pytest_llmperf.history.tables import DOCUMENTS, METRICS, RECORDS
from pytest_llmperf.plugin.files.content import content, newest_of_each
from pytest_llmperf.report.html import build

SUITE = 40
BARS = {"suite": (2.0, 1.0), "history": (12.0, 10.0)}
"""Megabytes and seconds."""
PAINT_S = 2.0
PAINTED = """
const done = arguments[0];
const look = entries => entries
    .filter(each => each.name === 'first-contentful-paint')
    .forEach(each => done(each.startTime));
new PerformanceObserver(list => look(list.getEntries())).observe({type: 'paint', buffered: true});
"""
OLDER_METRICS = ("throughput", "ttft.p50", "memory.peak")
STRATEGIES = (
    "fp32",
    "bf16",
    "fp16",
    "int8",
    "nf4",
    "bf16+static-cache",
    "bf16+compile",
    "fp16-mixed",
)


def main() -> int:
    """Make both reports; say which bars are missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=200)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="llmperf-report-") as text:
        folder = Path(text)
        model = filling.measured(folder)
        rows = [
            *measure("suite", folder, model, SUITE, 1),
            *measure("history", folder, model, options.series, options.runs),
        ]
        for name in BARS:
            shutil.copy(folder / f"{name}.html", options.out / f"report-{name}.html")
    (options.out / "report.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    (options.out / "report.md").write_text(filling.markdown(rows), encoding="utf-8")
    print(filling.markdown(rows))
    return 0 if all(row["met"] for row in rows) else 1


def measure(
    name: str, folder: Path, model: Record, series: int, runs: int
) -> list[dict[str, object]]:
    """Size, time and first paint of the report on so many series of so many runs."""
    url, (megabytes, seconds) = f"sqlite:///{name}.db", BARS[name]
    fill(url, folder, model, series, runs)
    page = folder / f"{name}.html"
    with open_store(url, folder=folder) as opened:
        took, busy = min(write_page(opened, page) for _ in range(3))
    size = page.stat().st_size / 1e6
    histories = f"{series} series of {runs} run{'s' if runs > 1 else ''}"
    rows: list[dict[str, object]] = [
        {
            "what": f"size, {histories}",
            "seen": f"{size:.2f} MB",
            "bar": f"<= {megabytes:g} MB",
            "met": size <= megabytes,
        },
        {
            "what": f"reading and building, {histories}",
            "seen": f"{took:.2f} s ({busy:.2f} s of CPU)",
            "bar": f"<= {seconds:g} s",
            "met": took <= seconds,
        },
    ]
    return rows + _paint_rows(page, histories)


def _paint_rows(page: Path, histories: str) -> list[dict[str, object]]:
    """Return the row of the first paint; none without a browser."""
    paint_s = first_paint_s(page)
    if paint_s is None:
        print("no Chromium: the first paint is left out", flush=True)
        return []
    return [
        {
            "what": f"first paint, {histories}",
            "seen": f"{paint_s:.2f} s",
            "bar": f"<= {PAINT_S:g} s",
            "met": paint_s <= PAINT_S,
        }
    ]


def write_page(store: Store, page: Path) -> tuple[float, float]:
    """Seconds from the open store to the file: on the clock, and of the CPU."""
    began, busy = time.perf_counter(), time.process_time()
    records = newest_of_each(store, store.series())
    page_content = content(records, scope="benchmark", store=store, root=page.parent)
    page.write_text(build(page_content), encoding="utf-8")
    return time.perf_counter() - began, time.process_time() - busy


def fill(url: str, folder: Path, model: Record, series: int, runs: int) -> None:
    """Copies of the record, an hour apart, each series by its own level and noise."""
    draw = random.Random(0)  # noqa: S311 - an order, not a secret
    with open_store(url, folder=folder) as store:
        for at in range(series):
            first = at * runs
            numbered = [
                (first + n + 1, copy(model, at, n, draw, last=n == runs - 1)) for n in range(runs)
            ]
            _store(store, numbered)


def _store(store: Store, numbered: list[tuple[int, Record]]) -> None:
    """Write records by their numbers at once: single transactions would take minutes."""
    records = [record_row(record) | {"seq": seq} for seq, record in numbered]
    metrics = [row for seq, record in numbered for row in metric_rows(record, seq)]
    documents = [{"record_seq": seq, "body": document(record)} for seq, record in numbered]
    with store._database.writing() as connection:  # noqa: SLF001
        connection.execute(insert(RECORDS), records)
        connection.execute(insert(METRICS), metrics)
        connection.execute(insert(DOCUMENTS), documents)


def copy(model: Record, series: int, n: int, draw: random.Random, *, last: bool) -> Record:
    """The record as run `n` of a series, the last one whole."""
    level = (1 + series / 100) * (0.9 if series % 10 == 0 and n > 600 else 1.0)
    factor = level * math.exp(0.02 * draw.gauss(0, 1))
    metrics = tuple(
        msgspec.structs.replace(m, value=m.value * factor)
        if m.name == "throughput" and m.value
        else m
        for m in model.metrics
        if last or m.name in OLDER_METRICS
    )
    return msgspec.structs.replace(
        model,
        id=f"r{series}-{n}",
        test=f"tests/test_speed_{series // 20}.py::test_speed_of_a_long_named_thing[{series}]",
        strategy=STRATEGIES[series % len(STRATEGIES)],
        session_id=f"s{n}",
        created=time.strftime(
            "%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(1_700_000_000 + 3600 * n + series)
        ),
        outcome="FAIL" if draw.random() < 0.01 else "PASS",
        metrics=metrics,
        **({} if last else {"samples": {}, "effective": None, "warm_up": {}, "extra": {}}),
    )


def first_paint_s(page: Path) -> float | None:
    """Median of three first contentful paints, in headless Chromium.

    None where it or Selenium is missing.
    """
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        return None
    from selenium import webdriver  # noqa: PLC0415 - only where there is a browser
    from selenium.webdriver.chrome.service import Service  # noqa: PLC0415

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    try:
        return statistics.median(_paint_s(driver, page) for _ in range(3))
    finally:
        driver.quit()


def _paint_s(driver: Any, page: Path) -> float:
    driver.get(page.as_uri())
    return driver.execute_async_script(PAINTED) / 1000


if __name__ == "__main__":
    raise SystemExit(main())
