"""Fetches the vendored JavaScript again from npm, or checks it.

Each folder of vendored files has a vendored.json.

    python tools/fetch_vendored.py           # write every file anew; refuse one of another hash
    python tools/fetch_vendored.py --note    # after a version was changed in a vendored.json: fetch
                                             # it and note the new hashes
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("pytest_llmperf/report/html/assets/vendor", "tests/browser")


def main() -> int:
    """Fetch all of them; 1 if a file is not what was noted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--note", action="store_true", help="note the hashes of what was fetched")
    note = parser.parse_args().note
    wrong = [line for folder in FOLDERS for line in fetch(ROOT / folder, note=note)]
    print("\n".join(wrong) or "every vendored file is what was noted")
    return 1 if wrong else 0


def fetch(folder: Path, *, note: bool) -> list[str]:
    """Write the folder's files; sentences on those that differ from their note."""
    noted = json.loads((folder / "vendored.json").read_text(encoding="utf-8"))
    wrong = []
    for name, row in noted.items():
        content = from_npm(name, row["version"], row["in_package"])
        sha256 = hashlib.sha256(content).hexdigest()
        if note:
            row["sha256"] = sha256
        if sha256 != row["sha256"]:
            wrong.append(
                f"{name} {row['version']}: {row['in_package']} has SHA-256 {sha256}, "
                f"noted is {row['sha256']}; not written",
            )
            continue
        (folder / row["file"]).write_bytes(content)
    if note:
        rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in noted.items())
        (folder / "vendored.json").write_text(f"{{\n{rows}\n}}\n", encoding="utf-8")
    return wrong


def from_npm(name: str, version: str, member: str) -> bytes:
    """A file of a package."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", "--pack-destination", folder, f"{name}@{version}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as packed:
            file = packed.extractfile(f"package/{member}")
            assert file is not None, f"{name} {version} has no {member}"
            return file.read()


if __name__ == "__main__":
    raise SystemExit(main())
