"""--llmperf-against: the same test at another commit, in another folder, under another interpreter.

Real git, scripted models.
"""

from __future__ import annotations

import json
import os
import sys

import pytest
from support.repository import TESTS, Repository, worktrees

from pytest_llmperf.history.store import open_store
from pytest_llmperf.plugin.gate_watch import EXIT_JUDGED_NOTHING

pytestmark = pytest.mark.own_process


nightly = pytest.mark.skipif(
    "LLMPERF_NIGHTLY" not in os.environ, reason="ten seconds more of the same: make nightly runs it"
)


def stored(repo: Repository) -> list[dict]:
    with open_store("sqlite:///.llmperf/history.db", folder=repo.path) as store:
        return [record.extra["against"] for record in store.records(oldest_first=True)]


def test_a_regression_fails_the_test_that_has_it_and_the_other_passes(repo, run_both, own_cache):
    """Uncommitted 20 % more time in one of two tests: it fails in two lines, by ratio and pairs.

    The pairs are stored raw.
    """
    repo.commit(
        "two",
        **{
            "pytest.ini": "[pytest]\nfilterwarnings = error\n",
            "test_it.py": TESTS
            + (
                "\n\n@pytest.mark.llmperf(model='scripted:tpot=5ms')\n"
                "def test_other(llm):\n    llm.run(WORK)\n"
            ),
        },
    )
    repo.speed("12ms")
    before = repo.state()
    result = run_both("--llmperf-against=HEAD")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*def test_speed*",
            (
                "E *Regression: throughput of auto is 0.882x HEAD (*) [[]0.882, 0.882], "
                "allowed 3.0 % worse  (* pairs, * processes 0 % apart)*"
            ),
            (
                "E *decode b1 p8 n11 on *; 64.7 tok/s, at the base 73.3 tok/s; "
                "E = * (limit 200), autocorrelation 0*"
            ),
        ],
    )
    flat = " ".join(result.stdout.str().split())
    assert "(again: 0.882x, 6 pairs)" in flat
    assert "test_it.py::test_other: throughput of auto is 1.00x HEAD" in flat
    assert result.ret == 1
    slow = next(kept for kept in stored(repo) if kept["metrics"]["throughput"]["outcome"] == "FAIL")
    assert slow["commit"] == slow["base"]["facts"]["git_commit"] == repo.git("rev-parse", "HEAD")
    assert all(
        new / base == pytest.approx(0.882, rel=0.01)
        for base, new in slow["metrics"]["throughput"]["pairs"]
    )
    assert (repo.state(), worktrees(own_cache)) == (before, [])


def test_no_change_passes_and_is_compared(repo, run):
    """The same files: PASS, no warning, exit code 0."""
    result = run("--llmperf-against=HEAD", "--llmperf-strict")
    result.assert_outcomes(passed=1, warnings=0)
    assert result.ret == 0


@pytest.mark.nightly
def test_what_runs_in_the_tests_own_process_is_the_bases_too(repo, run):
    """`llmperf.measure` of a callable of the project: the base's sleeps half as long.

    What its test asserts is not judged.
    """
    body = "import time\n\ndef work():\n    time.sleep({})\n"
    tests = (
        "from work import work\n\ndef test_own(llmperf):\n"
        "    assert llmperf.measure(work, tokens=1).throughput > {}\n"
    )
    repo.commit("quick", **{"work.py": body.format(0.01), "test_it.py": tests.format(1e9)})
    repo.write(**{"work.py": body.format(0.02), "test_it.py": tests.format(1)})
    result = run("--llmperf-against=HEAD", "--llmperf-budget=1")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *Regression: throughput of as-is is 0.[45]*x HEAD*"])


