"""The environment of a record: facts, what must match, what differs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.history_records import TEXT

from pytest_llmperf.core.environment import MUST_MATCH, covariates, differences, environment_key
from pytest_llmperf.core.record import Environment
from pytest_llmperf.devices.host import (
    cpu_model,
    cpu_quota,
    host_facts,
    memory_limit_bytes,
    project_facts,
)
from pytest_llmperf.errors import UsageError
from pytest_llmperf.session import environment as module
from pytest_llmperf.session.environment import collect_environment
from pytest_llmperf.settings.project import find_project

_FACT = st.none() | st.booleans() | st.integers(-10, 10) | st.sampled_from([1.0, 2.0, 2.5]) | TEXT
_NAMES = st.sampled_from([*MUST_MATCH, "kernel", "version_torch"])
_ENVIRONMENTS = st.builds(Environment, facts=st.dictionaries(_NAMES, _FACT))


@given(_ENVIRONMENTS, _ENVIRONMENTS)
def test_keys_are_equal_exactly_when_nothing_comparable_differs(a, b):
    """The message that names what differs and the key can never disagree."""
    assert (environment_key(a) == environment_key(b)) == (differences(a, b) == [])


@given(_ENVIRONMENTS)
def test_a_fact_that_is_missing_is_one_that_is_unknown(environment):
    """Older records without a fact compare as if it were None."""
    without_unknown = Environment(
        facts={name: fact for name, fact in environment.facts.items() if fact is not None}
    )
    assert environment_key(environment) == environment_key(without_unknown)


@pytest.mark.parametrize("name", MUST_MATCH)
def test_each_comparable_fact_changes_the_key_and_is_named(name):
    """A change in any one row of the table forbids the comparison."""
    a, b = (
        Environment(facts={name: "here", "kernel": "1"}),
        Environment(facts={name: "there", "kernel": "2"}),
    )
    assert environment_key(a) != environment_key(b)
    assert differences(a, b) == [(name, "here", "there")]


def test_versions_are_covariates():
    """They are reported as different and leave the key alone."""
    a, b = ({"device": "cpu", "version_torch": version} for version in ("2.12", "2.13"))
    assert environment_key(Environment(facts=a)) == environment_key(Environment(facts=b))
    assert covariates(Environment(facts=a), Environment(facts=b)) == [
        ("version_torch", "2.12", "2.13")
    ]


def test_the_environment_survives_storing():
    """A key made before a record is written equals one made from the record read back."""
    from support.history_records import record

    from pytest_llmperf.core import record_json

    made = collect_environment(
        {"device": "cpu", "torch_threads": 2}, {"torch": "2.13.0"}, Path.cwd()
    )
    back = record_json.decode(record_json.encode(record("a", environment=made)))
    assert environment_key(back.environment) == environment_key(made)


def test_facts_of_the_worker_win_and_are_plain_values(tmp_path):
    """The worker saw the device; lists become text, versions get their prefix."""
    facts = collect_environment(
        {"cpu_model": "seen by the worker", "links": [1, 2]}, {"torch": "2.13"}, tmp_path
    ).facts
    assert facts["cpu_model"] == "seen by the worker"
    assert (facts["links"], facts["version_torch"]) == ("[1, 2]", "2.13")
    assert (facts["git_commit"], facts["git_dirty"]) == (None, None)


def test_this_host_is_described():
    """Against psutil and the operating system as second opinions."""
    facts = host_facts()
    assert facts["cpu_cores"] == psutil.cpu_count()
    assert 0 < facts["cpu_cores_limit"] <= os.cpu_count()
    assert (
        0
        < facts["memory_limit_bytes"]
        <= psutil.virtual_memory().total
        == facts["memory_total_bytes"]
    )
    assert facts["kernel"] == os.uname().release


def test_environment_loads_no_torch():
    """The pytest process collects it."""
    code = (
        "import sys; from pathlib import Path; "
        "from pytest_llmperf.session.environment import collect_environment as c; "
        "c({}, {}, Path('.')); "
        "print(*(name in sys.modules for name in ('torch', 'sqlalchemy', 'psutil')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["False", "False", "True"]


# Control groups


def machine(folder: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    """A /proc and a /sys/fs/cgroup as a container would show them."""
    (folder / "proc" / "self").mkdir(parents=True)
    (folder / "proc" / "self" / "cgroup").write_text(own)
    for name, content in files.items():
        file = folder / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return folder / "proc", folder / "cgroup"


V1 = "3:cpuset:/\n4:memory:/pod/me\n5:cpu,cpuacct:/pod/me\n0::/\n"


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        (
            "0::/a/b\n",
            {
                "cpu.max": "max 100000\n",
                "a/cpu.max": "200000 100000\n",
                "a/b/cpu.max": "400000 100000\n",
            },
            2.0,
        ),
        (
            V1,
            {"cpu/pod/me/cpu.cfs_quota_us": "50000\n", "cpu/pod/me/cpu.cfs_period_us": "100000\n"},
            0.5,
        ),
        (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("0::/\n", {"cpu.max": "rubbish\n"}, None),
        ("", {}, None),
    ],
)
def test_the_tightest_cpu_quota_counts(tmp_path, own, files, quota):
    """Version 1 and 2, own group and ancestors; no quota is no limit."""
    assert cpu_quota(*machine(tmp_path, own, files)) == quota


@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        ("0::/\n", {"memory.max": "1073741824\n"}, 2**30),
        ("0::/a\n", {"memory.max": "max\n", "a/memory.max": "4096\n"}, 4096),
        (
            V1,
            {
                "memory/pod/memory.limit_in_bytes": "8192\n",
                "memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            8192,
        ),
        (V1, {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ("", {}, None),
    ],
)
def test_the_tightest_memory_limit_counts(tmp_path, own, files, limit):
    """The huge number that version 1 writes for 'none' is none."""
    assert memory_limit_bytes(*machine(tmp_path, own, files)) == limit


def test_a_quota_limits_the_cores_of_the_host_facts(tmp_path):
    """Half a core stays half a core; limits above the machine do not count."""
    facts = host_facts(
        *machine(tmp_path, "0::/\n", {"cpu.max": "50000 100000\n", "memory.max": str(2**55)})
    )
    assert facts["cpu_cores_limit"] == 0.5
    assert facts["memory_limit_bytes"] == facts["memory_total_bytes"]
    assert cpu_model(tmp_path / "proc") != ""


# The tested project


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_commit_branch_and_dirtiness_of_a_project(tmp_path, monkeypatch):
    """A changed tracked file is dirt, a new report or store beside it is not.

    The branch is the CI system's, which checks out a commit.
    """
    for name in ("GITHUB_HEAD_REF", "GITHUB_REF_NAME", "CI_COMMIT_BRANCH"):
        monkeypatch.delenv(name, raising=False)
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "x")
    (tmp_path / "report.json").write_text("{}")
    assert project_facts(tmp_path) == {
        "git_commit": git(tmp_path, "rev-parse", "HEAD"),
        "git_dirty": False,
        "git_branch": git(tmp_path, "rev-parse", "--abbrev-ref", "HEAD"),
    }
    (tmp_path / "code.py").write_text("2")
    assert project_facts(tmp_path)["git_dirty"] is True
    git(tmp_path, "checkout", "-q", "--detach")
    assert project_facts(tmp_path)["git_branch"] is None
    monkeypatch.setenv("GITHUB_REF_NAME", "faster")
    assert project_facts(tmp_path)["git_branch"] == "faster"


def test_without_git_nothing_is_claimed(tmp_path, monkeypatch):
    """No repository and no git program are unknown, not clean."""
    unknown = {"git_commit": None, "git_dirty": None, "git_branch": None}
    assert project_facts(tmp_path) == unknown
    monkeypatch.setenv("PATH", "")
    assert project_facts(Path(__file__).parent) == unknown


def test_host_and_project_are_asked_once(tmp_path, monkeypatch):
    """A record costs no git process after the first."""
    collect_environment({}, {}, tmp_path)
    monkeypatch.setattr(module, "project_facts", lambda _folder: pytest.fail("asked again"))
    monkeypatch.setattr(module, "host_facts", lambda: pytest.fail("asked again"))
    assert collect_environment({}, {}, tmp_path).facts


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pytest.ini", "[pytest]\nllmperf_store = sqlite:///x.db\n"),
        ("pyproject.toml", '[tool.pytest.ini_options]\nllmperf_store = "sqlite:///x.db"\n'),
        ("pyproject.toml", '[tool.pytest]\nllmperf_store = "sqlite:///x.db"\n'),
        ("pytest.toml", '[pytest]\nllmperf_store = "sqlite:///x.db"\n'),
        ("tox.ini", "[pytest]\nllmperf_store = sqlite:///x.db\n"),
        ("setup.cfg", "[tool:pytest]\nllmperf_store = sqlite:///x.db\n"),
    ],
)
def test_the_command_line_finds_the_projects_store_from_a_subfolder(tmp_path, name, content):
    """In each file that pytest reads."""
    (tmp_path / name).write_text(content)
    (tmp_path / "a" / "b").mkdir(parents=True)
    found = find_project(tmp_path / "a" / "b")
    assert (found.root, found.store) == (tmp_path, "sqlite:///x.db")


def test_files_that_say_nothing_about_pytest_do_not_decide(tmp_path):
    """An unrelated pyproject.toml below the project's pytest.ini is passed over.

    Without any, setup.py or here decides.
    """
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "pyproject.toml").write_text("[tool.other]\n")
    assert find_project(inner).root == inner
    (tmp_path / "pytest.ini").write_text("")
    assert (find_project(inner).root, find_project(inner).store) == (tmp_path, None)


def test_a_broken_ini_file_is_named(tmp_path):
    """With the way around it."""
    (tmp_path / "pyproject.toml").write_text("[tool")
    with pytest.raises(UsageError, match=r"pyproject.toml cannot be read.*--store URL"):
        find_project(tmp_path)
