"""The kernel's out-of-memory counters, in the layouts of cgroup v2 and v1."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_llmperf.workers.kernel_oom import killed_since, read_counters

V1 = "sys/memory/m/memory.oom_control"


def machine(folder: Path, cgroup: str, files: dict[str, str]) -> dict[str, int]:
    (folder / "proc" / "self").mkdir(parents=True)
    (folder / "proc" / "self" / "cgroup").write_text(cgroup, encoding="utf-8")
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    found = read_counters(cgroup_root=folder / "sys", proc=folder / "proc")
    return {str(Path(path).relative_to(folder)): count for path, count in found.items()}


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        (
            "0::/a/b\n",
            {"sys/a/b/memory.events": "oom 4\noom_kill 3\n"},
            {"sys/a/b/memory.events": 3},
        ),
        (
            "4:memory:/m\n0::/\n",
            {"sys/memory/m/memory.oom_control": "under_oom 0\noom_kill 2\n"},
            {"sys/memory/m/memory.oom_control": 2},
        ),
        ("0::/\n", {"proc/vmstat": "nr_free_pages 5\noom_kill 7\n"}, {"proc/vmstat": 7}),
        ("0::/\n", {"sys/memory.events": "oom 1\n", "proc/vmstat": "junk\n"}, {}),
        ("", {}, {}),
    ],
)
def test_counters_are_read_where_the_kernel_keeps_them(tmp_path, cgroup, files, expected):
    """Unreadable, missing and old ones are left out, never taken for 0."""
    assert machine(tmp_path, cgroup, files) == expected


def test_only_a_counter_that_rose_is_evidence():
    """A counter that was not there before says nothing."""
    assert killed_since({"a": 1, "b": 0}, {"a": 1, "b": 0, "new": 5}) is None
    assert "b: oom_kill 0 -> 2" in killed_since({"a": 1, "b": 0}, {"a": 1, "b": 2})