@pytest.mark.nightly
def test_the_bases_strategy_and_workload_are_its_own(repo, run):
    """The base ran another workload: NOT COMPARABLE, by name.

    Alone it is exit code 6, required it fails.
    """
    repo.write(**{"test_it.py": TESTS.replace("new_tokens=11", "new_tokens=12")})
    result = run("--llmperf-against=HEAD")
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(
        [
            (
                "*another measurement: workload_text is 'decode b1 p8 "
                "n12', at the base 'decode b1 p8 n11'*"
            )
        ]
    )
    result.stdout.fnmatch_lines(["llmperf: --llmperf-against compared nothing with HEAD*"])
    assert result.ret == EXIT_JUDGED_NOTHING
    run("--llmperf-against=HEAD", "--llmperf-require-accepted").assert_outcomes(failed=1)


BASES = {
    "no_test": (
        TESTS.replace("test_speed", "test_slowness"),
        "the base has no such test: it has the file, not the test",
    ),
    "no_file": (None, "the base has no such test: it has no such file"),
    "broken": (
        "import nothing_of_that_name\n",
        "its file cannot be collected at the base: *nothing_of_that_name*",
    ),
    "failed": (
        TESTS.replace("    assert", "    assert False, 'no luck'\n    assert"),
        "before it measured this: *no luck*",
    ),
    "skipped": (
        TESTS.replace("    assert", "    pytest.skip('not today')\n    assert"),
        "the base's test was skipped: *not today*",
    ),
    "nothing": (
        TESTS.partition("    assert")[0] + "    pass\n",
        "the base's test ended without measuring this",
    ),
    "crashed": (
        TESTS.replace("ttft=50ms", "ttft=50ms,fault=die@run4"),
        "the base failed while it was measured: WorkerDied*SIGKILL*",
    ),
}


def test_a_base_that_cannot_be_measured_is_not_comparable_with_the_reason(repo, run):
    """Named outcomes with the base's own words; never a pass without a comparison.

    The test after them is compared again.
    """
    repo.commit(
        "bases",
        **{f"test_{name}.py": text for name, (text, _) in BASES.items() if text is not None},
    )
    repo.write(**{f"test_{name}.py": TESTS for name in BASES})
    result = run(
        "--llmperf-against=HEAD", "--color=no", *(f"test_{name}.py" for name in BASES), "test_it.py"
    )
    result.assert_outcomes(passed=len(BASES) + 1, warnings=len(BASES))
    for name, (_, said) in BASES.items():
        result.stdout.fnmatch_lines(
            [
                (
                    f"  test_{name}.py:*not comparable: throughput of auto "
                    f"was not compared with HEAD*{said}*"
                )
            ]
        )
    assert result.ret == 0


@pytest.mark.nightly
def test_parametrised_tests_and_several_runs_of_one_test_are_compared_each_with_its_own(repo, run):
    """Two strategies, two workloads each; the base is slower in bf16 and longer outputs alone."""
    tests = TESTS.partition("def test_speed")[0] + (
        "@pytest.mark.parametrize('llm', ['fp32', 'bf16'], indirect=True)\n"
        "def test_two(llm):\n    llm.run(WORK)\n    llm.run(Decode(batch=1, "
        "prompt_tokens=8, new_tokens=21))\n"
    )
    repo.write(**{"speed.py": 'TPOT = "10ms"\n', "test_it.py": tests})
    repo.commit("two")
    repo.speed("10ms,bf16/tpot=12ms")
    result = run("--llmperf-against=HEAD")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["FAILED test_it.py::test_two[[]bf16] - Regression: throughput of bf16*"]
    )
    assert [kept["metrics"]["throughput"]["outcome"] for kept in stored(repo)].count("PASS") == 2


@pytest.mark.nightly
def test_a_folder_is_a_base(repo, run, tmp_path_factory):
    """Another checkout, slower: here it is faster, which passes."""
    other = Repository(tmp_path_factory.mktemp("other"))
    other.write(**{"test_it.py": TESTS})
    other.speed("12ms")
    result = run(f"--llmperf-against={other.path}")
    result.assert_outcomes(passed=1)
    assert f"is1.13x{other.path}" in "".join(result.stdout.str().split())


