"""The labelled series, in the folder that LLMPERF_SERIES names.

Without a name they are looked for in shared/data/series beside the checkout.
"""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

NAME = "LLMPERF_SERIES"


def folder() -> Path | None:
    """Where the series lie, or None."""
    path = os.environ.get(NAME)
    series = (
        Path(path) if path else Path(__file__).resolve().parents[2] / "shared" / "data" / "series"
    )
    return series if series.is_dir() else None


def column(path: str, at: int = 1) -> list[float]:
    """One column of a CSV file in the folder, without its header."""
    with _inside(path).open(encoding="utf-8", newline="") as file:
        return [float(row[at]) for row in list(csv.reader(file))[1:]]


def labels(path: str) -> dict[str, object]:
    """A file of labels in the folder."""
    labels_by_series: dict[str, object] = json.loads(_inside(path).read_text(encoding="utf-8"))
    return labels_by_series


def _inside(path: str) -> Path:
    at = folder()
    if at is None:
        raise FileNotFoundError(f"{path}: no labelled series here; name their folder in {NAME}.")
    return at / path
