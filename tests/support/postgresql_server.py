"""A private PostgreSQL server on a socket in a temporary folder, for tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_OPTIONS = (
    "-c listen_addresses='' -c fsync=off -c full_page_writes=off "
    "-c max_connections=40 -c shared_buffers=16MB"
)


def binaries() -> Path | None:
    """The folder with initdb and pg_ctl: on the path, or Debian's newest."""
    pg_ctl = shutil.which("pg_ctl")
    folders = (
        [Path(pg_ctl).resolve().parent]
        if pg_ctl
        else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    )
    return next((folder for folder in folders if (folder / "initdb").is_file()), None)


class Server:
    """A running server. `database()` makes an empty database and gives its URL."""

    def __init__(self, folder: Path, call: Callable[..., None]) -> None:
        self._folder = folder
        self._call = call
        self._made = 0

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://postgres@/{database}?host={self._folder}"

    def start(self) -> None:
        """Start it, or start it again, and wait until it takes connections."""
        log = self._folder / "log"
        self._call("pg_ctl", "-w", "-l", str(log), "-o", f"{_OPTIONS} -k {self._folder}", "start")

    def stop(self) -> None:
        """End it as a crash does: every connection breaks."""
        self._call("pg_ctl", "-m", "immediate", "stop")

    def execute(self, statement: str, database: str = "postgres") -> None:
        import psycopg

        with psycopg.connect(
            f"host={self._folder} user=postgres dbname={database}", autocommit=True
        ) as connection:
            connection.execute(statement)

    def database(self) -> str:
        self._made += 1
        name = f"store_{self._made}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)


@contextmanager
def running(folder_of_binaries: Path) -> Iterator[Server]:
    # Short: a socket's path has 107 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix="llmperf-pg-"))
    as_postgres = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    data = folder / "data"

    def call(program: str, *arguments: str) -> None:
        command = [*as_postgres, str(folder_of_binaries / program), "-D", str(data), *arguments]
        subprocess.run(
            command,
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=120,
        )

    if as_postgres:
        shutil.chown(folder, "postgres")
    try:
        call(
            "initdb",
            "-U",
            "postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
        )
        server = Server(folder, call)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
