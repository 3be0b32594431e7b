"""What a session left in files and in its store, and the published schema that it must be of."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from jsonschema_rs import Draft202012Validator

from pytest_llmperf.core.record_schema import record_schema

VALIDATOR = Draft202012Validator(record_schema())
_NEWEST = 20


def written(folder: Path) -> list[str]:
    """The newest records of each file of a folder and its history.

    Half lines and lines of another kind are none.
    """
    lines = [
        line
        for path in folder.glob("*.jsonl")
        for line in path.read_text("utf-8", "replace").splitlines()[-_NEWEST:]
    ]
    for path in (folder / ".llmperf").glob("*.db"):
        with (
            suppress(sqlite3.DatabaseError),
            closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection,
        ):
            rows = connection.execute(
                "SELECT body FROM llmperf_documents ORDER BY record_seq DESC LIMIT ?", (_NEWEST,)
            )
            lines += [body for (body,) in rows]
    return [
        line
        for line in lines
        if line.startswith("{") and line.endswith("}") and '"schema_version"' in line
    ]