@pytest.mark.nightly
def test_an_interpreter_is_a_base_with_packages_of_its_own(repo, run, tmp_path):
    """A launcher that puts another `speed` on its path: these test files, that package."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "quick.py").write_text('TPOT = "10ms"\n', encoding="utf-8")
    launcher = tmp_path / "python"
    launcher.write_text(
        f'#!/bin/sh\nPYTHONPATH="{tmp_path}/site:$PYTHONPATH" exec "{sys.executable}" "$@"\n',
        encoding="utf-8",
    )
    launcher.chmod(0o755)
    choice = "try:\n    from quick import TPOT\nexcept ImportError:\n    TPOT = '12ms'\n"
    repo.commit("either", **{"speed.py": choice})
    result = run(f"--llmperf-against={launcher}")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *Regression: throughput of auto is 0.882x *"])
    (kept,) = stored(repo)
    assert (kept["kind"], kept["base"]["facts"]["python"].partition(".")[0]) == ("interpreter", "3")


@pytest.mark.nightly
def test_the_base_uses_the_gpu_that_this_session_has_leased(repo, run, monkeypatch):
    """One (simulated) GPU in all: the base waits for no lease of its own."""
    monkeypatch.setenv("LLMPERF_SIMULATED_GPUS", "1x141GB:NVIDIA H200:9.0")
    repo.speed("12ms")
    result = run("--llmperf-against=HEAD", "--llmperf-device=cuda", "--llmperf-wait=10")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *Regression: throughput of auto is 0.882x *"])


@pytest.mark.nightly
def test_an_editable_install_that_wins_is_noticed(repo, run):
    """The base's conftest puts the head's folder first, so that nothing is compared.

    Its modules are not the base's.
    """
    repo.commit(
        "stray",
        **{"conftest.py": f"import sys\nsys.path.insert(0, {str(repo.path)!r})\nimport speed\n"},
    )
    repo.speed("12ms")
    result = run("--llmperf-against=HEAD")
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(
        ["*the base side loaded modules of another copy of the project: *speed*"]
    )


@nightly
def test_options_of_the_projects_own_conftest_hold_for_the_base(repo, run):
    """The fixture of both sides reads the same value."""
    conftest = (
        "def pytest_addoption(parser):\n    parser.addoption('--tokens', type=int, default=11)\n"
    )
    tests = TESTS.replace("def test_speed(llm):", "def test_speed(llm, pytestconfig):").replace(
        "llm.run(WORK)",
        "llm.run(Decode(batch=1, prompt_tokens=8, new_tokens=pytestconfig.getoption('tokens')))",
    )
    repo.commit("option", **{"conftest.py": conftest, "test_it.py": tests})
    run("--llmperf-against=HEAD", "--tokens=7").assert_outcomes(passed=1, warnings=0)


OPTION_FROM_ENVIRONMENT = """
import os
def pytest_addoption(parser):
    parser.addoption("--hub-token", default=os.environ["CANARY"])
"""
SEES_COMMAND_LINES = """
    import pathlib
    lines = [file.read_bytes() for file in pathlib.Path("/proc").glob("[0-9]*/cmdline")
             if b"pytest_llmperf.against.side" in file.read_bytes()]
    with open({log!r}, "a") as log:
        log.write(f"{{len(lines)}} {{any({canary!r} in line for line in lines)}} "
                  f"{{pytestconfig.getoption('hub_token') == {text!r}}}\\n")
"""


def test_a_token_among_the_projects_options_is_on_no_command_line(repo, run, monkeypatch, tmp_path):
    """All users of a host can read those; the base has the value all the same.

    Nothing of it stays in a file.
    """
    canary = f"c4n4ry-{os.getpid()}"
    monkeypatch.setenv("CANARY", canary)
    seen = tmp_path / "seen.txt"
    body = SEES_COMMAND_LINES.format(log=str(seen), canary=canary.encode(), text=canary)
    tests = TESTS.replace("def test_speed(llm):", f"def test_speed(llm, pytestconfig):{body}")
    repo.commit("option", **{"conftest.py": OPTION_FROM_ENVIRONMENT, "test_it.py": tests})
    run("--llmperf-against=HEAD").assert_outcomes(passed=1)
    assert "1 False True" in seen.read_text(encoding="utf-8").splitlines()
    assert "True True" not in seen.read_text(encoding="utf-8")
    assert list(repo.path.parent.glob("llmperf-base-*")) == []


@nightly
def test_a_build_command_runs_in_the_bases_files(repo, run, own_cache):
    """Without it the base lacks a generated module.

    One that fails is said with its output, and leaves nothing behind.
    """
    repo.write(**{".gitignore": "speed.py\n.llmperf\n__pycache__\n"})
    repo.git("rm", "-q", "--cached", "speed.py")
    repo.commit("generated")
    run("--llmperf-against=HEAD").stdout.fnmatch_lines(["*cannot be collected at the base*"])
    build = """--llmperf-against-build=echo 'TPOT = "8ms"' > speed.py"""
    run("--llmperf-against=HEAD", build).assert_outcomes(failed=1)
    result = run("--llmperf-against=HEAD", "--llmperf-against-build=echo no compiler; exit 3")
    result.stdout.fnmatch_lines(
        ["*the base could not be measured: UsageError: *ended with exit code 3*", "*no compiler*"]
    )
    assert worktrees(own_cache) == []


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            "no-such-branch",
            (
                "*--llmperf-against='no-such-branch' is not a revision of "
                "this repository, no folder and no file*"
            ),
        ),
        ("./pytest.ini", "*is not a revision of this repository and a file that cannot be run*"),
    ],
)
def test_what_is_no_version_is_a_usage_error_before_anything_runs(repo, run, value, said):
    """Exit code 4."""
    result = run(f"--llmperf-against={value}")
    result.stderr.fnmatch_lines([said])
    assert result.ret == pytest.ExitCode.USAGE_ERROR


@nightly
def test_limits_of_the_option_and_the_marker(repo, run):
    """18 % are let through by either; the gate's own syntax."""
    repo.speed("12ms")
    run("--llmperf-against=HEAD", "--llmperf-against-limits=throughput:15%").assert_outcomes(
        passed=1
    )
    run("--llmperf-against=HEAD", "--llmperf-against-limits=throughputs").stdout.fnmatch_lines(
        ["*--llmperf-against-limits*'throughput'*"],
    )


@pytest.mark.nightly
def test_compare_shows_the_pairs_and_stored_runs(repo, run):
    """`llmperf compare base RUN` has rule B's verdict; two sessions of one commit are too few.

    A file and an id name runs.
    """
    run("--llmperf-json=before.jsonl")
    repo.speed("12ms")
    run("--llmperf-against=HEAD", "--llmperf-json=after.jsonl")
    done = repo.llmperf("compare", "base", "after.jsonl", "--json")
    (row,) = json.loads(done.stdout)["rows"]
    assert (done.returncode, row["outcome"], round(row["ratio"], 3)) == (1, "FAIL", 0.882)
    record = json.loads((repo.path / "after.jsonl").read_text().splitlines()[0])
    plain = repo.llmperf("compare", "before.jsonl", record["session_id"][:8])
    assert plain.returncode == 0, plain.stderr
    assert "0.882x" in plain.stdout
    assert (
        "UNDECIDED test_it.py::test_speed throughput: 8 sessions are needed, 1 is there"
        in plain.stdout
    )
    unknown = repo.llmperf("compare", "before.jsonl", "feedbeef")
    assert "no record, session, series or commit that begins with it" in unknown.stderr
